"""The transform that takes most of the augmentation's time, with the library's results in less of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from torch.nn.functional import grid_sample

UNSETTLED = torch.iinfo(torch.int16).min  # marks voxels whose label depends on where exactly they are sampled
SCORE = 1000.0  # of a label that covers a sample point; the library's scale, which decides what its float16 takes for a tie
FEW_LABELS = 12  # up to so many it does not pay to find out which labels are possible at a point
SAMPLE_MARGIN = 2  # voxels around the sampled box: one for interpolation, one for rounding


class FastSpatialTransform(SpatialTransform):
    """Rotation and scaling that look at less, with the library's results bit by bit.

    Labels: the library interpolates every label's indicator at every voxel and takes the best. Where a voxel and all of
    its neighbours carry one label the outcome is known, so only points near borders are put to the vote.

    Reading: a loader may ask before it reads a patch which part of it will be looked at (:meth:`draw_ahead`). Mostly
    nothing is rotated or scaled, and then that is the middle.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._drawn: dict | None = None

    def draw_ahead(self, shape: Sequence[int]) -> tuple[slice, ...] | None:
        """Draws the parameters of the next sample, which must be the next one that this transform gets.

        Args:
            shape: Spatial shape of the sample.

        Returns:
            The part of the sample that will be looked at; what the rest holds does not matter. None, and nothing drawn,
            if that cannot be told.
        """
        self._drawn = None
        can_tell = self._votes_near_borders() and not (self.random_crop or self.p_elastic_deform)
        if not can_tell or callable(self.rotation) or callable(self.scaling):
            return None
        self._drawn = super().get_parameters(image=torch.empty((1, *shape), device="meta"))
        if self._drawn["grid"] is not None:
            return _sampled_box(self._drawn["grid"], shape)
        starts = [n // 2 - size // 2 for n, size in zip(shape, self.patch_size)]
        return tuple(slice(max(start, 0), min(start + size, n)) for start, size, n in zip(starts, self.patch_size, shape))

    def forget_drawn(self) -> None:
        """Takes :meth:`draw_ahead` back, in case that its sample never came."""
        self._drawn = None

    def get_parameters(self, **data_dict) -> dict:
        parameters, self._drawn = self._drawn, None
        return super().get_parameters(**data_dict) if parameters is None else parameters

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params) -> torch.Tensor:
        grid = params["grid"]
        if grid is None or params["elastic_offsets"] is not None or not self._votes_near_borders():
            return super()._apply_to_segmentation(segmentation, **params)
        pad_label = int(self.padding_value_seg) if self.border_mode_seg == "constant" else 0
        outside = pad_label if self._may_reach_outside(grid, segmentation.shape[1:]) else None
        return torch.stack([resample_labels(channel, grid, outside) for channel in segmentation])

    def _votes_near_borders(self) -> bool:
        """Whether the settings are those that :func:`resample_labels` knows."""
        is_vote = self.mode_seg == "bilinear" and self.seg_tiebreak == "nearest" and not self.align_corners
        return is_vote and self.border_mode_seg in ("zeros", "constant")


def first_spatial_transform(transforms: BasicTransform | None) -> tuple[FastSpatialTransform | None, bool]:
    """The spatial transform with which a pipeline begins, if it does, and whether it acts on planes (dummy 2D)."""
    steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else []
    in_planes = len(steps) > 0 and isinstance(steps[0], Convert3DTo2DTransform)
    first = steps[in_planes] if len(steps) > in_planes else None
    return (first if isinstance(first, FastSpatialTransform) else None), in_planes


def resample_labels(labels: torch.Tensor, grid: torch.Tensor, outside: int | None) -> torch.Tensor:
    """The label with the largest linear interpolation weight at each point of a grid; ties go to the nearest voxel's.

    Args:
        labels: Integer labels ``(*spatial)``, two or three axes.
        grid: Sample points as for ``torch.nn.functional.grid_sample``, ``(*output, number of axes)``, affine.
        outside: Label of everything outside of ``labels``; None if no sample point lies so near to it that it matters.

    Returns:
        Labels at the grid's points, ``(*output)``, same dtype.
    """
    box = _sampled_box(grid, labels.shape)
    sampled = labels[box]
    unsettled = _differs_nearby(sampled, outside, [part.start > 0 for part in box], [part.stop < n for part, n in zip(box, labels.shape)])
    if outside is None and not unsettled.any():
        return torch.full(grid.shape[:-1], int(sampled.flatten()[0]), dtype=labels.dtype)
    # Values relative to the mark, because grid_sample fills with zeros: points outside come out as unsettled.
    volume = torch.empty(labels.shape, dtype=torch.float32)  # only the box is ever read
    volume[box].copy_(sampled).sub_(UNSETTLED).masked_fill_(unsettled, 0)
    settled = _sample(volume, grid, "nearest")
    result = settled.add(UNSETTLED).to(labels.dtype)
    open_points = settled == 0
    if open_points.any():
        candidates = _distinct(sampled[unsettled]) | ({outside} if outside is not None else set())
        result[open_points] = _vote(_Indicators(labels, box, outside, volume), grid[open_points], sorted(candidates))
    return result


class _Indicators:
    """The label map as one volume per label, which is made when it is sampled."""

    def __init__(self, labels: torch.Tensor, box: tuple[slice, ...], outside: int | None, volume: torch.Tensor) -> None:
        self.labels = labels[box]
        self.outside = outside
        self._volume = volume  # scratch memory
        self._box = volume[box]

    def score(self, label: int, points: torch.Tensor) -> torch.Tensor:
        """Interpolated coverage of each point by a label, in the library's resolution, ``(N,)``."""
        if label == self.outside:  # 1 outside: sample what is missing to 1, where outside is 0
            torch.ne(self.labels, label, out=self._box).mul_(-SCORE)
            return _sample(self._volume, points, "bilinear").add_(SCORE).half()
        torch.eq(self.labels, label, out=self._box).mul_(SCORE)
        return _sample(self._volume, points, "bilinear").half()

    def nearest(self, points: torch.Tensor) -> torch.Tensor:
        """Label of the voxel nearest to each point, ``(N,)``."""
        return self.sampled_nearest(self.labels, points)

    def sampled_nearest(self, values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Values given for the box, at the voxel nearest to each point, ``(N,)``."""
        shift = self.outside or 0
        self._box.copy_(values).sub_(shift)
        return _sample(self._volume, points, "nearest").add_(shift).to(values.dtype)


def _vote(indicators: _Indicators, points: torch.Tensor, candidates: list[int]) -> torch.Tensor:
    """Winning label at each of the points ``(N, axes)``."""
    dtype = indicators.labels.dtype
    if len(candidates) == 1:
        return torch.full(points.shape[:1], candidates[0], dtype=dtype)
    if len(candidates) == 2:  # their scores add up to a whole, so one tells both
        score = indicators.score(candidates[1], points)
        winners = torch.full(score.shape, candidates[0], dtype=dtype).masked_fill_(score > SCORE / 2, candidates[1])
        tied = score == SCORE / 2
        if tied.any():
            winners[tied] = indicators.nearest(points[tied])
        return winners
    nearest = indicators.nearest(points)
    possible_at = _possible_labels(indicators, points, nearest) if len(candidates) > FEW_LABELS else None
    winners = nearest.clone()
    best = torch.full(nearest.shape, -1, dtype=torch.float16)
    nearest_score = best.clone()
    for label in candidates:
        if possible_at is None:
            score = indicators.score(label, points)
        else:
            possible = possible_at(label)
            score = torch.full_like(best, -1)
            score[possible] = indicators.score(label, points[possible])
        nearest_score = torch.where(nearest == label, score, nearest_score)
        winners.masked_fill_(score > best, label)
        torch.maximum(best, score, out=best)
    return torch.where(nearest_score == best, nearest, winners)


def _possible_labels(indicators: _Indicators, points: torch.Tensor, nearest: torch.Tensor):
    """Function that tells at which points a label may have a score above 0: between the extremes nearby."""
    lowest, highest = (
        indicators.sampled_nearest(_extreme_nearby(extreme, indicators.labels), points) for extreme in (torch.minimum, torch.maximum)
    )
    # What lies around a point beyond the border is unknown here.
    anything = nearest == indicators.outside if indicators.outside is not None else torch.zeros_like(nearest, dtype=torch.bool)
    return lambda label: (lowest <= label) & (highest >= label) | anything if label != indicators.outside else torch.ones_like(anything)


def _sampled_box(grid: torch.Tensor, shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a volume that the points of an affine grid lie in, with a margin."""
    corners = grid[(*(slice(None, None, max(1, n - 1)) for n in grid.shape[:-1]),)].reshape(-1, len(shape))  # extremes are there
    box = []
    for axis, n in enumerate(shape):
        position = ((corners[:, len(shape) - 1 - axis] + 1) * n - 1) / 2
        start = min(max(int(np.floor(position.min().item())) - SAMPLE_MARGIN, 0), n - 1)
        box.append(slice(start, max(min(int(np.ceil(position.max().item())) + SAMPLE_MARGIN + 1, n), start + 1)))
    return tuple(box)


def _differs_nearby(labels: torch.Tensor, outside: int | None, cut_low: list[bool], cut_high: list[bool]) -> torch.Tensor:
    """Whether a voxel or one of its neighbours (diagonal ones too) differs from one beside it.

    Args:
        labels: Integer labels.
        outside: Label beyond the borders, or None if that does not count.
        cut_low: By axis, whether the array was cut there, so that its border is none.
        cut_high: The same for the upper end.
    """
    differs = np.zeros(labels.shape, dtype=bool)
    values = labels.numpy()
    for axis, n in enumerate(values.shape):
        low, high = _along(axis, slice(0, n - 1)), _along(axis, slice(1, n))
        differs[low] |= values[low] != values[high]
        if outside is not None:
            for is_cut, border in ((cut_low[axis], _along(axis, slice(0, 1))), (cut_high[axis], _along(axis, slice(n - 1, n)))):
                if not is_cut:
                    differs[border] |= values[border] != outside
    for axis, n in enumerate(values.shape):
        spread = differs.copy()
        low, high = _along(axis, slice(0, n - 1)), _along(axis, slice(1, n))
        spread[low] |= differs[high]
        spread[high] |= differs[low]
        differs = spread
    return torch.from_numpy(differs)


def _extreme_nearby(extreme, values: torch.Tensor) -> torch.Tensor:
    """Smallest or largest value among each voxel and its neighbours."""
    for axis, n in enumerate(values.shape):
        low, high = _along(axis, slice(0, n - 1)), _along(axis, slice(1, n))
        spread = values.clone()
        spread[low] = extreme(spread[low], values[high])
        spread[high] = extreme(spread[high], values[low])
        values = spread
    return values


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), part)


def _distinct(labels: torch.Tensor) -> set[int]:
    """Values of an integer tensor, without sorting it."""
    if labels.numel() == 0:
        return set()
    lowest = int(labels.min())
    return {lowest + int(offset) for offset in np.flatnonzero(np.bincount(labels.numpy().astype(np.intp) - lowest))}


def _sample(values: torch.Tensor, points: torch.Tensor, mode: str) -> torch.Tensor:
    """``grid_sample`` of one volume at a grid, or at a list of points ``(N, axes)``; 0 outside."""
    axes = values.ndim
    grid = points if points.ndim == axes + 1 else points.reshape(-1, *[1] * (axes - 1), axes)
    return grid_sample(values[None, None], grid[None], mode=mode, align_corners=False).reshape(points.shape[:-1])
