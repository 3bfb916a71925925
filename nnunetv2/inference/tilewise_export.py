"""Rows of labels by machine code (:mod:`compiled_export`), which may look at smaller parts than pay off with numpy (:mod:`blockwise_export`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nnunetv2.preprocessing.resampling.blockwise_resampling import AxisBlock, BlockwiseResampling
from nnunetv2.utilities.machine_code import machine_code
from nnunetv2.utilities.threads import each_on_threads

# Voxels of a tile by axis. Few along the first two, so that few channels can win; more along the last, over which vector instructions go.
TILE = (16, 16, 48)
KEPT, NEAREST, LINEAR = 0, 1, 2  # as in compiled_export


class TilewiseLabels:
    """Fills rows of labels with the index of the largest channel, of equal ones the first.

    Args:
        resampling: From the network's grid to the image's.
        find_ranges: ``compiled_export.ranges``.
        fill_block: ``compiled_export.fill_block``.
    """

    def __init__(self, resampling: BlockwiseResampling, find_ranges: Callable[..., bool], fill_block: Callable[..., None]) -> None:
        self._axes = [[_Axis.of(block, tile) for block in blocks] for blocks, tile in zip(resampling.blocks, TILE, strict=True)]
        self._find_ranges = find_ranges
        self._fill_block = fill_block
        self._how = np.array([blocks[0].how for blocks in self._axes], dtype=np.int64)
        self._order = np.array(sorted(resampling.axes, key=lambda axis: self._how[axis] == KEPT), dtype=np.int64)

    def fill_row(self, row: int, logits: np.ndarray, out: np.ndarray, threads: int) -> bool:
        """What :meth:`BlockwiseLabels.add_row` does.

        Args:
            row: See there.
            logits: See there.
            out: The whole label map, of which the row is filled.
            threads: That share the row.
        """
        first, seconds, thirds = self._axes[0][row], *self._axes[1:]
        in_row = [np.concatenate([axis.tiles + np.uint64(axis.block.inputs.start) for axis in axes]) for axes in (seconds, thirds)]
        low, high = (np.empty((len(logits), *map(len, (first.tiles, *in_row))), dtype=np.float32) for _ in range(2))

        def find_ranges(channel: int) -> bool:
            values = _flat(logits[channel].astype(np.float32, copy=False))
            return self._find_ranges(*values, first.tiles, *in_row, low[channel], high[channel])

        def fill(block: tuple[_Axis, slice, _Axis, slice]) -> None:
            second, second_tiles, third, third_tiles = block
            box = (slice(None), slice(None), second_tiles, third_tiles)
            target = out[first.block.outputs, second.block.outputs, third.block.outputs]
            self._fill((first, second, third), logits, low[box], high[box], target)

        if not all(each_on_threads(find_ranges, range(len(logits)), threads)):
            return False
        each_on_threads(fill, [(*second, *third) for second in _with_tiles(seconds) for third in _with_tiles(thirds)], threads)
        return True

    def _fill(self, block: Sequence[_Axis], logits: np.ndarray, low: np.ndarray, high: np.ndarray, target: np.ndarray) -> None:
        """One block, from ranges ``(channels, tiles of axis 0, of axis 1, of axis 2)``."""
        channels = np.flatnonzero((high >= low.max(axis=0)).any(axis=(1, 2, 3)))
        if len(channels) == 1:
            target[...] = channels[0]
            return
        begin = np.array([0, *(axis.block.inputs.start for axis in block[1:])], dtype=np.uint64)
        is_half = logits.dtype == np.float16
        if is_half:
            box = tuple(axis.block.inputs for axis in block[1:])
            logits = np.stack([logits[(channel, slice(None), *box)] for channel in channels]).astype(np.float32)
            low, high, begin = low[channels], high[channels], np.zeros_like(begin)
        taps, weights = np.zeros((3, 2, max(target.shape)), dtype=np.uint64), np.zeros((3, 2, max(target.shape)))
        for index, axis in enumerate(block):
            taps[index, :, : axis.taps.shape[1]], weights[index, :, : axis.taps.shape[1]] = axis.taps, axis.weights
        ranges = (np.ascontiguousarray(np.moveaxis(values, 0, -1)) for values in (low, high))
        labels = np.empty(target.shape, dtype=np.uint16)
        places = np.array(TILE, dtype=np.uint64), self._order, self._how, taps, weights
        self._fill_block(*_flat(logits), begin, *places, *ranges, is_half, *_scratch(block, len(low)), labels)
        target[...] = channels.astype(target.dtype)[labels] if is_half else labels


def compiled_labels(resampling: BlockwiseResampling) -> TilewiseLabels | None:
    """None where numba cannot make the machine code."""
    kernels = [machine_code("nnunetv2.inference.compiled_export", name) for name in ("ranges", "fill_block")]
    return None if None in kernels else TilewiseLabels(resampling, *kernels)


@dataclass(frozen=True)
class _Axis:
    """An :class:`AxisBlock` as machine code reads it."""

    block: AxisBlock
    how: int  # KEPT, NEAREST or LINEAR
    taps: np.ndarray  # lower and upper neighbour, (2, outputs), counted from the first input of the block
    weights: np.ndarray  # of the two
    tiles: np.ndarray  # what each tile reads, (tiles, 2): its first input and the one behind its last, counted in the same way

    @classmethod
    def of(cls, block: AxisBlock, tile: int) -> _Axis:
        """With tiles of so many outputs."""
        number = block.outputs.stop - block.outputs.start
        lower = np.arange(number) if block.lower is None else block.lower
        upper = lower if block.upper is None else block.upper
        weights = (np.ones(number), np.zeros(number)) if block.weights is None else block.weights
        starts = np.arange(0, number, tile)
        last = np.minimum(starts + tile, number) - 1
        tiles = np.stack([lower[starts], upper[last] + 1], axis=1).astype(np.uint64)  # neighbours never go down from one output to the next
        how = KEPT if block.lower is None else NEAREST if block.upper is None else LINEAR
        return cls(block, how, np.stack([lower, upper]).astype(np.uint64), np.stack(weights), tiles)


def _with_tiles(axes: Sequence[_Axis]) -> Iterator[tuple[_Axis, slice]]:
    """Every block of an axis, and where its tiles are among those of all blocks."""
    start = 0
    for axis in axes:
        yield axis, slice(start, start + len(axis.tiles))
        start += len(axis.tiles)


def _scratch(block: Sequence[_Axis], channels: int) -> tuple[np.ndarray, ...]:
    """What ``fill_block`` writes on the way."""
    voxels = math.prod(TILE)
    largest = math.prod(max(size, int(np.ptp(axis.tiles, axis=1).max())) for size, axis in zip(TILE, block, strict=True))
    return (
        np.empty((4, largest)),
        np.empty((5, 3), dtype=np.uint64),
        np.empty(voxels, dtype=np.float32),
        np.empty(voxels, dtype=np.int32),
        np.empty(channels + 1, dtype=np.int32),
    )


def _flat(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All memory from the first value to the last, and how far two neighbours along each axis but the last, where it is one, are apart."""
    size = values.itemsize
    if values.strides[-1] != size or any(stride < 0 or stride % size for stride in values.strides):
        values = np.ascontiguousarray(values)
    steps = [stride // size for stride in values.strides]
    length = 1 + sum((number - 1) * step for number, step in zip(values.shape, steps, strict=True))
    return as_strided(values, (length,), (size,)), np.array(steps[:-1], dtype=np.uint64)
