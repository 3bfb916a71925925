"""Sliding window: where the tiles lie, how much each of their voxels counts, and how their logits are added up."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from scipy.ndimage import gaussian_filter

# Weight of a tile's centre. The reference implementation's value: with it the rim of a large tile stays above zero in float16.
GAUSSIAN_PEAK = 10
HALF_ACCUMULATION_VARIABLE = "nnUNet_half_accumulation"
TRUE_VALUES = ("1", "true", "t", "yes")
NOT_FINITE = (
    "The network predicted values that are not finite numbers. The image may hold extreme values or NaN, "
    "the weights may be broken, or float16 may have overflowed (nnUNet_half_accumulation, or the GPU's autocast)."
)


def half_accumulation_requested() -> bool:
    """Whether ``nnUNet_half_accumulation`` asks for the reference's float16 sums (half the memory, coarser logits)."""
    return os.environ.get(HALF_ACCUMULATION_VARIABLE, "").strip().lower() in TRUE_VALUES


@lru_cache(maxsize=2)
def compute_gaussian(
    tile_size: tuple[int, ...] | list[int],
    sigma_scale: float = 1.0 / 8,
    value_scaling_factor: float = 1,
    dtype: torch.dtype = torch.float16,
    device: torch.device = torch.device("cuda", 0),
) -> torch.Tensor:
    """Weight of every voxel of a tile: a Gaussian around its centre, so that the tile's rim counts little.

    Args:
        tile_size: Voxels per axis.
        sigma_scale: Standard deviation as a fraction of the tile's extent.
        value_scaling_factor: The largest weight.
        dtype: Type of the result. What it cannot tell from zero gets the smallest other weight, so that nothing is divided by zero.
        device: Where the result lies.

    Returns:
        Weights of shape ``tile_size``; the same tensor for the same arguments, do not change it.
    """
    impulse = np.zeros(tile_size)
    impulse[tuple(extent // 2 for extent in tile_size)] = 1
    weights = gaussian_filter(impulse, [extent * sigma_scale for extent in tile_size], mode="constant", cval=0)
    # Scaled in float64, before the cast: float16 would lose the rim.
    weights /= weights.max() / value_scaling_factor
    result = torch.from_numpy(weights).to(device=device, dtype=dtype)
    result[result == 0] = result[result != 0].min()
    return result


def padded_to_tile(image: torch.Tensor, tile_size: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """An image ``(C, X, Y, Z)`` with zeros around it where it is smaller than a tile, and where the image lies in that, by axis of both."""
    if all(have >= need for have, need in zip(image.shape[-len(tile_size) :], tile_size, strict=True)):
        return image, tuple(slice(0, size) for size in image.shape)
    return pad_nd_image(image, tile_size, "constant", {"value": 0}, True)


def compute_steps_for_sliding_window(image_size: Sequence[int], tile_size: Sequence[int], tile_step_size: float) -> list[list[int]]:
    """First voxel of every tile along each axis, evenly spread and never farther apart than asked.

    Args:
        image_size: Voxels per axis, at least those of the tile.
        tile_size: Voxels per axis.
        tile_step_size: Largest distance between neighbouring tiles as a fraction of the tile, in (0, 1].

    Raises:
        ValueError: If the tile does not fit or the step is out of range.
    """
    if any(extent < tile for extent, tile in zip(image_size, tile_size, strict=True)):
        raise ValueError(f"The image {tuple(image_size)} is smaller than the tile {tuple(tile_size)}. Pad it first.")
    if not 0 < tile_step_size <= 1:
        raise ValueError(f"The step size must be larger than 0 and at most 1, found {tile_step_size}.")
    steps = []
    for extent, tile in zip(image_size, tile_size, strict=True):
        count = math.ceil((extent - tile) / (tile * tile_step_size)) + 1
        spacing = (extent - tile) / (count - 1) if count > 1 else 0
        steps.append([int(np.round(i * spacing)) for i in range(count)])
    return steps


def tile_slicers(image_size: Sequence[int], tile_size: Sequence[int], tile_step_size: float) -> list[tuple[slice, ...]]:
    """Index of every tile into an image ``(C, X, Y, Z)``.

    A tile of two axes is taken from every slice of the first spatial axis separately; its index drops that axis.

    Args:
        image_size: The three spatial axes of the (padded) image.
        tile_size: Two or three axes.
        tile_step_size: See :func:`compute_steps_for_sliding_window`.
    """
    image_size = tuple(image_size)
    if len(tile_size) == len(image_size) - 1:
        steps = compute_steps_for_sliding_window(image_size[1:], tile_size, tile_step_size)
        first_axis = list(range(image_size[0]))
    else:
        steps = compute_steps_for_sliding_window(image_size, tile_size, tile_step_size)
        first_axis = None
    boxes = [
        tuple(slice(start, start + tile) for start, tile in zip(corner, tile_size, strict=True)) for corner in itertools.product(*steps)
    ]
    if first_axis is None:
        return [(slice(None), *box) for box in boxes]
    return [(slice(None), index, *box) for index in first_axis for box in boxes]


def grouped_tiles(slicers: Iterable[tuple[slice | int, ...]], size: int, *, by_rows: bool) -> list[list[tuple[slice | int, ...]]]:
    """Tiles that go through the network together, in their order. What fills no group stays alone, so that there are two sizes of batches.

    Args:
        slicers: Entries of :func:`tile_slicers`.
        size: Tiles of a group.
        by_rows: Only join tiles with the same rows of the first spatial axis. Groups of a part of the rows are those of the whole image then.
    """
    slicers = list(slicers)
    parts = [list(part) for _, part in itertools.groupby(slicers, key=lambda slicer: slicer[1])] if by_rows else [slicers]
    groups = []
    for part in parts:
        whole = len(part) - len(part) % size
        groups += [part[start : start + size] for start in range(0, whole, size)] + [[slicer] for slicer in part[whole:]]
    return groups


def mirror_combinations(mirror_axes: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Every non-empty set of axes to flip, as axes of a batch ``(B, C, *spatial)``; nothing without mirroring."""
    if not mirror_axes:
        return []
    axes = [axis + 2 for axis in mirror_axes]
    return [combination for count in range(1, len(axes) + 1) for combination in itertools.combinations(axes, count)]


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU in numpy's memory, which asks for large pages: the first touch of each page costs as much as adding up a tile."""
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(tuple(shape), dtype=np.float16 if dtype == torch.half else np.float32))


class TileAccumulator:
    """Adds up the logits of overlapping tiles, each weighted voxel by voxel, and averages them at the end.

    Args:
        num_channels: Channels of the logits.
        image_size: Spatial axes of the padded image.
        tile_weights: Weight of each voxel of a tile on ``device``, or None if all count the same.
        half: Add up in float16, in the order of the reference implementation, instead of float32.
        device: Where the sums lie.
    """

    def __init__(
        self,
        num_channels: int,
        image_size: Sequence[int],
        tile_weights: torch.Tensor | None,
        *,
        half: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype = torch.half if half else torch.float32
        self.device = torch.device(device)
        self.logits = _zeros((num_channels, *image_size), self.dtype, self.device)
        self.weights = torch.zeros(tuple(image_size), dtype=self.dtype, device=self.device)
        self.tile_weights = tile_weights
        self.is_finite = True  # whether all results are numbers

    def add(self, logits: torch.Tensor, slicer: tuple[slice | int, ...]) -> None:
        """Add one tile.

        Args:
            logits: ``(C, *tile)`` on the accumulator's device; may be overwritten.
            slicer: The tile's entry of :func:`tile_slicers`.
        """
        target, weights = self.logits[slicer], self.weights[slicer[1:]]
        if self.tile_weights is None:
            target += logits
            weights += 1
        elif self.dtype == torch.float32:
            # One pass without a temporary: on a CPU with many classes this is where the time outside the network goes.
            target.addcmul_(logits.float(), self.tile_weights)
            weights += self.tile_weights
        else:
            logits *= self.tile_weights
            target += logits
            weights += self.tile_weights

    def result(self) -> torch.Tensor:
        """The weighted mean ``(C, X, Y, Z)``; uses the sums' memory, so nothing can be added afterwards. ``is_finite`` is known then."""
        return self.result_of_rows(slice(None))

    def result_of_rows(self, rows: slice) -> torch.Tensor:
        """The same for a part of the first spatial axis, once; ``is_finite`` is known for the parts that were asked for."""
        averaged, weights = self.logits[:, rows], self.weights[rows]
        for channel in averaged:
            torch.div(channel, weights, out=channel)
            # One pass and no mask: what is not finite makes the sum so. A sum may also overflow, which is looked into.
            if not bool(torch.isfinite(channel.sum(dtype=torch.float32))):
                self.is_finite = self.is_finite and bool(torch.isfinite(channel).all())
        return averaged
