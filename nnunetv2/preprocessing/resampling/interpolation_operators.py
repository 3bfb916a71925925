"""Resizing along one axis as a small banded matrix.

A spline resize is linear and separable, so prefilter, edge rule and interpolation of one axis combine into one matrix
``(new, old)``, and a volume is resized by three matrix products. The numbers equal those of
``scipy.ndimage.zoom(order, mode='nearest', grid_mode=True)``, which evaluates 64 taps per voxel for cubic splines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

SUPPORTED_ORDERS = (0, 1, 3)

# scipy extends an axis by 12 edge values before it computes spline coefficients with mode='nearest'.
SPLINE_PADDING = 12
# Coefficients of the cubic prefilter fall by 0.27 per voxel; what lies below this is lost in float32 (eps 6e-8) anyway.
NEGLIGIBLE_WEIGHT = 1e-12
# Output rows per matrix product: small enough that a block reads a short range of inputs, large enough for a fast GEMM.
ROWS_PER_BLOCK = 48


def sample_positions(old: int, new: int) -> np.ndarray:
    """Centres of ``new`` voxels, in units of ``old`` voxels covering the same extent; float64, not clamped.

    Operation for operation as in scipy: ties between labels are decided by exact equality.
    """
    return (np.arange(new, dtype=np.float64) + 0.5) * (np.float64(old) / new) - 0.5


def nearest_indices(old: int, new: int) -> np.ndarray:
    """Index of the input voxel nearest to every output voxel; exact halves go up."""
    return np.floor(np.clip(sample_positions(old, new), 0, old - 1) + 0.5).astype(np.intp)


def linear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour of every output voxel and the weights of lower and upper neighbour.

    The upper neighbour is ``min(lower + 1, old - 1)``.
    """
    positions = np.clip(sample_positions(old, new), 0, old - 1)
    lower = np.floor(positions)
    lower_weight = 1.0 - (positions - lower)
    return lower.astype(np.intp), lower_weight, 1.0 - lower_weight


@dataclass(frozen=True)
class AxisOperator:
    """Resizes one axis; the matrix is held as row blocks that name the range of inputs they read."""

    old: int
    new: int
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]  # (outputs, inputs, weights (outputs, inputs))

    def apply(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Resize one axis of a float64 array ``(X, Y, Z)``; the array itself if the size stays, else a new one."""
        if self.old == self.new:
            return array
        result = np.empty((*array.shape[:axis], self.new, *array.shape[axis + 1 :]), dtype=np.float64)
        for outputs, inputs, weights in self.blocks:
            if axis == 0:
                result[outputs] = np.tensordot(weights, array[inputs], axes=1)
            elif axis == 1:
                np.matmul(weights, array[:, inputs], out=result[:, outputs])
            else:
                np.matmul(array[:, :, inputs], weights.T, out=result[:, :, outputs])
        return result


@lru_cache(maxsize=64)
def axis_operator(old: int, new: int, order: int) -> AxisOperator:
    """Operator from ``old`` to ``new`` voxels with a spline of the given order.

    Raises:
        ValueError: If the order is not one of ``SUPPORTED_ORDERS``.
    """
    if order not in SUPPORTED_ORDERS:
        raise ValueError(f"Spline order {order} has no operator; supported: {SUPPORTED_ORDERS}.")
    blocks = []
    if old != new:
        matrix = _matrix(old, new, order)
        for start in range(0, new, ROWS_PER_BLOCK):
            rows = matrix[start : start + ROWS_PER_BLOCK]
            used = np.flatnonzero(np.abs(rows).max(axis=0) > NEGLIGIBLE_WEIGHT)
            inputs = slice(int(used[0]), int(used[-1]) + 1)
            blocks.append((slice(start, start + len(rows)), inputs, np.ascontiguousarray(rows[:, inputs])))
    return AxisOperator(old, new, tuple(blocks))


def _matrix(old: int, new: int, order: int) -> np.ndarray:
    """The full matrix ``(new, old)``."""
    rows = np.arange(new)
    matrix = np.zeros((new, old))
    if order == 0:
        matrix[rows, nearest_indices(old, new)] = 1
    elif order == 1:
        lower, lower_weight, upper_weight = linear_taps(old, new)
        matrix[rows, lower] = lower_weight
        matrix[rows, np.minimum(lower + 1, old - 1)] += upper_weight
    else:
        padded_identity = np.pad(np.eye(old), ((SPLINE_PADDING, SPLINE_PADDING), (0, 0)), mode="edge")
        coefficients = ndimage.spline_filter1d(padded_identity, order=3, axis=0, mode="nearest")
        positions = sample_positions(old, new) + SPLINE_PADDING
        lower = np.floor(positions).astype(np.intp)
        for offset, weight in zip(range(-1, 3), _cubic_weights(positions - lower), strict=True):
            matrix += weight[:, None] * coefficients[lower + offset]
    return matrix


def _cubic_weights(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cubic B-spline at the four knots around a position that lies ``fraction`` behind the second of them."""
    rest = 1.0 - fraction
    second = (fraction * fraction * (fraction - 2.0) * 3.0 + 4.0) / 6.0
    third = (rest * rest * (rest - 2.0) * 3.0 + 4.0) / 6.0
    first = rest * rest * rest / 6.0
    return first, second, third, 1.0 - first - second - third


def resize_volume(volume: np.ndarray, new_shape: Sequence[int], order: int, out: np.ndarray) -> None:
    """Resize ``(X, Y, Z)`` jointly along its three axes, clipped to the range of the input.

    Works slab by slab, so that besides input and output only one float64 intermediate exists.

    Args:
        volume: Any float dtype; finite.
        new_shape: Three sizes.
        order: One of ``SUPPORTED_ORDERS``.
        out: Array of ``new_shape`` to fill; computation is in float64, only the result is cast.
    """
    first, *in_plane = (axis_operator(old, new, order) for old, new in zip(volume.shape, new_shape, strict=True))
    low, high = volume.min(), volume.max()
    if first.old == first.new:
        for i in range(first.new):
            out[i] = np.clip(_resize_planes(volume[i : i + 1], in_plane)[0], low, high)
        return
    if first.old <= first.new:
        intermediate = np.empty((first.old, *new_shape[1:]), dtype=np.float64)
        for i in range(first.old):
            intermediate[i] = _resize_planes(volume[i : i + 1], in_plane)[0]
        for outputs, inputs, weights in first.blocks:
            slab = np.tensordot(weights, intermediate[inputs], axes=1)
            out[outputs] = np.clip(slab, low, high, out=slab)
        return
    for outputs, inputs, weights in first.blocks:
        slab = np.tensordot(weights, np.asarray(volume[inputs], dtype=np.float64), axes=1)
        slab = _resize_planes(slab, in_plane)
        out[outputs] = np.clip(slab, low, high, out=slab)


def resize_slices(slices: np.ndarray, new_shape: Sequence[int], order: int) -> np.ndarray:
    """Resize a stack ``(N, Y, X)`` slice by slice, each clipped to its own range.

    Returns:
        float64 ``(N, *new_shape)``.
    """
    in_plane = [axis_operator(old, new, order) for old, new in zip(slices.shape[1:], new_shape, strict=True)]
    result = _resize_planes(slices, in_plane)
    low = slices.min(axis=(1, 2), keepdims=True)
    high = slices.max(axis=(1, 2), keepdims=True)
    return np.clip(result, low, high, out=result)


def _resize_planes(planes: np.ndarray, operators: Sequence[AxisOperator]) -> np.ndarray:
    """Both axes of a stack ``(N, Y, X)`` as a new float64 array, the axis that shrinks most first."""
    planes = np.array(planes, dtype=np.float64, order="C")
    for axis in sorted((0, 1), key=lambda axis: operators[axis].new / operators[axis].old):
        planes = operators[axis].apply(planes, axis + 1)
    return planes
