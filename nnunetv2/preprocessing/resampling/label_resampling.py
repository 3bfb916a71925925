"""Resample label maps: interpolate every label's indicator linearly, the largest wins.

Same labels as ``batchgenerators`` >= 0.25.4 (``resize_segmentation`` with order 1) including its ties, at a cost that does
not depend on the number of labels: a voxel's score can only come from its eight neighbours, and where those agree there
is nothing to compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from nnunetv2.preprocessing.resampling.interpolation_operators import linear_taps, nearest_indices
from nnunetv2.utilities.machine_code import machine_code

# Voxels handled at a time; their eight labels and scores then stay in the cache.
VOXELS_PER_CHUNK = 32768
# Output voxels from which machine code pays off, which takes half a second to load.
SMALLEST_COMPILED = 2**20
INT16 = np.iinfo(np.int16)


def resize_labels(labels: np.ndarray, new_shape: Sequence[int], order: int) -> np.ndarray:
    """Resize a label map ``(X, Y, Z)``.

    An axis of unchanged size is not interpolated, so a stack of slices is resized slice by slice if its first axis stays.

    Args:
        labels: Whole numbers in any dtype.
        new_shape: Three sizes.
        order: 0 takes the nearest label. 1 takes the label with the largest linearly interpolated indicator; an exact tie
            goes to the nearest label if it takes part in it, else to the smallest.

    Returns:
        New array in the dtype of ``labels``.
    """
    if order == 0:
        return take_nearest(labels, new_shape)
    codes = np.ascontiguousarray(_integer_codes(labels))
    mixed_code = np.iinfo(codes.dtype).min
    if codes.size and codes.min() == codes.max():
        return np.full(new_shape, codes.flat[0], dtype=labels.dtype)
    kernel = compiled_kernel() if codes.dtype == np.int16 and math.prod(new_shape) >= SMALLEST_COMPILED else None
    if kernel is not None:
        return _resize_compiled(kernel, codes, new_shape).astype(labels.dtype, copy=False)
    axes = [_AxisTaps(old, new, step) for old, new, step in zip(codes.shape, new_shape, _steps(codes.shape), strict=True)]
    cells = np.where(_cells_with_several_labels(codes, [axis for axis in range(3) if axes[axis].interpolated]), mixed_code, codes)
    result = _take_along_all_axes(cells, [axis.lower for axis in axes])
    flat, flat_codes = result.reshape(-1), codes.reshape(-1)
    mixed = np.flatnonzero(flat == mixed_code)
    for start in range(0, len(mixed), VOXELS_PER_CHUNK):
        chunk = mixed[start : start + VOXELS_PER_CHUNK]
        flat[chunk] = _winning_labels(flat_codes, axes, np.unravel_index(chunk, result.shape))
    return result.astype(labels.dtype, copy=False)


def take_nearest(labels: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """Resize ``(X, Y, Z)`` by taking the nearest voxel; exact halves go to the higher index."""
    return _take_along_all_axes(labels, [nearest_indices(old, new) for old, new in zip(labels.shape, new_shape, strict=True)])


def compiled_kernel() -> Callable[..., None] | None:
    """The machine code; None where numba cannot make it."""
    return machine_code("nnunetv2.preprocessing.resampling.compiled_labels", "resize")


def _resize_compiled(kernel: Callable[..., None], codes: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """:func:`resize_labels` of order 1 by :func:`compiled_labels.resize`."""
    taps = np.zeros((9, max(new_shape)), dtype=np.int64)
    weights = np.ones((6, max(new_shape)))  # an axis that keeps its size has the factor 1
    interpolated = np.array([old != new for old, new in zip(codes.shape, new_shape, strict=True)], dtype=np.int64)
    for axis, (old, new) in enumerate(zip(codes.shape, new_shape, strict=True)):
        lower, lower_weight, upper_weight = linear_taps(old, new)
        taps[3 * axis : 3 * axis + 3, :new] = lower, np.minimum(lower + 1, old - 1), nearest_indices(old, new)
        if old != new:
            weights[2 * axis : 2 * axis + 2, :new] = lower_weight, upper_weight
    out = np.empty(tuple(new_shape), dtype=np.int16)
    kernel(codes, taps, weights, interpolated, out)
    return out


class _AxisTaps:
    """Where the voxels of one output axis read the input: neighbours, their weights, the nearest; as flat offsets."""

    def __init__(self, old: int, new: int, step: int) -> None:
        self.interpolated = old != new
        self.lower, lower_weight, upper_weight = linear_taps(old, new)
        upper = np.minimum(self.lower + 1, old - 1)
        self.offsets = [self.lower * step, upper * step] if self.interpolated else [self.lower * step]
        self.weights = [lower_weight, upper_weight]
        self.nearest_offset = nearest_indices(old, new) * step


def _winning_labels(flat_codes: np.ndarray, axes: Sequence[_AxisTaps], positions: Sequence[np.ndarray]) -> np.ndarray:
    """Winner at the given output positions, whose neighbours carry more than one label."""
    neighbours, weights = [], []
    # The order of neighbours and of the float64 operations is scipy's; ties are decided by exact equality of the sums.
    for corner in product(*(range(len(axis.offsets)) for axis in axes)):
        offset, weight = 0, None
        for axis, end, position in zip(axes, corner, positions, strict=True):
            offset = offset + axis.offsets[end][position]
            if axis.interpolated:
                axis_weight = axis.weights[end][position]
                weight = axis_weight if weight is None else weight * axis_weight
        neighbours.append(flat_codes[offset])
        weights.append(weight)
    nearest = flat_codes[sum(axis.nearest_offset[position] for axis, position in zip(axes, positions, strict=True))]

    lowest, highest = np.minimum.reduce(neighbours), np.maximum.reduce(neighbours)
    lowest_score, highest_score = np.zeros(len(nearest)), np.zeros(len(nearest))
    has_third = np.zeros(len(nearest), dtype=bool)
    for label, weight in zip(neighbours, weights, strict=True):
        is_lowest, is_highest = label == lowest, label == highest
        lowest_score += is_lowest * weight
        highest_score += is_highest * weight
        has_third |= ~(is_lowest | is_highest)
    winner = np.where(lowest_score > highest_score, lowest, np.where(highest_score > lowest_score, highest, nearest))
    several = np.flatnonzero(has_third)
    if len(several):
        winner[several] = _winner_of_several([label[several] for label in neighbours], [w[several] for w in weights], nearest[several])
    return winner


def _winner_of_several(neighbours: Sequence[np.ndarray], weights: Sequence[np.ndarray], nearest: np.ndarray) -> np.ndarray:
    """Winner where three or more labels meet: the score of every neighbour's label is summed up."""
    best = np.zeros(len(nearest))
    winner = np.zeros_like(nearest)
    nearest_ties = np.zeros(len(nearest), dtype=bool)
    for label in neighbours:
        score = np.zeros(len(nearest))
        for other, weight in zip(neighbours, weights, strict=True):
            score += (label == other) * weight
        better, level = score > best, score == best
        is_nearest = label == nearest
        winner = np.where(better, label, np.where(level, np.minimum(winner, label), winner))
        nearest_ties = np.where(better, is_nearest, nearest_ties | (level & is_nearest))
        np.maximum(best, score, out=best)
    return np.where(nearest_ties, nearest, winner)


def _steps(shape: Sequence[int]) -> tuple[int, int, int]:
    """Flat distance of neighbouring voxels along each axis of a C-contiguous array."""
    return shape[1] * shape[2], shape[2], 1


def _cells_with_several_labels(codes: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Whether the cell that starts at a voxel and ends at the next along ``axes`` has corners of different labels."""
    lowest, highest = codes, codes
    for axis in axes:
        lowest, highest = _with_next(np.minimum, lowest, axis), _with_next(np.maximum, highest, axis)
    return lowest != highest


def _with_next(operation: np.ufunc, array: np.ndarray, axis: int) -> np.ndarray:
    """``operation`` of every voxel and its next along an axis; the last voxel stays alone."""
    result = array.copy()
    before = (slice(None),) * axis
    operation(array[(*before, slice(None, -1))], array[(*before, slice(1, None))], out=result[(*before, slice(None, -1))])
    return result


def _take_along_all_axes(array: np.ndarray, indices: Sequence[np.ndarray]) -> np.ndarray:
    """``array[np.ix_(*indices)]`` as a C-contiguous array, axis by axis, which is several times faster."""
    for axis, index in enumerate(indices):
        if len(index) != array.shape[axis] or not np.array_equal(index, np.arange(len(index))):
            array = np.take(array, index, axis=axis)
    return np.ascontiguousarray(array)


def _integer_codes(labels: np.ndarray) -> np.ndarray:
    """Labels as int16 where they fit, else int64; the smallest value of the dtype stays free as a marker.

    Raises:
        ValueError: If a label is not a whole number.
    """
    if labels.size and (labels.min() <= INT16.min or labels.max() > INT16.max):
        codes = labels.astype(np.int64)
    else:
        codes = labels.astype(np.int16)
    if labels.dtype.kind == "f" and not np.array_equal(codes, labels):
        raise ValueError("A label map must hold whole numbers only.")
    return codes
