"""From logits on the network's grid to labels and probabilities on the image's, one block of the image at a time.

Logits are interpolated first and then compared, which is more precise than the other way round, but never more of them than one block.
A channel whose logits around a block are all below the smallest of another cannot win there and is not interpolated: interpolated values
lie between their neighbours. What remains is exact, voxel by voxel the same as with all channels at once. Where there is much to do and numba
is installed, machine code does it (:mod:`tilewise_export`), otherwise numpy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from nnunetv2.inference.tilewise_export import TilewiseLabels, compiled_labels
from nnunetv2.preprocessing.resampling.blockwise_resampling import AxisBlock, BlockwiseResampling, Workspace
from nnunetv2.utilities.label_handling.label_handling import REGION_THRESHOLD, LabelManager
from nnunetv2.utilities.threads import each_on_threads

VOXELS_AT_ONCE = 1 << 16  # labels and values of so many stay in the cache of a core from one step to the next
# So few values of a row are interpolated faster than it is found out which of them need not be.
FEW_VALUES = 1 << 14
# Sigmoid, also in float32: not above 0.5 for a logit of 0, and well above it for a logit of 1.
SURELY_OUTSIDE, SURELY_INSIDE = 0.0, 1.0
# Interpolated values from which machine code is loaded: numpy takes some seconds for them and a little memory, loading half a second and 110 MB.
WORTH_COMPILING = 2**29


class BlockwiseLabels:
    """Fills a label map row by row, a row being all blocks with the same part of the first axis.

    Args:
        resampling: From the network's grid to the image's.
        label_manager: One that decides by the package's own rules.
        out: Unsigned integers of the resampling's new shape, to be filled.
        threads: That share a row; more than one only where nothing else uses the processor.
    """

    _interpolated = 0  # values of labels in this process until it is worth compiling

    def __init__(self, resampling: BlockwiseResampling, label_manager: LabelManager, out: np.ndarray, threads: int = 1) -> None:
        self._resampling = resampling
        self._label_manager = label_manager
        self._out = out
        self._threads = 1 if label_manager.has_regions else threads  # the sigmoid of regions has torch's threads
        self._workspaces: list[Workspace] = []  # that no thread uses at present
        self._compiled: TilewiseLabels | None = None

    def add_row(self, row: int, logits: np.ndarray) -> bool:
        """Fill one row.

        Args:
            row: Index into ``resampling.blocks[0]``.
            logits: The part of all logits that the row reads, ``(heads, inputs of the row, Y, Z)``, float16 or float32.

        Returns:
            Whether that was possible: not where logits are no finite numbers.
        """
        if self._has_machine_code():
            return self._compiled.fill_row(row, logits, self._out, self._threads)
        ranges = self._ranges_of_blocks(row, logits)
        if ranges is None:
            return False
        if self._has_machine_code():
            return self._compiled.fill_row(row, logits, self._out, self._threads)
        low, high = ranges
        decide = self._regions if self._label_manager.has_regions else self._largest
        first, seconds, thirds = self._resampling.blocks[0][row], *self._resampling.blocks[1:]

        def fill(place: tuple[int, int]) -> None:
            block = first, seconds[place[0]], thirds[place[1]]
            read = (slice(None), *(axis.inputs for axis in block[1:]))
            target = self._out[tuple(axis.outputs for axis in block)]
            with self._workspace() as workspace:

                def resampled(channel: int) -> np.ndarray:
                    return resampled_logits(logits[channel][read], self._resampling, block, workspace)

                decide(resampled, low[(slice(None), *place)], high[(slice(None), *place)], target)

        each_on_threads(fill, itertools.product(range(len(seconds)), range(len(thirds))), self._threads)
        return True

    def _ranges_of_blocks(self, row: int, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Smallest and largest logit that each block of a row reads, or less narrow bounds; None where logits are no finite numbers."""
        first, seconds, thirds = self._resampling.blocks[0][row], *self._resampling.blocks[1:]
        if len(logits) * (first.outputs.stop - first.outputs.start) * math.prod(self._out.shape[1:]) <= FEW_VALUES:
            if not np.isfinite(logits).all():
                return None
            low, high = (np.full((len(logits), len(seconds), len(thirds)), bound, dtype=np.float32) for bound in (-np.inf, np.inf))
            return low, high
        low, high = _ranges(logits, seconds, thirds)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        if not self._label_manager.has_regions:
            self._count(row, low, high)
        return low, high

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        """One for this thread, for a while."""
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = Workspace()
        yield workspace
        self._workspaces.append(workspace)

    def _has_machine_code(self) -> bool:
        """Whether machine code fills the rows: for the largest channel, once so much was to do that loading it pays."""
        if self._compiled is None and not self._label_manager.has_regions and BlockwiseLabels._interpolated >= WORTH_COMPILING:
            self._compiled = compiled_labels(self._resampling)
        return self._compiled is not None

    def _count(self, row: int, low: np.ndarray, high: np.ndarray) -> None:
        """Add the values of a row to those of this process; where that makes it worth compiling, also those that rows like it still to come have."""
        first, *others = self._resampling.blocks[0][row], *self._resampling.blocks[1:]
        seconds, thirds = (np.array([block.outputs.stop - block.outputs.start for block in blocks]) for blocks in others)
        candidates = (high >= low.max(axis=0)).sum(axis=0)
        per_plane = int((np.where(candidates > 1, candidates, 0) * seconds[:, None] * thirds).sum())
        planes, planes_to_do = first.outputs.stop - first.outputs.start, self._resampling.new_shape[0] - first.outputs.start
        is_worth_compiling = BlockwiseLabels._interpolated + per_plane * planes_to_do >= WORTH_COMPILING
        BlockwiseLabels._interpolated += per_plane * (planes_to_do if is_worth_compiling else planes)

    def _largest(self, resampled: Callable[[int], np.ndarray], low: np.ndarray, high: np.ndarray, target: np.ndarray) -> None:
        """Index of the largest channel; of equal ones the first."""
        candidates = np.flatnonzero(high >= low.max())
        if len(candidates) == 1:
            target[...] = candidates[0]
            return
        target[...] = index_of_largest(((index, resampled(index)) for index in candidates), target.dtype)

    def _regions(self, resampled: Callable[[int], np.ndarray], low: np.ndarray, high: np.ndarray, target: np.ndarray) -> None:
        """Regions painted one over the other, in the order that dataset.json asks for."""
        labels = np.zeros(target.shape, dtype=np.uint16)
        for index, (label, least, most) in enumerate(zip(self._label_manager.regions_class_order, low, high, strict=True)):
            if least >= SURELY_INSIDE:
                labels[...] = label
            elif most > SURELY_OUTSIDE:
                probability = self._label_manager.apply_inference_nonlin(resampled(index)[None])[0].numpy()
                labels[probability > REGION_THRESHOLD] = label
        target[...] = labels


class BlockwiseProbabilities:
    """Probabilities and the labels that follow from them, with all channels of one block in memory, or one channel of all blocks.

    Args:
        logits: ``(heads, X, Y, Z)`` float16 or float32, finite.
        resampling: From the network's grid to the image's.
        label_manager: One that decides by the package's own rules.
        labels: Unsigned integers of the resampling's new shape, to be filled.
    """

    def __init__(self, logits: np.ndarray, resampling: BlockwiseResampling, label_manager: LabelManager, labels: np.ndarray) -> None:
        self._logits = logits
        self._resampling = resampling
        self._label_manager = label_manager
        self._labels = labels
        self._workspace = Workspace()

    def fill(self, out: np.ndarray) -> None:
        """Fill ``(heads, *new shape)`` float32 and the labels."""
        for block, box in self._blocks():
            resampled = self._all_resampled(block)
            probabilities = out[(slice(None), *box)] = self._label_manager.apply_inference_nonlin(resampled).numpy()
            if self._label_manager.has_regions:
                self._labels[box] = self._label_manager.convert_probabilities_to_segmentation(probabilities)
            else:
                self._labels[box] = index_of_largest(enumerate(probabilities), self._labels.dtype)

    def channels(self) -> Iterator[np.ndarray]:
        """The same channel after channel, each ``(*new shape)`` float32 in the same memory; the labels are filled after the last.

        Every logit of labels is interpolated twice: softmax must know the sum over all channels before the first can be given away.
        """
        values = np.empty(self._labels.shape, dtype=np.float32)
        if self._label_manager.has_regions:
            self._labels[...] = 0
            for channel, label in zip(self._logits, self._label_manager.regions_class_order, strict=True):
                for block, box in self._blocks():
                    values[box] = self._label_manager.apply_inference_nonlin(self._resampled(channel, block)[None])[0].numpy()
                self._labels[values > REGION_THRESHOLD] = label
                yield values
            return
        largest, total = (np.empty(self._labels.shape, dtype=np.float32) for _ in range(2))
        for block, box in self._blocks():
            resampled = self._all_resampled(block)
            largest[box] = resampled.max(axis=0)
            resampled -= largest[box]
            total[box] = np.exp(resampled, out=resampled).sum(axis=0)
        best = np.full(self._labels.shape, -1, dtype=np.float32)
        for index, channel in enumerate(self._logits):
            for block, box in self._blocks():
                values[box] = np.exp(self._resampled(channel, block) - largest[box]) / total[box]
                np.putmask(self._labels[box], values[box] > best[box], index)
                np.maximum(best[box], values[box], out=best[box])
            yield values

    def _blocks(self) -> Iterator[tuple[tuple[AxisBlock, ...], tuple[slice, ...]]]:
        """Every block, and where it lies in the result."""
        for block in itertools.product(*self._resampling.blocks):
            yield block, tuple(axis.outputs for axis in block)

    def _all_resampled(self, block: Sequence[AxisBlock]) -> np.ndarray:
        """Every channel of a block, until the next block."""
        shape = [axis.outputs.stop - axis.outputs.start for axis in block]
        resampled = self._workspace.array("channels", (len(self._logits), *shape), np.float32)
        for target, channel in zip(resampled, self._logits, strict=True):
            target[...] = self._resampled(channel, block)
        return resampled

    def _resampled(self, channel: np.ndarray, block: Sequence[AxisBlock]) -> np.ndarray:
        """One channel of a block, until the next one."""
        return resampled_logits(channel[tuple(axis.inputs for axis in block)], self._resampling, block, self._workspace)


def fill_labels(
    logits: np.ndarray, resampling: BlockwiseResampling, label_manager: LabelManager, out: np.ndarray, threads: int = 1
) -> bool:
    """Labels of logits ``(heads, X, Y, Z)``; see :class:`BlockwiseLabels`."""
    labels = BlockwiseLabels(resampling, label_manager, out, threads)
    return all(labels.add_row(row, logits[:, block.inputs]) for row, block in enumerate(resampling.blocks[0]))


def resampled_logits(values: np.ndarray, resampling: BlockwiseResampling, block: Sequence[AxisBlock], workspace: Workspace) -> np.ndarray:
    """A channel of a block, rounded like the logits, because that makes ties; as float32, because numpy compares float16 slowly."""
    if resampling.keeps_all:
        resampled, steps = values, [np.dtype(np.float32)]
    else:
        resampled, steps = resampling.resample(values, block, workspace), dict.fromkeys((values.dtype, np.dtype(np.float32)))
    for dtype in steps:
        rounded = workspace.array(f"as {dtype}", resampled.shape, dtype)
        np.copyto(rounded, resampled, casting="same_kind")
        resampled = rounded
    return resampled


def index_of_largest(channels: Iterable[tuple[int, np.ndarray]], dtype: np.dtype | type) -> np.ndarray:
    """Like ``argmax``, for channels ``(X, Y, Z)`` that come one after the other with their index: of equal values the first wins."""
    channels = iter(channels)
    index, channel = next(channels)
    best = np.array(channel, dtype=np.float32)
    labels = np.full(best.shape, index, dtype=dtype)
    planes = max(1, VOXELS_AT_ONCE // max(1, best[0].size))
    parts = [slice(start, start + planes) for start in range(0, len(best), planes)]
    for index, channel in channels:
        for part in parts:
            values = channel[part].astype(np.float32, copy=False)  # numpy compares float16 slowly
            np.putmask(labels[part], values > best[part], index)  # faster than copyto with a mask
            np.maximum(best[part], values, out=best[part])
    return labels


def _ranges(logits: np.ndarray, seconds: Sequence[AxisBlock], thirds: Sequence[AxisBlock]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest logit that each block of a row reads: both ``(heads, blocks of axis 1, blocks of axis 2)``."""
    low, high = (np.empty((len(logits), len(seconds), len(thirds)), dtype=np.float32) for _ in range(2))
    for index, channel in enumerate(logits):
        channel = channel.astype(np.float32, copy=False)
        for result, reduce in ((low, np.min), (high, np.max)):
            plane = reduce(channel, axis=0)  # the only pass over all values; blocks overlap little
            rows = np.stack([reduce(plane[second.inputs], axis=0) for second in seconds])
            for k, third in enumerate(thirds):
                reduce(rows[:, third.inputs], axis=1, out=result[index, :, k])
    return low, high
