"""The two passes of :mod:`blockwise_export` over logits as machine code: several times faster, the same labels voxel by voxel.

Needs numba; :mod:`blockwise_export` imports this module on use and does without where that fails. What is here is written for numba's compiler:
loops over scalars, flat arrays, no slices, and unsigned positions, because others might count from the end and then loops do not become vector
instructions. It is compiled once per machine, which takes some seconds, and kept on disk.

A tile is a part of a block: what is computed of it stays in the first caches of a core, and few channels can win in it.
"""

import numpy as np
from numba import boolean, float32, float64, int32, int64, njit, uint16, uint64, void
from numba.types import Array

NEAREST, LINEAR = 1, 2  # how an axis is resized; 0: not at all
NOTHING, ONE, TWO, FOUR = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(4)
ZERO = np.float32(0)
# Bits of float64
EXPONENT = np.int64(0x7FF << 52)
SMALLEST_OF_HALF = np.int64((1023 - 14) << 52)  # exponent of 2**-14, the smallest normal number of float16
UP_TO_HALF = np.int64(42 << 52)  # makes 2**n 2**(n + 42)
LARGEST_DIGIT = np.int64(1 << 51)  # makes it half as much again
# Also arrays that must not be written.
FLAT, NUMBERS, TILES, BY_TILE = Array(float32, 1, "C", readonly=True), uint64[::1], uint64[:, ::1], float32[:, :, ::1]


@njit(boolean(FLAT, NUMBERS, TILES, TILES, TILES, BY_TILE, BY_TILE), cache=True, nogil=True)
def ranges(values, steps, tiles_x, tiles_y, tiles_z, low, high):
    """Smallest and largest value that each tile of a channel reads.

    Args:
        values: Flat.
        steps: Between two voxels of the first axis and of the second; those of the last are neighbours.
        tiles_x: What the tiles read along each axis: first voxel, one behind the last.
        tiles_y: The same.
        tiles_z: The same.
        low: ``(tiles of axis 0, of axis 1, of axis 2)``, written.
        high: The same.

    Returns:
        Whether all are finite.
    """
    end, step_x, step_y = tiles_z[len(tiles_z) - 1, 1], steps[0], steps[1]
    most_rows = ONE
    for j in range(len(tiles_y)):
        most_rows = max(most_rows, tiles_y[j, 1] - tiles_y[j, 0])
    # of all rows of a tile over its planes
    lows, highs, sums = np.empty(most_rows * end, np.float32), np.empty(most_rows * end, np.float32), np.empty(most_rows * end, np.float32)
    is_finite = True
    for i in range(len(tiles_x)):
        for j in range(len(tiles_y)):
            rows, size = tiles_y[j, 1] - tiles_y[j, 0], end
            for z in range(rows * size):
                lows[z], highs[z], sums[z] = np.inf, -np.inf, 0
            if step_y == end:  # a plane's rows are one
                rows, size = ONE, rows * size
            last = (tiles_x[i, 1] - ONE) * step_x
            for x in range(tiles_x[i, 0], tiles_x[i, 1], FOUR):
                for y in range(rows):
                    row, at = y * size, (tiles_y[j, 0] + y) * step_y
                    # Four planes at a time, because that saves reading and writing what is known so far; the last may come twice.
                    at_0, at_1 = at + x * step_x, at + min((x + ONE) * step_x, last)
                    at_2, at_3 = at + min((x + TWO) * step_x, last), at + min((x + TWO + ONE) * step_x, last)
                    for z in range(size):
                        a, b, c, d = values[at_0 + z], values[at_1 + z], values[at_2 + z], values[at_3 + z]
                        lows[row + z] = min(min(min(a, b), min(c, d)), lows[row + z])
                        highs[row + z] = max(max(max(a, b), max(c, d)), highs[row + z])
                        sums[row + z] += ((a - a) + (b - b)) + ((c - c) + (d - d))  # 0, or NaN for what is not finite
            for y in range(ONE, tiles_y[j, 1] - tiles_y[j, 0]):
                row = y * end
                for z in range(end):
                    lows[z], highs[z] = min(lows[z], lows[row + z]), max(highs[z], highs[row + z])
                    sums[z] += sums[row + z]
            for k in range(len(tiles_z)):
                lowest, highest, total = lows[tiles_z[k, 0]], highs[tiles_z[k, 0]], ZERO
                for z in range(tiles_z[k, 0], tiles_z[k, 1]):
                    lowest, highest = min(lowest, lows[z]), max(highest, highs[z])
                    total += sums[z]
                low[i, j, k], high[i, j, k] = lowest, highest
                is_finite &= total == ZERO
    return is_finite


@njit(void(FLAT, uint64, uint64, uint64, uint64[::1], float64[::1]), cache=True, nogil=True)
def load(values, begin, step_x, step_y, size, out):
    """Copies a part of a channel ``(x, y, z)``; the arguments are as below."""
    at, size_z = NOTHING, size[2]
    for x in range(size[0]):
        for y in range(size[1]):
            row = begin + x * step_x + y * step_y
            for z in range(size_z):
                out[at + z] = values[row + z]
            at += size_z


@njit(
    void(
        float64[::1], uint64[::1], int64, int64, uint64[:, ::1], float64[:, ::1], uint64, uint64, uint64, uint64, uint64[::1], float64[::1]
    ),
    cache=True,
    nogil=True,
)
def resize(source, size, axis, how, taps, weights, first, start, x_begin, planes, new_size, out):
    """Resizes one axis of some planes of a tile.

    Args:
        source: Flat, C-contiguous.
        size: Of the source by axis.
        axis: Which is resized.
        how: ``NEAREST``, ``LINEAR`` or 0.
        taps: Lower and upper neighbour of the outputs of a block ``(2, outputs)``.
        weights: Of the two.
        first: What the source begins with, counted as ``taps`` are.
        start: First output of the tile.
        x_begin: First plane to write, counted in the tile.
        planes: To write.
        new_size: By axis.
        out: Flat, written from its beginning with ``(planes, new size of axis 1, of axis 2)``.
    """
    at, step_x, step_y = NOTHING, size[1] * size[2], size[2]
    size_y, size_z = new_size[1], new_size[2]
    if axis == 0:  # planes are resized as one row
        size_y, size_z = ONE, step_x
    for x in range(x_begin, x_begin + planes):
        for y in range(size_y):
            low = up = x * step_x + y * step_y
            output = start
            if axis == 0:
                output += x
                low, up = (taps[0, output] - first) * step_x, (taps[1, output] - first) * step_x
            elif axis == 1:
                output += y
                low, up = x * step_x + (taps[0, output] - first) * step_y, x * step_x + (taps[1, output] - first) * step_y
            if axis == 2 and how == LINEAR:
                low -= first
                for z in range(size_z):
                    tap = start + z
                    out[at + z] = source[low + taps[0, tap]] * weights[0, tap] + source[low + taps[1, tap]] * weights[1, tap]
            elif axis == 2 and how == NEAREST:
                low -= first
                for z in range(size_z):
                    out[at + z] = source[low + taps[0, start + z]]
            elif how == LINEAR:
                low_weight, up_weight = weights[0, output], weights[1, output]
                for z in range(size_z):
                    out[at + z] = source[low + z] * low_weight + source[up + z] * up_weight
            else:
                for z in range(size_z):
                    out[at + z] = source[low + z]
            at += size_z


@njit(void(float64[::1], uint64), cache=True, nogil=True)
def round_to_half(values, size):
    """The nearest numbers of float16, halves to even; of numbers that do not exceed its range."""
    bits, numbers = values.view(np.int64), np.empty(size, np.int64)
    large = numbers.view(np.float64)
    for k in range(size):
        # so large that float64 has no more digits below than float16 has of the value
        numbers[k] = (max(bits[k] & EXPONENT, SMALLEST_OF_HALF) + UP_TO_HALF) | LARGEST_DIGIT
        values[k] = (values[k] + large[k]) - large[k]


@njit(void(float64[::1], uint64, uint64, int32, float32[::1], int32[::1]), cache=True, nogil=True)
def compete(values, size, offset, channel, best, labels):
    """Notes where the values of a channel are larger than the best so far, which are those from ``offset``."""
    for k in range(size):
        value = np.float32(values[k])
        is_larger = value > best[offset + k]
        best[offset + k] = value if is_larger else best[offset + k]
        labels[offset + k] = channel if is_larger else labels[offset + k]


@njit(void(float32[:, :, :, ::1], float32[:, :, :, ::1], int64, int64, int64, int32[::1]), cache=True, nogil=True)
def find_candidates(low, high, i, j, k, found):
    """Channels that can win in a tile: their number, and then they themselves."""
    threshold = low[i, j, k, 0]
    for channel in range(low.shape[3]):
        threshold = max(low[i, j, k, channel], threshold)
    number = 0
    for channel in range(low.shape[3]):
        if high[i, j, k, channel] >= threshold:
            number += 1
            found[number] = channel
    found[0] = number


@njit(
    void(
        *(FLAT, NUMBERS, NUMBERS, NUMBERS, int64[::1], int64[::1], uint64[:, :, ::1], float64[:, :, ::1], float32[:, :, :, ::1]),
        *(float32[:, :, :, ::1], boolean, float64[:, ::1], uint64[:, ::1], float32[::1], int32[::1], int32[::1], uint16[:, :, ::1]),
    ),
    cache=True,
    nogil=True,
)
def fill_block(values, steps, begin, tile, axes, how, taps, weights, low, high, is_half, scratch, sizes, best, labels, candidates, out):
    """Fills a block with the index of the largest channel; of equal ones the first.

    Args:
        values: Flat.
        steps: Between two channels, two voxels of the first axis, two of the second; those of the last are neighbours.
        begin: What the block reads first, by axis.
        tile: Voxels of a tile by axis.
        axes: In the order in which they are resized, those that keep their size last.
        how: Each axis is resized: ``NEAREST``, ``LINEAR`` or 0.
        taps: By axis the lower and the upper neighbour of each output, counted from ``begin``: ``(3, 2, at least the longest axis of out)``.
        weights: Of the two.
        low: Smallest value that each tile reads, ``(tiles of axis 0, of axis 1, of axis 2, channels)``.
        high: The largest.
        is_half: Whether results are rounded like float16, otherwise like float32.
        scratch: ``(4, at least the voxels of a tile, resized along some axes or not)``.
        sizes: ``(5, 3)``.
        best: At least the voxels of a tile.
        labels: The same.
        candidates: Channels and one more.
        out: Written.
    """
    last = max(min(how[0], 1) + min(how[1], 1) + min(how[2], 1), 1) - 1  # of the passes over a channel, by axis
    for i in range(low.shape[0]):
        for j in range(low.shape[1]):
            for k in range(low.shape[2]):
                # what there is of a channel before the first pass, after the first, after the second and after the third
                start_x, start_y, start_z = np.uint64(i) * tile[0], np.uint64(j) * tile[1], np.uint64(k) * tile[2]
                first_x, first_y, first_z = taps[0, 0, start_x], taps[1, 0, start_y], taps[2, 0, start_z]
                for axis in range(3):
                    start = start_x if axis == 0 else start_y if axis == 1 else start_z
                    stop = min(start + tile[axis], np.uint64(out.shape[axis]))
                    sizes[0, axis] = taps[axis, 1, stop - ONE] + ONE - taps[axis, 0, start]
                    sizes[4, axis] = stop - start
                for done in range(3):
                    for axis in range(3):
                        sizes[done + 1, axis] = sizes[4, axis] if axis == axes[done] else sizes[done, axis]
                find_candidates(low, high, i, j, k, candidates)
                in_plane = sizes[4, 1] * sizes[4, 2]
                for at in range(sizes[4, 0] * in_plane):
                    best[at], labels[at] = -np.inf, candidates[1]
                for index in range(1, candidates[0] + 1 if candidates[0] > 1 else 1):
                    channel = candidates[index]
                    at = np.uint64(channel) * steps[0]
                    at += (begin[0] + first_x) * steps[1] + (begin[1] + first_y) * steps[2] + begin[2] + first_z
                    load(values, at, steps[1], steps[2], sizes[0], scratch[0])
                    for done in range(last + 1):
                        axis = axes[done]
                        start = start_x if axis == 0 else start_y if axis == 1 else start_z
                        first = first_x if axis == 0 else first_y if axis == 1 else first_z
                        planes = ONE if done == last else sizes[done + 1, 0]
                        for x in range(NOTHING, sizes[done + 1, 0], planes):
                            target = scratch[3 if done == last else done + 1]
                            resize(
                                scratch[done],
                                sizes[done],
                                axis,
                                how[axis],
                                taps[axis],
                                weights[axis],
                                first,
                                start,
                                x,
                                planes,
                                sizes[done + 1],
                                target,
                            )
                            if done == last:
                                if is_half:
                                    round_to_half(target, in_plane)
                                compete(target, in_plane, x * in_plane, channel, best, labels)
                at = NOTHING
                for x in range(start_x, start_x + sizes[4, 0]):
                    for y in range(start_y, start_y + sizes[4, 1]):
                        for z in range(start_z, start_z + sizes[4, 2]):
                            out[x, y, z] = labels[at]
                            at += ONE
