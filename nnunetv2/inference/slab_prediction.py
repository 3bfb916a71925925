"""Labels of a deep image while its tiles are predicted, so that the logits of the whole image are never in memory.

Tiles come in the order of the first axis. What lies before the next tile's first row is final: it is averaged, resampled and turned into
labels, and its memory is used again for the rows to come. Every voxel goes through the same steps as with all logits in memory, in the
same order, so that the labels are the same. Several folds advance together, each with sums of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nnunetv2.inference.blockwise_export import BlockwiseLabels
from nnunetv2.inference.case_classification import CaseClassification, mean_of_folds
from nnunetv2.inference.export_prediction import empty_segmentation, label_dtype, resampling_by_blocks
from nnunetv2.inference.sliding_window_prediction import NOT_FINITE, TileAccumulator, padded_to_tile

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.inference.prediction_results import ClassificationOptions
    from nnunetv2.preprocessing.resampling.blockwise_resampling import AxisBlock, BlockwiseResampling
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

TileIndex = tuple[slice | int, ...]
# Slices of a 2D configuration, and tiles closer than this, are taken together: fewer and larger blocks, and weights of folds change less often.
LEAST_ROWS = 4


@dataclass(frozen=True)
class SlabResult:
    """What :func:`predict_in_slabs` knows about a case."""

    segmentation: np.ndarray  # (X, Y, Z) of the original image, in the axis order of the reader
    classes: dict[str, np.ndarray]  # probabilities (K,) by task, averaged over the folds and not calibrated
    votes_of_folds: list[CaseClassification]  # empty where no classes are wanted


@dataclass(frozen=True)
class Slab:
    """Tiles that are predicted one after the other, and what is known after them. Rows are voxels of the first axis of the network's grid."""

    tiles: tuple[TileIndex, ...]
    first: int  # row that must still be in memory; none before it
    final: slice  # rows that no later tile touches, without those of earlier slabs
    block_rows: range  # of the resampling, that read final rows only, without those of earlier slabs


@dataclass(frozen=True)
class SlabPlan:
    """The way through an image."""

    slabs: tuple[Slab, ...]
    rows_in_memory: int  # the most that are needed at a time


def tiles_by_slab(slicers: Sequence[TileIndex], least_rows: int = LEAST_ROWS) -> list[tuple[TileIndex, ...]] | None:
    """Tiles with the same first row, or with first rows closer than ``least_rows``; None where they do not come in this order."""
    starts = [_rows(slicer).start for slicer in slicers]
    if not starts or None in starts or any(_rows(slicer).stop is None for slicer in slicers) or any(after < before for before, after in itertools.pairwise(starts)):
        return None
    slabs: list[list[TileIndex]] = []
    first = starts[0]
    for start, slicer in zip(starts, slicers, strict=True):
        if not slabs or start - first >= least_rows:
            slabs.append([])
            first = start
        slabs[-1].append(slicer)
    return [tuple(slab) for slab in slabs]


def plan_slabs(tiles: Sequence[Sequence[TileIndex]], depth: int, block_rows: Sequence[AxisBlock]) -> SlabPlan:
    """What is final after which tiles, and how many rows are in memory at most.

    Args:
        tiles: See :func:`tiles_by_slab`.
        depth: Rows of the network's grid.
        block_rows: Blocks of the first axis, by the inputs that they read.
    """
    stops = [*(_rows(slab[0]).start for slab in tiles[1:]), depth]
    slabs, most = [], 0
    final = done = end = 0
    for slab, stop in zip(tiles, stops, strict=True):
        following = done
        while following < len(block_rows) and block_rows[following].inputs.stop <= stop:
            following += 1
        first = min([final, *(block.inputs.start for block in block_rows[done : done + 1])])
        end = max(end, *(_rows(slicer).stop for slicer in slab))
        slabs.append(Slab(tuple(slab), first, slice(final, stop), range(done, following)))
        most = max(most, max(end, stop) - first)
        final, done = stop, following
    return SlabPlan(tuple(slabs), most)


def _rows(slicer: TileIndex) -> slice:
    """Rows of the first spatial axis that a tile covers."""
    rows = slicer[1]
    return rows if isinstance(rows, slice) else slice(rows, rows + 1)


class RollingAccumulator:
    """Adds up tiles like :class:`TileAccumulator`, with a limited number of rows of the first axis in memory.

    Args:
        num_channels: Channels of the logits.
        rows: Rows in memory.
        plane: The other two axes of the padded image.
        tile_weights: Weight of each voxel of a tile; None if all count the same.
    """

    def __init__(self, num_channels: int, rows: int, plane: Sequence[int], tile_weights: torch.Tensor | None) -> None:
        self._sums = TileAccumulator(num_channels, (rows, *plane), tile_weights)
        self.first = 0  # row of the image that is the first in memory
        self._end = 0  # no tile has come behind it
        self.device = self._sums.device
        self.tile_weights = tile_weights

    @property
    def rows_in_memory(self) -> int:
        """How many rows are held."""
        return self._sums.logits.shape[1]

    def add(self, logits: torch.Tensor, slicer: TileIndex) -> None:
        """Add one tile; see :meth:`TileAccumulator.add`. The slicer is that of the whole image."""
        rows = self._in_memory(_rows(slicer))
        self._end = max(self._end, rows.stop + self.first)
        self._sums.add(logits, (slicer[0], rows if isinstance(slicer[1], slice) else rows.start, *slicer[2:]))

    def average(self, rows: slice) -> torch.Tensor:
        """The weighted mean ``(C, rows, Y, Z)`` of final rows, in place, once.

        Raises:
            RuntimeError: If it holds something that is not a finite number.
        """
        averaged = self._sums.result_of_rows(self._in_memory(rows))
        if not self._sums.is_finite:
            raise RuntimeError(NOT_FINITE)
        return averaged

    def rows(self, rows: slice) -> torch.Tensor:
        """Some rows ``(C, rows, Y, Z)``: a view."""
        return self._sums.logits[:, self._in_memory(rows)]

    def forget_before(self, row: int) -> None:
        """Have that row of the image as the first in memory; what follows the present rows is 0."""
        distance, count = row - self.first, self._end - self.first
        if distance:
            for values in (self._sums.logits, self._sums.weights[None]):
                _move_up(values, distance, count)
        self.first, self._end = row, max(row, self._end)

    def _in_memory(self, rows: slice) -> slice:
        start, stop = rows.start - self.first, rows.stop - self.first
        if not 0 <= start <= stop <= self.rows_in_memory:
            raise IndexError(f"Rows {rows} are not in memory, which begins with {self.first}.")
        return slice(start, stop)


def _move_up(values: torch.Tensor, distance: int, count: int) -> None:
    """Move the first ``count`` rows of ``(C, rows, Y, Z)`` up, in pieces that do not overlap, and leave zeros behind."""
    for start in range(distance, count, distance):
        stop = min(start + distance, count)
        values[:, start - distance : stop - distance] = values[:, start:stop]
    values[:, max(0, count - distance) : count] = 0


class SlabLabels:
    """The sums of all folds, and the labels that become of them.

    Args:
        plan: The way through the image.
        accumulators: One for each fold, empty.
        inside: Where the image lies in the two padded axes.
        resampling: From the network's grid to the cropped image's.
        label_manager: Turns logits into labels.
        properties: Of the case, made by the preprocessor.
    """

    def __init__(
        self,
        plan: SlabPlan,
        accumulators: Sequence[RollingAccumulator],
        inside: Sequence[slice],
        resampling: BlockwiseResampling,
        label_manager: LabelManager,
        properties: Mapping[str, Any],
    ) -> None:
        self.plan = plan
        self.accumulators = accumulators
        self.segmentation, cropped = empty_segmentation(label_manager, properties)  # in the network's order of axes
        self.maps_of_folds: list[np.ndarray] = []
        self._box = (slice(None), slice(None), *inside)
        # The network waits meanwhile.
        self._labels = BlockwiseLabels(resampling, label_manager, cropped, torch.get_num_threads())
        self._block_rows = resampling.blocks[0]
        self._label_manager = label_manager

    def keep_maps_of_folds(self, shape: Sequence[int]) -> None:
        """Also fill ``maps_of_folds``, the labels ``(X, Y, Z)`` of each fold on the network's grid."""
        self.maps_of_folds = [np.zeros(tuple(shape), dtype=label_dtype(self._label_manager)) for _ in self.accumulators]

    def begin(self, slab: Slab) -> None:
        """Make room for the tiles of a slab."""
        for accumulator in self.accumulators:
            accumulator.forget_before(slab.first)

    def average(self, fold: int, slab: Slab) -> None:
        """All tiles of a slab are added for one fold."""
        averaged = self.accumulators[fold].average(slab.final)
        if self.maps_of_folds:
            self.maps_of_folds[fold][slab.final] = self._label_manager.convert_logits_to_segmentation(averaged[self._box]).numpy()

    def fill(self, slab: Slab) -> bool:
        """Labels of what a slab completes, when all folds are averaged; False where that cannot be done by blocks."""
        mean, *others = self.accumulators
        total = mean.rows(slab.final)
        for other in others:
            total.add_(other.rows(slab.final))
        if others:
            total.div_(len(self.accumulators))
        return all(self._labels.add_row(row, mean.rows(self._block_rows[row].inputs)[self._box].numpy()) for row in slab.block_rows)


@torch.inference_mode()
def predict_in_slabs(
    predictor: nnUNetPredictor, data: torch.Tensor, properties: Mapping[str, Any], options: ClassificationOptions | None
) -> SlabResult | None:
    """Predict a preprocessed case on the CPU with the logits of a part of it in memory.

    Args:
        predictor: With its model; see ``nnUNetPredictor.works_in_slabs``.
        data: ``(C, X, Y, Z)``.
        properties: Made by the preprocessor.
        options: How classes are predicted; None: not at all.

    Returns:
        None where all logits are needed at once, or take no more memory.

    Raises:
        RuntimeError: If the network predicts something that is not a finite number.
    """
    patch_size = predictor.configuration_manager.patch_size
    if data.ndim != 4 or data.shape[1] <= (patch_size[0] if len(patch_size) == 3 else 1):  # the first tiles see all rows
        return None
    padded, inside = padded_to_tile(data, patch_size)
    labels = slab_labels(predictor, data, padded, inside, properties)
    if labels is None:
        return None
    predictor._prepare_network()
    number_of_folds = len(labels.accumulators)
    votes = [] if options is None else [predictor._new_votes(options.effective_aggregation) for _ in range(number_of_folds)]
    if votes and predictor.measures_structures():
        labels.keep_maps_of_folds(data.shape[1:])
    number_of_tiles = sum(len(slab.tiles) for slab in labels.plan.slabs) * number_of_folds
    with tqdm(total=number_of_tiles, desc="tiles", leave=False, disable=not predictor.allow_tqdm) as progress:
        for slab in labels.plan.slabs:
            labels.begin(slab)
            for fold, _ in enumerate(predictor._each_fold()):
                for group in predictor._groups_of_tiles(slab.tiles):
                    predictor._add_tiles(padded, group, labels.accumulators[fold], votes[fold] if votes else None)
                    progress.update(len(group))
                labels.average(fold, slab)
            if not labels.fill(slab):
                return None
    classes = [
        votes[fold].probabilities(predictor._measures(labels.maps_of_folds[fold] if labels.maps_of_folds else None, data, properties))
        for fold, _ in enumerate(predictor._each_fold() if votes else ())
    ]
    segmentation = labels.segmentation.transpose(predictor.plans_manager.transpose_backward)
    return SlabResult(segmentation, mean_of_folds(classes) if votes else {}, votes)


def slab_labels(
    predictor: nnUNetPredictor, data: torch.Tensor, padded: torch.Tensor, inside: tuple[slice, ...], properties: Mapping[str, Any]
) -> SlabLabels | None:
    """Empty sums and labels; None where slabs are not possible or save no memory."""
    shape, depth = tuple(data.shape[1:]), padded.shape[1]
    tiles = tiles_by_slab(predictor._internal_get_sliding_window_slicers(tuple(padded.shape[1:])))
    if tiles is None:
        return None
    managers = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    stops = [_rows(slab[0]).start for slab in tiles[1:]]
    resampling = resampling_by_blocks(shape, *managers, properties, row_stops=stops)
    if resampling is None:
        return None
    plan = plan_slabs(tiles, depth, resampling.blocks[0])
    number_of_folds = len(predictor.list_of_parameters or [None])
    # All at once the logits of the present fold and, with several folds, the sum of the ones before are in memory.
    if plan.rows_in_memory * number_of_folds >= depth * min(2, number_of_folds):
        return None
    weights = predictor._tile_weights(torch.float32, torch.device("cpu"))
    heads, plane = predictor.label_manager.num_segmentation_heads, padded.shape[2:]
    accumulators = [RollingAccumulator(heads, plan.rows_in_memory, plane, weights) for _ in range(number_of_folds)]
    return SlabLabels(plan, accumulators, inside[2:], resampling, predictor.label_manager, properties)
