"""The pass of :mod:`affine_warp` over a patch as machine code: several times faster, the same results bit by bit.

Needs numba; :mod:`affine_warp` imports this module on use and does without where that fails. What is here is written for numba's compiler: loops
over scalars, float32 throughout, sums in the order in which ``grid_sample`` adds. It is compiled once per machine, which takes some seconds, and
kept on disk.
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


@njit(
    "void(float32[:,:,:,::1], int16[:,:,:,::1], int64[::1], int64[::1], float32[:,:,::1], float32[:,:,:,::1], int16[:,:,:,::1], int64, boolean)",
    cache=True,
    nogil=True,
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
    half_z, half_y, half_x = np.float32(shape[0] / 2), np.float32(shape[1] / 2), np.float32(shape[2] / 2)
    voxels_z, voxels_y, voxels_x = np.float32(shape[0]), np.float32(shape[1]), np.float32(shape[2])
    first_z, first_y, first_x = np.int32(start[0]), np.int32(start[1]), np.int32(start[2])
    flat_image = image.reshape(channels, size_z * size_y * size_x)
    flat_labels = labels.reshape(labels.shape[0], size_z * size_y * size_x)
    down, back = size_x, size_y * size_x
    steps = np.array((0, 1, down, down + 1, back, back + 1, back + down, back + down + 1), np.int32)
    # of one row of points
    first = np.empty(patch_x, np.int32)  # the voxel at the lowest corner
    corner_z, corner_y, corner_x = np.empty(patch_x, np.int32), np.empty(patch_x, np.int32), np.empty(patch_x, np.int32)
    is_inside = np.empty(patch_x, np.bool_)
    nearest = np.empty(patch_x, np.uint8)  # which corner
    weights = np.empty((8, patch_x), np.float32)
    # of one point
    around, weight = np.empty(8, np.int16), np.empty(8, np.float32)
    for row in range(patch_z * patch_y):
        plane, line = row // patch_y, row % patch_y
        start_z = terms[0, 0, plane] + terms[0, 1, line]
        start_y = terms[1, 0, plane] + terms[1, 1, line]
        start_x = terms[2, 0, plane] + terms[2, 1, line]
        are_inside = True
        for k in range(patch_x):
            along_z = (start_z + terms[0, 2, k]) / half_z + ONE
            along_y = (start_y + terms[1, 2, k]) / half_y + ONE
            along_x = (start_x + terms[2, 2, k]) / half_x + ONE
            position_z = (along_z * voxels_z - ONE) * HALF
            position_y = (along_y * voxels_y - ONE) * HALF
            position_x = (along_x * voxels_x - ONE) * HALF
            floor_z, floor_y, floor_x = np.floor(position_z), np.floor(position_y), np.floor(position_x)
            up_z, up_y, up_x = position_z - floor_z, position_y - floor_y, position_x - floor_x
            low_z, low_y, low_x = (floor_z + ONE) - position_z, (floor_y + ONE) - position_y, (floor_x + ONE) - position_x
            z, y, x = np.int32(floor_z) - first_z, np.int32(floor_y) - first_y, np.int32(floor_x) - first_x
            corner_z[k], corner_y[k], corner_x[k] = z, y, x
            first[k] = (z * size_y + y) * size_x + x
            inside = (z >= 0) & (z + 1 < size_z) & (y >= 0) & (y + 1 < size_y) & (x >= 0) & (x + 1 < size_x)
            is_inside[k] = inside
            are_inside &= inside
            nearest[k] = 4 * (np.rint(position_z) > floor_z) + 2 * (np.rint(position_y) > floor_y) + (np.rint(position_x) > floor_x)
            weights[0, k], weights[1, k] = low_x * low_y * low_z, up_x * low_y * low_z
            weights[2, k], weights[3, k] = low_x * up_y * low_z, up_x * up_y * low_z
            weights[4, k], weights[5, k] = low_x * low_y * up_z, up_x * low_y * up_z
            weights[6, k], weights[7, k] = low_x * up_y * up_z, up_x * up_y * up_z
        for channel in range(channels):
            values = flat_image[channel]
            target = out_image[channel, plane, line]
            if are_inside:
                for k in range(patch_x):
                    at = first[k]
                    value = values[at] * weights[0, k]
                    value += values[at + 1] * weights[1, k]
                    value += values[at + down] * weights[2, k]
                    value += values[at + down + 1] * weights[3, k]
                    value += values[at + back] * weights[4, k]
                    value += values[at + back + 1] * weights[5, k]
                    value += values[at + back + down] * weights[6, k]
                    value += values[at + back + down + 1] * weights[7, k]
                    target[k] = value
            else:
                for k in range(patch_x):
                    value = ZERO
                    for corner in range(8):
                        z, y, x = corner_z[k] + corner // 4, corner_y[k] + corner // 2 % 2, corner_x[k] + corner % 2
                        if 0 <= z < size_z and 0 <= y < size_y and 0 <= x < size_x:
                            value += values[first[k] + steps[corner]] * weights[corner, k]
                    target[k] = value
        for channel in range(labels.shape[0]):
            numbers = flat_labels[channel]
            chosen = out_labels[channel, plane, line]
            for k in range(patch_x):
                at = first[k]
                if is_inside[k]:
                    label = numbers[at]
                    agree = (numbers[at + 1] == label) & (numbers[at + down] == label) & (numbers[at + down + 1] == label)
                    agree &= (numbers[at + back] == label) & (numbers[at + back + 1] == label)
                    agree &= (numbers[at + back + down] == label) & (numbers[at + back + down + 1] == label)
                    if agree:
                        chosen[k] = label
                        continue
                for corner in range(8):
                    z, y, x = corner_z[k] + corner // 4, corner_y[k] + corner // 2 % 2, corner_x[k] + corner % 2
                    around[corner] = outside
                    if 0 <= z < size_z and 0 <= y < size_y and 0 <= x < size_x:
                        around[corner] = numbers[at + steps[corner]]
                    weight[corner] = weights[corner, k]
                chosen[k] = elected(around, weight, around[nearest[k]], outside, reaches_outside)
