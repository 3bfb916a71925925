"""The pass of :mod:`affine_warp` over a patch as machine code: several times faster, the same results bit by bit.

Needs numba; :mod:`affine_warp` imports this module on use and does without where that fails. What is here is written for numba's compiler: loops
over scalars, float32 throughout, sums in the order in which ``grid_sample`` adds. It is compiled once per machine, which takes some seconds, and
kept on disk.
"""

import numpy as np
from numba import njit

from nnunetv2.training.data_augmentation.compiled_vote import HALF, ONE, ZERO, elected, is_above


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
