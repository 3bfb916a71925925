"""The vote of labels around a sample point as machine code, for :mod:`compiled_warp` and :mod:`compiled_warp_2d`."""

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
