"""Image and labels rotated and scaled together, in one pass over the patch.

The results are those of ``torch.nn.functional.grid_sample``, bit by bit: linear interpolation of the image, and for the labels a vote among the
neighbours of a sample point, weighted as in the interpolation. The sample points are made a few planes at a time and forgotten; a grid of all of
them is three times as large as the patch.

Where numba is installed, machine code does it (:mod:`compiled_warp`), otherwise torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import grid_sample

from nnunetv2.utilities.machine_code import machine_code

POINTS_AT_A_TIME = 2**15  # their coordinates and values stay in a processor's second-level cache
SAMPLE_MARGIN = 2  # voxels around the sampled box: one for interpolation, one for rounding
SCORE = 1000.0  # of a label that covers a sample point; with float16 it decides what the reference takes for a tie


class AffineGrid:
    """Sample points of a patch that is rotated and scaled about the middle of a volume.

    Args:
        affine: ``(axes, axes)``, from voxel offsets in the patch to voxel offsets in the volume, both from the middle.
        patch_size: Voxels of the patch, two or three axes.
        shape: Voxels of the volume.
    """

    def __init__(self, affine: np.ndarray, patch_size: Sequence[int], shape: Sequence[int]) -> None:
        self.affine = np.asarray(affine)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.shape = tuple(int(n) for n in shape)
        matrix = torch.from_numpy(np.asarray(affine, dtype=np.float32))
        offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.patch_size]
        # Each coordinate is a sum of one term per patch axis. Order and precision of the sums are those of the matrix product
        # that makes the whole grid.
        self._terms = [[matrix[axis, other] * offset for other, offset in enumerate(offsets)] for axis in range(len(self.shape))]

    def terms(self) -> np.ndarray:
        """What each voxel of a patch axis adds to a coordinate, ``(coordinate, patch axis, longest patch axis)``."""
        axes = len(self.shape)
        terms = np.zeros((axes, axes, max(self.patch_size)), dtype=np.float32)
        for axis, of_axis in enumerate(self._terms):
            for other, term in enumerate(of_axis):
                terms[axis, other, : len(term)] = term
        return terms

    def coordinate(self, axis: int, *index: torch.Tensor) -> torch.Tensor:
        """Coordinates of points along a volume axis, from -1 to 1, for indices into the patch, one tensor per patch axis."""
        first, *others = (term[position] for term, position in zip(self._terms[axis], index))
        for other in others:
            first = first + other
        return first.div_(self.shape[axis] / 2)

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Points of the patch's planes (in 2D: rows) from ``start`` to ``stop``, ``(1, stop - start, ..., axes)`` as for grid_sample."""
        index = [torch.arange(start, stop), *(torch.arange(n) for n in self.patch_size[1:])]
        index = [positions.reshape(-1, *[1] * (len(index) - 1 - axis)) for axis, positions in enumerate(index)]
        points = torch.empty((len(self.shape), stop - start, *self.patch_size[1:]))
        for axis in range(len(self.shape)):
            first, *others = (term[positions] for term, positions in zip(self._terms[axis], index))
            for other in others[:-1]:
                first = first + other
            torch.add(first, others[-1], out=points[-1 - axis]).div_(self.shape[axis] / 2)
        return points.movedim(0, -1)[None]

    def corners(self) -> torch.Tensor:
        """The points at the corners of the patch, ``(1, 2**axes, axes)``, between which all others lie."""
        index = torch.tensor(list(itertools.product(*((0, n - 1) for n in self.patch_size)))).T
        return torch.stack([self.coordinate(axis, *index) for axis in reversed(range(len(self.shape)))], -1)[None]

    def sampled_box(self) -> tuple[slice, ...]:
        """The part of the volume that the points lie in, with a margin."""
        box = []
        for position, n in zip(self.corners()[0].flip(-1).T, self.shape):
            position = ((position + 1) * n - 1) / 2
            start = min(max(math.floor(position.min().item()) - SAMPLE_MARGIN, 0), n - 1)
            box.append(slice(start, max(min(math.ceil(position.max().item()) + SAMPLE_MARGIN + 1, n), start + 1)))
        return tuple(box)


def warp(
    image: torch.Tensor | None,
    labels: torch.Tensor | None,
    grid: AffineGrid,
    outside: int | None,
    part: tuple[slice, ...] | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Image and labels at the points of a grid.

    Args:
        image: float32 ``(C, *part)``, or None.
        labels: Integers ``(K, *part)``, or None.
        grid: Where to sample.
        outside: Label beyond the border of the volume; None if no point lies so near to it that it matters.
        part: The part of the volume that image and labels are; at least ``grid.sampled_box()``. None: all of it.

    Returns:
        ``(C, *patch)``, 0 beyond the border, and ``(K, *patch)``: by channel the label with the largest interpolation weight; among equals
        the one of the nearest voxel, otherwise the smallest. Same dtypes.
    """
    if part is None:
        part = grid.sampled_box()
        image, labels = (None if tensor is None else tensor[(slice(None), *part)] for tensor in (image, labels))
    kernel = compiled_kernel(len(grid.shape))
    if kernel is not None and (labels is None or labels.dtype == torch.int16):
        return _warp_compiled(kernel, image, labels, grid, outside, part)
    return _warp_with_torch(image, labels, grid, outside, part)


def compiled_kernel(axes: int) -> Callable[..., None] | None:
    """The machine code for two or three axes; None where numba cannot make it."""
    return machine_code("nnunetv2.training.data_augmentation.compiled_warp", "warp_rows" if axes == 3 else "warp_rows_2d")


def _warp_compiled(
    kernel: Callable[..., None],
    image: torch.Tensor | None,
    labels: torch.Tensor | None,
    grid: AffineGrid,
    outside: int | None,
    part: tuple[slice, ...],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """:func:`warp` by :func:`compiled_warp.warp_rows` or :func:`compiled_warp.warp_rows_2d`."""
    shape = [along.stop - along.start for along in part]
    sources = (
        torch.empty((0, *shape)) if image is None else image.contiguous(),
        torch.empty((0, *shape), dtype=torch.int16) if labels is None else labels.contiguous(),
    )
    results = [torch.empty((len(source), *grid.patch_size), dtype=source.dtype) for source in sources]
    start = np.array([along.start for along in part])
    place = (start, np.array(grid.shape), grid.terms())
    kernel(*(source.numpy() for source in sources), *place, *(x.numpy() for x in results), outside or 0, outside is not None)
    return None if image is None else results[0], None if labels is None else results[1]


def _warp_with_torch(
    image: torch.Tensor | None, labels: torch.Tensor | None, grid: AffineGrid, outside: int | None, part: tuple[slice, ...]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """:func:`warp` by ``grid_sample``."""
    num_images = 0 if image is None else image.shape[0]
    num_labels = 0 if labels is None else labels.shape[0]
    volume = torch.empty((num_images + num_labels, *grid.shape))  # only the part is ever touched
    box = (slice(None), *part)
    if image is not None:
        volume[:num_images][box] = image
    if labels is not None:
        _mark_unsettled(labels, outside, part, grid.shape, out=volume[num_images:][box])
    sampled = torch.empty((num_images + num_labels, *grid.patch_size))
    step = max(1, POINTS_AT_A_TIME // math.prod(grid.patch_size[1:]))
    for start in range(0, grid.patch_size[0], step):
        stop = min(start + step, grid.patch_size[0])
        sampled[:, start:stop] = grid_sample(volume[None], grid.part(start, stop), mode="bilinear", align_corners=False)[0]
    del volume
    return (
        None if image is None else sampled[:num_images],
        None if labels is None else _labels_from(sampled[num_images:], labels, grid, outside, [along.start for along in part]),
    )


def _mark_unsettled(labels: torch.Tensor, outside: int | None, box: Sequence[slice], shape: Sequence[int], out: torch.Tensor) -> None:
    """Label values relative to ``outside`` where no point's label depends on where exactly it lies, NaN elsewhere.

    NaN spreads: an interpolated value is one if and only if a mark is among the neighbours. Without a mark these are all equal, for which it is
    enough to compare each voxel with its successors.
    """
    values = labels.numpy()
    differs = np.zeros(values.shape, dtype=bool)
    for axis, (part, n) in enumerate(zip(box, shape), start=1):
        low, high = _along(axis, slice(0, -1)), _along(axis, slice(1, None))
        differs[low] |= values[low] != values[high]
        if outside is not None:
            for is_border, plane in ((part.start == 0, slice(0, 1)), (part.stop == n, slice(-1, None))):
                if is_border:
                    differs[_along(axis, plane)] |= values[_along(axis, plane)] != outside
    out.copy_(labels)
    if outside:
        out.sub_(outside)
    out.masked_fill_(torch.from_numpy(differs), torch.nan)


def _labels_from(sampled: torch.Tensor, labels: torch.Tensor, grid: AffineGrid, outside: int | None, first: Sequence[int]) -> torch.Tensor:
    """Labels from interpolated values relative to ``outside``; points where they are NaN are put to the vote."""
    is_open = sampled.isnan()
    result = sampled.nan_to_num_(0).round_().add_(outside or 0).to(labels.dtype)
    points = is_open.nonzero(as_tuple=True)
    if len(points[0]):
        result[is_open] = _vote(labels, grid, points, outside, first)
    return result


def _vote(
    labels: torch.Tensor, grid: AffineGrid, points: Sequence[torch.Tensor], outside: int | None, first: Sequence[int]
) -> torch.Tensor:
    """Winning label at each of N points, given by their indices ``(channel, *patch axes)``; ``labels`` begin at voxel ``first``."""
    channel, *index = points
    positions = [_voxel_position(grid.coordinate(axis, *index), n, len(grid.shape)) for axis, n in enumerate(grid.shape)]
    corners = list(itertools.product((0, 1), repeat=len(grid.shape)))
    floors = [position.floor() for position in positions]
    neighbours = torch.stack(
        [_labels_at(labels, channel, [floor + (up - low) for floor, up, low in zip(floors, corner, first)], outside) for corner in corners]
    )
    winners = neighbours[0].clone()
    mixed = (neighbours[1:] != neighbours[0]).any(0).nonzero()[:, 0]
    if len(mixed) == 0:
        return winners
    positions = [position[mixed] for position in positions]
    floors = [floor[mixed] for floor in floors]
    sides = [((floor + 1) - position, position - floor) for floor, position in zip(floors, positions)]
    weights = torch.stack([_product([sides[axis][corner[axis]] for axis in reversed(range(len(sides)))]) for corner in corners])
    nearest = _labels_at(
        labels, channel[mixed], [position.round() - low for position, low in zip(positions, first)], outside
    )  # halves to even, as grid_sample
    winners[mixed] = _elected(neighbours[:, mixed], weights.mul_(SCORE), nearest, outside)
    return winners


def _voxel_position(coordinate: torch.Tensor, n: int, axes: int) -> torch.Tensor:
    """Position in voxels along an axis of n, with the arithmetic of grid_sample for that number of axes."""
    if axes == 2:  # multiplied and added with one rounding
        return ((coordinate + 1).double() * (n / 2) - 0.5).float()
    return ((coordinate + 1) * n - 1) / 2


def _labels_at(labels: torch.Tensor, channel: torch.Tensor, voxel: Sequence[torch.Tensor], outside: int | None) -> torch.Tensor:
    """Labels of voxels ``(N,)``, those beyond the border included."""
    inside, place = None, channel
    for position, n in zip(voxel, labels.shape[1:]):
        position = position.long()
        is_inside = (position >= 0) & (position < n)
        inside = is_inside if inside is None else inside & is_inside
        place = place * n + position.clamp_(0, n - 1)
    return labels.reshape(-1)[place].masked_fill_(~inside, outside or 0)


def _elected(neighbours: torch.Tensor, weights: torch.Tensor, nearest: torch.Tensor, outside: int | None) -> torch.Tensor:
    """The label with the highest sum of weights at each point.

    Args:
        neighbours: Labels of the voxels around each point, ``(2**axes, N)``.
        weights: Their weights, the same shape.
        nearest: Label of the nearest voxel, which wins a tie if it takes part in it, ``(N,)``.
        outside: Label beyond the border.
    """
    best = nearest_score = torch.zeros(nearest.shape, dtype=torch.float16)
    scores = []
    if outside is not None:  # its score is what the others leave, which is not the same in float16
        left = torch.zeros(nearest.shape)
        for label, weight in zip(neighbours, weights):
            left -= weight * (label != outside)
        left_score = (left + SCORE).half()
    for label in neighbours:
        score = torch.zeros(nearest.shape)
        for other, weight in zip(neighbours, weights):
            score += weight * (other == label)
        score = score.half()
        if outside is not None:
            score = torch.where(label == outside, left_score, score)
        scores.append(score)
        best = torch.maximum(best, score)
        nearest_score = torch.where(label == nearest, score, nearest_score)
    smallest = torch.full_like(nearest, torch.iinfo(nearest.dtype).max)
    for label, score in zip(neighbours, scores):
        smallest = torch.where(score == best, torch.minimum(smallest, label), smallest)
    return torch.where(nearest_score == best, nearest, smallest)


def _product(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), part)
