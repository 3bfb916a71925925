"""How many cases are read ahead and written at the same time, so that they fit into memory beside the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnunetv2.imageio.image_size import ImageSize, sizes_of_cases
from nnunetv2.preprocessing.memory_need import bytes_to_preprocess, enlargement, enlargement_by_axis
from nnunetv2.preprocessing.resampling.blockwise_resampling import works_in_blocks
from nnunetv2.utilities.default_n_proc_DA import usable_cpus
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.machine import UsableMemory, as_gigabytes, usable_memory
from nnunetv2.utilities.worker_numbers import USABLE_SHARE, WORKER_BYTES

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

USUAL_WORKERS = 3  # nnU-Net's numbers of processes that read, and that write
LOGIT_BYTES = 4
# By voxel of the image while results are made and written, beside the logits; above measured peaks (2, 27, 22, and 58 with 6 classes).
# In blocks there are labels, and for probabilities a few channels, however many classes there are.
EXPORT_BYTES_PER_VOXEL = 5
EXPORT_BYTES_WITH_PROBABILITIES = 30
# Otherwise a resampled channel, the best value so far, labels and intermediate axes; for probabilities logits and probabilities by class.
CHANNEL_EXPORT_BYTES_PER_VOXEL = 24
BYTES_OF_ALL_CLASSES = 10
# Logits in the main process: those that the tiles are added to and, with several folds, the sum of those before.
MOST_RESULTS = 2
MAP_BYTES = 2  # of a label, at most
# Where logits become labels while they are predicted: beside the rows of a tile, what tiles taken together and interpolation add.
ROWS_BESIDE_A_TILE = 4


@dataclass(frozen=True)
class PredictionWorkers:
    """Numbers for ``predict_from_files``, and the line that tells the user."""

    reading: int
    writing: int
    message: str


@dataclass(frozen=True)
class PredictionNeed:
    """Memory of the largest case, in bytes."""

    identifier: str
    reading: int  # in a process that preprocesses it
    result: int  # in the main process while the network works
    writing: int  # logits, if labels are still to be made of them, and export of one case

    def total(self, reading: int, writing: int) -> int:
        """With so many cases read ahead and written at the same time."""
        return reading * (WORKER_BYTES + self.reading) + writing * self.writing + self.result


def largest_need(
    images: Mapping[str, Sequence[str]],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    num_heads: int,
    with_probabilities: bool = False,
    *,
    folds: int = 1,
    in_slabs: bool = False,
    with_maps: bool = False,
) -> PredictionNeed:
    """Need of the case that takes most, from headers.

    Args:
        images: By case the files of its channels; at least one case.
        plans_manager: Of the model.
        configuration_manager: Of the model.
        num_heads: Channels of the network's output.
        with_probabilities: They are written too.
        folds: Of the model.
        in_slabs: The predictor works in slabs (``nnUNetPredictor.works_in_slabs``).
        with_maps: It then keeps a label map of each fold (``nnUNetPredictor.measures_structures``).
    """
    export_bytes_per_voxel = _export_bytes_per_voxel(plans_manager, configuration_manager, num_heads, with_probabilities)

    def need(identifier: str, sizes: Sequence[ImageSize]) -> PredictionNeed:
        voxels = max((size.voxels for size in sizes), default=0)
        factor = enlargement(sizes[0].spacing, plans_manager, configuration_manager) if sizes else 1.0
        logits = round(LOGIT_BYTES * num_heads * voxels * factor)
        result, export = min(MOST_RESULTS, folds) * logits, voxels * export_bytes_per_voxel
        rolling = _voxels_in_slabs(sizes, plans_manager, configuration_manager, folds) if in_slabs else 0
        if rolling:
            maps = MAP_BYTES * folds * voxels * factor if with_maps else 0
            result, logits = round(LOGIT_BYTES * (num_heads + 1) * rolling + maps) + export, 0
        return PredictionNeed(identifier, bytes_to_preprocess(sizes, plans_manager, configuration_manager), result, logits + export)

    return max((need(name, sizes) for name, sizes in sizes_of_cases(images).items()), key=lambda found: found.total(1, 1))


def _voxels_in_slabs(
    sizes: Sequence[ImageSize], plans_manager: PlansManager, configuration_manager: ConfigurationManager, folds: int
) -> float:
    """Voxels of the network's grid whose logits are in memory, counted for each fold; 0 where all of them are."""
    size = sizes[0] if sizes else None
    if size is None or size.shape is None or len(size.shape) != 3 or not _makes_labels_by_blocks(plans_manager, configuration_manager):
        return 0
    patch = list(configuration_manager.patch_size)
    factors = enlargement_by_axis(size.spacing, plans_manager, configuration_manager)
    shape = [voxels * factor for voxels, factor in zip(size.shape, factors, strict=True)]
    depth, *plane = [shape[axis] for axis in plans_manager.transpose_forward]
    tile_depth = patch[0] if len(patch) == len(shape) else 1
    rows = (tile_depth + ROWS_BESIDE_A_TILE) * folds
    return rows * math.prod(map(max, plane, patch[-2:])) if rows < depth * min(2, folds) else 0


def _makes_labels_by_blocks(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> bool:
    """Whether ``export_prediction`` goes by blocks."""
    return plans_manager.label_manager_class is LabelManager and works_in_blocks(configuration_manager.resampling_fn_probabilities)


def _export_bytes_per_voxel(
    plans_manager: PlansManager, configuration_manager: ConfigurationManager, num_heads: int, with_probabilities: bool
) -> int:
    """Beside the logits; ``export_prediction`` goes by blocks, by channel, or takes all classes at once."""
    function = configuration_manager.resampling_fn_probabilities
    has_own_labels = plans_manager.label_manager_class is not LabelManager
    has_own_resampling = not getattr(function, "func", function).__module__.startswith("nnunetv2.preprocessing.resampling.")
    if has_own_labels or has_own_resampling:
        return CHANNEL_EXPORT_BYTES_PER_VOXEL + BYTES_OF_ALL_CLASSES * num_heads
    if works_in_blocks(function):
        return EXPORT_BYTES_WITH_PROBABILITIES if with_probabilities else EXPORT_BYTES_PER_VOXEL
    return max(CHANNEL_EXPORT_BYTES_PER_VOXEL, BYTES_OF_ALL_CLASSES * num_heads if with_probabilities else 0)


def plan_prediction_workers(
    need: PredictionNeed,
    number_of_cases: int,
    reading: int | None,
    writing: int | None,
    *,
    cpus: int | None = None,
    memory: UsableMemory | None = None,
) -> PredictionWorkers:
    """Numbers that fit; those that the user gave are kept, with a warning where memory will likely not suffice.

    Args:
        need: Of the largest case.
        number_of_cases: To predict.
        reading: The user's ``-npp``; None: choose.
        writing: The user's ``-nps``; None: choose.
        cpus: That may be used; None: look.
        memory: That is free; None: look.
    """
    memory = usable_memory() if memory is None else memory
    most = max(1, min(USUAL_WORKERS, usable_cpus() if cpus is None else cpus, number_of_cases))
    numbers = [most if reading is None else reading, most if writing is None else writing]
    chosen = [reading is None, writing is None]
    costs = (need.reading + WORKER_BYTES, need.writing)
    while memory is not None and need.total(*numbers) > USABLE_SHARE * memory.bytes:
        reducible = [which for which in (0, 1) if chosen[which] and numbers[which] > 1]
        if not reducible:
            break
        numbers[max(reducible, key=lambda which: costs[which] * numbers[which])] -= 1
    total = need.total(*numbers)
    fits = memory is None or total <= USABLE_SHARE * memory.bytes
    facts = f"the largest case ({need.identifier}) takes about {as_gigabytes(costs[0])} to be read, {as_gigabytes(costs[1])} to be written"
    free = "" if memory is None else f", and {as_gigabytes(memory.bytes)} of memory are free in {memory.limited_by}"
    if not fits:
        advice = "" if all(chosen) else "; give smaller numbers (-npp, -nps), or leave them out to have them chosen"
        message = (
            f"WARNING: prediction may run out of memory with {numbers[0]} cases read ahead and {numbers[1]} written: {facts}{free}{advice}."
        )
    elif not any(chosen) or number_of_cases < 2:
        message = ""
    else:
        message = (
            f"prediction: {numbers[0]} cases at most are read ahead and {numbers[1]} written at the same time (-npp, -nps): {facts}{free}."
        )
    return PredictionWorkers(*numbers, message)
