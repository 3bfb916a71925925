"""Resample label maps: interpolate every label's indicator linearly, the largest wins.

Same labels as ``batchgenerators`` >= 0.25.4 (``resize_segmentation`` with order 1) including its ties, at a cost that does
not depend on the number of labels: a voxel's score can only come from its eight neighbours, and where those agree there
is nothing to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from nnunetv2.preprocessing.resampling.interpolation_operators import linear_taps, nearest_indices

# Voxels handled at a time; their eight labels and scores then stay in the cache.
VOXELS_PER_CHUNK = 32768
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
    codes = _integer_codes(labels)
    mixed_code = np.iinfo(codes.dtype).min
    taps = [linear_taps(old, new) for old, new in zip(labels.shape, new_shape, strict=True)]
    interpolated = [axis for axis in range(3) if labels.shape[axis] != new_shape[axis]]

    cells = np.where(_cells_with_several_labels(codes, interpolated), mixed_code, codes)
    result = _take_along_all_axes(cells, [lower for lower, _, _ in taps])
    flat = result.reshape(-1)
    mixed = np.flatnonzero(flat == mixed_code)
    nearest = [nearest_indices(old, new) for old, new in zip(labels.shape, new_shape, strict=True)]
    for start in range(0, len(mixed), VOXELS_PER_CHUNK):
        chunk = mixed[start : start + VOXELS_PER_CHUNK]
        positions = np.unravel_index(chunk, result.shape)
        nearest_labels = codes[tuple(index[position] for index, position in zip(nearest, positions, strict=True))]
        flat[chunk] = _winning_labels(codes, taps, interpolated, positions, nearest_labels)
    return result.astype(labels.dtype)


def take_nearest(labels: np.ndarray, new_shape: Sequence[int]) -> np.ndarray:
    """Resize ``(X, Y, Z)`` by taking the nearest voxel; exact halves go to the higher index."""
    return _take_along_all_axes(labels, [nearest_indices(old, new) for old, new in zip(labels.shape, new_shape, strict=True)])


def _winning_labels(
    codes: np.ndarray,
    taps: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    interpolated: Sequence[int],
    positions: Sequence[np.ndarray],
    nearest_labels: np.ndarray,
) -> np.ndarray:
    """Winner at the given output positions, whose neighbours carry more than one label."""
    index = [taps[axis][0][position] for axis, position in enumerate(positions)]
    upper = [np.minimum(i + 1, n - 1) for i, n in zip(index, codes.shape, strict=True)]
    neighbour_labels, weights = [], []
    # The order of neighbours and of the float64 operations is scipy's; ties are decided by exact equality of the sums.
    for corner in product((0, 1), repeat=len(interpolated)):
        corner_index, weight = list(index), None
        for axis, is_upper in zip(interpolated, corner, strict=True):
            if is_upper:
                corner_index[axis] = upper[axis]
            axis_weight = taps[axis][1 + is_upper][positions[axis]]
            weight = axis_weight if weight is None else weight * axis_weight
        neighbour_labels.append(codes[tuple(corner_index)])
        weights.append(weight)

    best = np.zeros(len(nearest_labels))
    winner = np.zeros_like(nearest_labels)
    nearest_ties = np.zeros(len(nearest_labels), dtype=bool)
    for label in neighbour_labels:
        score = np.zeros(len(nearest_labels))
        for other, weight in zip(neighbour_labels, weights, strict=True):
            score += np.where(label == other, weight, 0.0)
        better, level = score > best, score == best
        is_nearest = label == nearest_labels
        winner = np.where(better, label, np.where(level, np.minimum(winner, label), winner))
        nearest_ties = np.where(better, is_nearest, nearest_ties | (level & is_nearest))
        np.maximum(best, score, out=best)
    return np.where(nearest_ties, nearest_labels, winner)


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
