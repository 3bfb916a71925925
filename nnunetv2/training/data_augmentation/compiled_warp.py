"""The pass of :mod:`affine_warp` over a patch as machine code: several times faster, the same results bit by bit.

Needs numba; :mod:`affine_warp` imports this module on use and does without where that fails. What is here is written for numba's compiler: loops
over scalars, float32 throughout, sums in the order in which ``grid_sample`` adds. It is compiled once per machine, which takes some seconds, and
kept on disk. Functions that call each other are in one file, because a change of another file would not be noticed.
"""

import math

import numpy as np
from numba import njit

ONE, HALF, ZERO = np.float32(1), np.float32(0.5), np.float32(0)
SCORE = np.float32(1000)  # affine_warp.SCORE


@njit("float32(float32)", cache=True, nogil=True)
def rounded_to_half(value):
    """A positive number with the eleven significant bits of float16, halves to even."""
    _, exponent = math.frexp(value)
    quantum = math.ldexp(1.0, exponent - 11)
    return np.float32(np.rint(value / quantum) * quantum)


@njit("int64(int64, float32)", cache=True, nogil=True)
def is_above(low, up):
    """Whether the voxel above is the nearest of a point with that weight; of two it is the even one."""
    return (up > HALF) | ((up == HALF) & (low % 2 == 1))


@njit("int16(int16[::1], float32[::1], int16, int64, boolean)", cache=True, nogil=True)
def elected(neighbours, weights, nearest, outside, reaches_outside):
    """The label with the highest sum of weights among the voxels around a point; see ``affine_warp._elected``."""
    left = ZERO
    if reaches_outside:
        for corner in range(8):
            if neighbours[corner] != outside:
                left -= weights[corner] * SCORE
        left = rounded_to_half(left + SCORE)
    winner, best, nearest_score = neighbours[0], np.float32(-1), ZERO
    for corner in range(8):
        label = neighbours[corner]
        is_new = True
        for earlier in range(corner):
            is_new &= neighbours[earlier] != label
        if not is_new:
            continue
        score = ZERO
        if reaches_outside and label == outside:
            score = left
        else:
            for other in range(corner, 8):
                if neighbours[other] == label:
                    score += weights[other] * SCORE
            score = rounded_to_half(score)
        if label == nearest:
            nearest_score = score
        if score > best or (score == best and label < winner):
            winner, best = label, score
    return nearest if nearest_score == best else winner


@njit("void(float32, float32[::1], int64, int64, int32[::1], float32[::1], float32[::1])", cache=True, nogil=True, error_model="numpy")
def positions_along(offset, terms, voxels, first, low, up, down):
    """Positions of a row of points along one axis of the volume.

    Args:
        offset: What all points of the row have in common.
        terms: What each adds.
        voxels: Of the volume along the axis.
        first: First voxel that is there.
        low: The voxel below each point, counted from ``first``, written.
        up: Weight of the voxel above, written.
        down: Weight of the voxel below, written.
    """
    half, whole, begin = np.float32(voxels / 2), np.float32(voxels), np.int32(first)
    for k in range(low.size):
        position = (((offset + terms[k]) / half + ONE) * whole - ONE) * HALF
        floor = np.floor(position)
        low[k] = np.int32(floor) - begin
        up[k] = position - floor
        down[k] = (floor + ONE) - position


@njit(
    "void(float32[:,:,:,::1], int16[:,:,:,::1], int64[::1], int64[::1], float32[:,:,::1], float32[:,:,:,::1], int16[:,:,:,::1], int64, boolean)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def warp_rows(image, labels, start, shape, terms, out_image, out_labels, outside, reaches_outside):
    """Fills image and labels of a patch.

    Args:
        image: The part of a volume in which points lie, ``(C, Z, Y, X)``; C may be 0.
        labels: The same part, ``(K, Z, Y, X)``; K may be 0.
        start: First voxel of the part.
        shape: Voxels of the volume. Where the part ends before the volume, there must be no points.
        terms: What each voxel of a patch axis adds to a coordinate, ``(coordinate, patch axis, at least the longest patch axis)``.
        out_image: ``(C, *patch)``, written.
        out_labels: ``(K, *patch)``, written.
        outside: Label beyond the border.
        reaches_outside: Whether a point may lie there.
    """
    channels, size_z, size_y, size_x = image.shape
    _, patch_z, patch_y, patch_x = out_image.shape
    flat_image = image.reshape(channels, size_z * size_y * size_x)
    flat_labels = labels.reshape(labels.shape[0], size_z * size_y * size_x)
    right, down, back = np.uint64(1), np.uint64(size_x), np.uint64(size_y * size_x)  # unsigned: never counted from the end
    # of one row of points
    low_z, low_y, low_x = np.empty(patch_x, np.int32), np.empty(patch_x, np.int32), np.empty(patch_x, np.int32)
    up_z, up_y, up_x = np.empty(patch_x, np.float32), np.empty(patch_x, np.float32), np.empty(patch_x, np.float32)
    down_z, down_y, down_x = np.empty(patch_x, np.float32), np.empty(patch_x, np.float32), np.empty(patch_x, np.float32)
    # of one point
    around, weights = np.empty(8, np.int16), np.empty(8, np.float32)
    for plane in range(patch_z):
        for line in range(patch_y):
            positions_along(terms[0, 0, plane] + terms[0, 1, line], terms[0, 2], shape[0], start[0], low_z, up_z, down_z)
            positions_along(terms[1, 0, plane] + terms[1, 1, line], terms[1, 2], shape[1], start[1], low_y, up_y, down_y)
            positions_along(terms[2, 0, plane] + terms[2, 1, line], terms[2, 2], shape[2], start[2], low_x, up_x, down_x)
            for k in range(patch_x):
                z, y, x = low_z[k], low_y[k], low_x[k]
                is_inside = (z >= 0) & (z + 1 < size_z) & (y >= 0) & (y + 1 < size_y) & (x >= 0) & (x + 1 < size_x)
                near_near, near_far = down_x[k] * down_y[k], up_x[k] * down_y[k]
                far_near, far_far = down_x[k] * up_y[k], up_x[k] * up_y[k]
                agree = False
                if is_inside:
                    at = np.uint64((z * size_y + y) * size_x + x)
                    for channel in range(channels):
                        values = flat_image[channel]
                        value = values[at] * (near_near * down_z[k])
                        value += values[at + right] * (near_far * down_z[k])
                        value += values[at + down] * (far_near * down_z[k])
                        value += values[at + down + right] * (far_far * down_z[k])
                        value += values[at + back] * (near_near * up_z[k])
                        value += values[at + back + right] * (near_far * up_z[k])
                        value += values[at + back + down] * (far_near * up_z[k])
                        value += values[at + back + down + right] * (far_far * up_z[k])
                        out_image[channel, plane, line, k] = value
                    agree = True
                    for channel in range(labels.shape[0]):
                        numbers = flat_labels[channel]
                        label = numbers[at]
                        same = (numbers[at + right] == label) & (numbers[at + down] == label) & (numbers[at + down + right] == label)
                        same &= (numbers[at + back] == label) & (numbers[at + back + right] == label)
                        same &= (numbers[at + back + down] == label) & (numbers[at + back + down + right] == label)
                        out_labels[channel, plane, line, k] = label
                        agree &= same
                    if agree:
                        continue
                # A point at the border or between labels.
                weights[0], weights[1] = near_near * down_z[k], near_far * down_z[k]
                weights[2], weights[3] = far_near * down_z[k], far_far * down_z[k]
                weights[4], weights[5] = near_near * up_z[k], near_far * up_z[k]
                weights[6], weights[7] = far_near * up_z[k], far_far * up_z[k]
                if not is_inside:
                    for channel in range(channels):
                        value = ZERO
                        for corner in range(8):
                            voxel_z, voxel_y, voxel_x = z + corner // 4, y + corner // 2 % 2, x + corner % 2
                            if 0 <= voxel_z < size_z and 0 <= voxel_y < size_y and 0 <= voxel_x < size_x:
                                value += image[channel, voxel_z, voxel_y, voxel_x] * weights[corner]
                        out_image[channel, plane, line, k] = value
                nearest = 4 * is_above(z + start[0], up_z[k]) + 2 * is_above(y + start[1], up_y[k]) + is_above(x + start[2], up_x[k])
                for channel in range(labels.shape[0]):
                    for corner in range(8):
                        voxel_z, voxel_y, voxel_x = z + corner // 4, y + corner // 2 % 2, x + corner % 2
                        around[corner] = outside
                        if 0 <= voxel_z < size_z and 0 <= voxel_y < size_y and 0 <= voxel_x < size_x:
                            around[corner] = labels[channel, voxel_z, voxel_y, voxel_x]
                    out_labels[channel, plane, line, k] = elected(around, weights, around[nearest], outside, reaches_outside)


# --- for images of two axes, and for those whose planes are their channels (dummy 2D)


@njit("float32(float32, float32, float32)", cache=True, nogil=True)
def added_product(value, factor, other):
    """``value + factor * other``, rounded once, as grid_sample computes for two axes."""
    return np.float32(np.float64(factor) * np.float64(other) + np.float64(value))


@njit("void(float32, float32[::1], int64, int64, int32[::1], float32[::1], float32[::1])", cache=True, nogil=True, error_model="numpy")
def positions_along_2d(offset, terms, voxels, first, low, up, down):
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
def warp_rows_2d(image, labels, start, shape, terms, out_image, out_labels, outside, reaches_outside):
    """Fills image and labels of a patch; the arguments are those of :func:`warp_rows` without the first axis."""
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
        positions_along_2d(terms[0, 0, line], terms[0, 1], shape[0], start[0], low_y, up_y, down_y)
        positions_along_2d(terms[1, 0, line], terms[1, 1], shape[1], start[1], low_x, up_x, down_x)
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
