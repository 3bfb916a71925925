"""The pass of :mod:`label_resampling` over a volume as machine code: several times faster, the same labels.

Needs numba; :mod:`label_resampling` imports this module on use and does without where that fails. It is compiled once per machine, which takes
some seconds, and kept on disk.
"""

import numpy as np
from numba import njit

MIXED = 2**16  # no int16


@njit("int16(int16[::1], float64[::1], int64, int16)", cache=True, nogil=True)
def elected(labels, scores, different, nearest):
    """The label with the highest score among so many; a tie goes to the nearest label, if it takes part, else to the smallest."""
    winner, best = labels[0], scores[0]
    is_nearest = winner == nearest
    for index in range(1, different):
        label, score = labels[index], scores[index]
        if score > best:
            winner, best, is_nearest = label, score, label == nearest
        elif score == best:
            is_nearest |= label == nearest
            winner = min(winner, label)
    return nearest if is_nearest else winner


@njit("void(int16[:,:,::1], int64[:,::1], float64[:,::1], int64[::1], int16[:,:,::1])", cache=True, nogil=True)
def resize(labels, taps, weights, interpolated, out):
    """Fills a resized label map.

    Args:
        labels: ``(X, Y, Z)``.
        taps: For each axis three rows ``(9, at least the largest size of out)``: lower neighbour, upper neighbour, nearest voxel.
        weights: For each axis two rows ``(6, ...)``: those of lower and upper neighbour.
        interpolated: For each axis 1, or 0 if it keeps its size; then the lower neighbour alone counts.
        out: ``(X', Y', Z')``, written.
    """
    around, scores = np.empty(8, np.int16), np.empty(8, np.float64)  # the labels around a point, each once, and their sums of weights
    size_x, size_y, size_z = out.shape
    column = np.empty(labels.shape[2], np.int32)  # label of the two or four lines around a row of points, or MIXED
    for x in range(size_x):
        for y in range(size_y):
            for z in range(labels.shape[2]):
                label = labels[taps[0, x], taps[3, y], z]
                agree = True
                if interpolated[0]:
                    agree &= labels[taps[1, x], taps[3, y], z] == label
                if interpolated[1]:
                    agree &= labels[taps[0, x], taps[4, y], z] == label
                    if interpolated[0]:
                        agree &= labels[taps[1, x], taps[4, y], z] == label
                column[z] = label if agree else MIXED
            for z in range(size_z):
                label = column[taps[6, z]]
                if label != MIXED and (not interpolated[2] or column[taps[7, z]] == label):
                    out[x, y, z] = label
                    continue
                different = 0
                # neighbours, products and sums in scipy's order: exact equality decides ties
                for i in range(1 + interpolated[0]):
                    for j in range(1 + interpolated[1]):
                        so_far = weights[i, x] * weights[2 + j, y]
                        for k in range(1 + interpolated[2]):
                            neighbour, weight = labels[taps[i, x], taps[3 + j, y], taps[6 + k, z]], so_far * weights[4 + k, z]
                            known = 0
                            while known < different and around[known] != neighbour:
                                known += 1
                            if known == different:
                                around[known] = neighbour
                                scores[known] = 0.0
                                different += 1
                            scores[known] += weight
                out[x, y, z] = elected(around, scores, different, labels[taps[2, x], taps[5, y], taps[8, z]])
