"""What :mod:`compiled_warp` does, for images of two axes, and for those whose planes are its channels (dummy 2D)."""

import numpy as np
from numba import njit

from nnunetv2.training.data_augmentation.compiled_vote import ONE, ZERO, elected, is_above


@njit("float32(float32, float32, float32)", cache=True, nogil=True)
def added_product(value, factor, other):
    """``value + factor * other``, rounded once, as grid_sample computes for two axes."""
    return np.float32(np.float64(factor) * np.float64(other) + np.float64(value))


@njit("void(float32, float32[::1], int64, int64, int32[::1], float32[::1], float32[::1])", cache=True, nogil=True, error_model="numpy")
def positions_along(offset, terms, voxels, first, low, up, down):
    """Positions of a row of points along one axis of the image.

    Args:
        offset: What all points of the row have in common.
        terms: What each adds.
        voxels: Of the image along the axis.
        first: First voxel that is there.
        low: The voxel below each point, counted from ``first``, written.
        up: Weight of the voxel above, written.
        down: Weight of the voxel below, written.
    """
    half, begin = np.float32(voxels / 2), np.int32(first)
    for k in range(low.size):
        coordinate = (offset + terms[k]) / half + ONE
        position = np.float32(np.float64(coordinate) * (voxels / 2) - 0.5)
        floor = np.floor(position)
        low[k] = np.int32(floor) - begin
        up[k] = position - floor
        down[k] = (floor + ONE) - position


@njit(
    "void(float32[:,:,::1], int16[:,:,::1], int64[::1], int64[::1], float32[:,:,::1], float32[:,:,::1], int16[:,:,::1], int64, boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def warp_rows(image, labels, start, shape, terms, out_image, out_labels, outside, reaches_outside):
    """Fills image and labels of a patch; the arguments are those of ``compiled_warp.warp_rows`` without the first axis."""
    size_y, size_x = image.shape[1:]
    patch_y, patch_x = out_image.shape[1:]
    flat_image, flat_labels = image.reshape(image.shape[0], size_y * size_x), labels.reshape(labels.shape[0], size_y * size_x)
    right, down = np.uint64(1), np.uint64(size_x)  # unsigned: never counted from the end
    # of one row of points
    low_y, low_x, places = np.empty(patch_x, np.int32), np.empty(patch_x, np.int32), np.empty(patch_x, np.uint64)
    up_y, up_x = np.empty(patch_x, np.float32), np.empty(patch_x, np.float32)
    down_y, down_x = np.empty(patch_x, np.float32), np.empty(patch_x, np.float32)
    is_inside = np.empty(patch_x, np.bool_)
    # of one point; the vote is made for eight voxels, of which the last four have no weight
    around, weights = np.empty(8, np.int16), np.zeros(8, np.float32)
    for line in range(patch_y):
        positions_along(terms[0, 0, line], terms[0, 1], shape[0], start[0], low_y, up_y, down_y)
        positions_along(terms[1, 0, line], terms[1, 1], shape[1], start[1], low_x, up_x, down_x)
        for k in range(patch_x):
            is_inside[k] = (low_y[k] >= 0) & (low_y[k] + 1 < size_y) & (low_x[k] >= 0) & (low_x[k] + 1 < size_x)
            places[k] = np.uint64(low_y[k] * size_x + low_x[k] if is_inside[k] else 0)
        for channel in range(image.shape[0]):
            values = flat_image[channel]
            for k in range(patch_x):
                left, top = ONE - up_x[k], ONE - up_y[k]  # weights, as grid_sample computes them
                if is_inside[k]:
                    at = places[k]
                    value = values[at] * (top * left)
                    value = added_product(value, values[at + right], top * up_x[k])
                    value = added_product(value, values[at + down], up_y[k] * left)
                    out_image[channel, line, k] = added_product(value, values[at + down + right], up_y[k] * up_x[k])
                    continue
                value = ZERO
                for corner in range(4):
                    y, x = low_y[k] + corner // 2, low_x[k] + corner % 2
                    if 0 <= y < size_y and 0 <= x < size_x:
                        weight = (up_y[k] if corner // 2 else top) * (up_x[k] if corner % 2 else left)
                        value = added_product(value, image[channel, y, x], weight)
                out_image[channel, line, k] = value
        for channel in range(labels.shape[0]):
            numbers = flat_labels[channel]
            for k in range(patch_x):
                if is_inside[k]:
                    at = places[k]
                    label = numbers[at]
                    if (numbers[at + right] == label) & (numbers[at + down] == label) & (numbers[at + down + right] == label):
                        out_labels[channel, line, k] = label
                        continue
                for corner in range(4):
                    y, x = low_y[k] + corner // 2, low_x[k] + corner % 2
                    around[corner] = labels[channel, y, x] if 0 <= y < size_y and 0 <= x < size_x else outside
                    weights[corner] = (up_x[k] if corner % 2 else down_x[k]) * (up_y[k] if corner // 2 else down_y[k])
                    around[4 + corner] = around[0]
                nearest = 2 * is_above(low_y[k] + start[0], up_y[k]) + is_above(low_x[k] + start[1], up_x[k])
                out_labels[channel, line, k] = elected(around, weights, around[nearest], outside, reaches_outside)
