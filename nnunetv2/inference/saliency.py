"""Where in an image a classification head sees its class: gradient-weighted encoder features, tile by tile.

The method is that of Grad-CAM (Selvaraju et al. 2017): of every encoder stage that a head looks at, the channels are added up, each
weighted by how much the logit of the class grows with it, and what is negative is cut off. A weight is the gradient summed over the voxels,
not averaged: within a stage this is the same map, and stages of different resolution then count by what they contribute to the logit.

Which class is explained is known only when every tile of every fold has voted. So the tiles go through the encoder once more, without
mirroring, and only those that had a say in the decision: with evidence those that show it, with ``max`` a single one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nnunetv2.inference.export_prediction import values_on_original_grid
from nnunetv2.inference.sliding_window_prediction import TileAccumulator
from nnunetv2.network_architecture.classification_heads import CaseHead
from nnunetv2.utilities.label_handling.class_decision import predicted_target

if TYPE_CHECKING:
    from nnunetv2.network_architecture.joint_network import JointNetwork
    from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

SALIENCY_FOLDER = "saliency"  # of its own: evaluation and ensembling take every image of the output folder for a segmentation
SALIENCY_ENDING = ".nii.gz"
# A tile whose share in the decision is less than this part of the largest share could not be seen in the map.
NEGLIGIBLE_SHARE = 1e-3
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by number of axes


@dataclass(frozen=True, kw_only=True)
class ExplainedLogit:
    """What the map of one task shows."""

    index: int  # of the logit
    tile_shares: np.ndarray  # (tiles,) of the case's decision


def explained_logit(task: ClassificationTask, probabilities: np.ndarray) -> int:
    """Index of the logit that stands for the answer of a task.

    Multiclass: that of the predicted class. Multilabel: that of the most probable class, also where it is below the threshold. Ordinal:
    any, since there is one score, and all logits are that score minus a threshold; the map shows what raises it.

    Args:
        task: Says what the logits mean.
        probabilities: ``(K,)`` of the case.
    """
    if task.is_ordinal:
        return 0
    return int(np.argmax(probabilities)) if task.is_multilabel else int(predicted_target(task, probabilities))


def case_saliency(
    network: JointNetwork,
    image: Tensor,
    slicers: Sequence[tuple[slice | int, ...]],
    explained: Mapping[str, ExplainedLogit],
    *,
    tile_weights: Tensor | None,
    device: torch.device,
    show_progress: bool = False,
) -> Tensor:
    """One map for each task on the grid of a padded image.

    Args:
        network: On ``device``, in evaluation mode.
        image: ``(C, X, Y, Z)``, padded like for the prediction.
        slicers: Index of every tile into the image.
        explained: What to explain by task, with the shares of the tiles in the order of ``slicers``.
        tile_weights: Weight of a tile's voxels on the CPU, as used for the segmentation; None if all count the same.
        device: Where the network runs.
        show_progress: Draw a progress bar.

    Returns:
        ``(tasks, X, Y, Z)`` float32 on the CPU, in the order of ``explained``; not negative, in units of the logit.
    """
    accumulator = TileAccumulator(len(explained), image.shape[1:], tile_weights)
    for number, slicer in enumerate(tqdm(slicers, desc="saliency", leave=False, disable=not show_progress)):
        tile = image[slicer]
        maps = torch.zeros(len(explained), *tile.shape[1:])
        shares = {name: _visible_share(values.tile_shares, number) for name, values in explained.items()}
        wanted = {name: explained[name].index for name, share in shares.items() if share > 0}
        if wanted:
            found = tile_saliency(network, tile[None].to(device).contiguous(), wanted)
            for channel, name in zip(maps, explained, strict=True):
                if name in found:
                    channel.copy_(found[name]).mul_(shares[name])
        accumulator.add(maps, slicer)
    return accumulator.result()


def _visible_share(tile_shares: np.ndarray, number: int) -> float:
    """The share of a tile; 0 if it is too small to be seen."""
    share = float(tile_shares[number])
    return share if share > NEGLIGIBLE_SHARE * float(tile_shares.max()) else 0.0


def tile_saliency(network: JointNetwork, tile: Tensor, logits: Mapping[str, int]) -> dict[str, Tensor]:
    """Maps of one tile, from a single pass of the encoder.

    Args:
        network: In evaluation mode; its weights get no gradients.
        tile: ``(1, C, *tile)`` on the network's device.
        logits: Index of the logit to explain by task.

    Returns:
        ``(*tile)`` float32 by task, on the device of the network.
    """
    heads = {name: network.heads[name] for name in logits}
    # Not in inference mode, whose tensors could never have gradients.
    with torch.inference_mode(False), torch.no_grad():
        features = network.encoder(tile)
        segmentation = None
        if any(head.pooling.needs_segmentation for head in heads.values()):
            segmentation = network.decoder(features)
            segmentation = segmentation[0] if isinstance(segmentation, (list, tuple)) else segmentation
        return {name: head_saliency(head, features, segmentation, logits[name], tile.shape[2:]) for name, head in heads.items()}


def head_saliency(
    head: nn.Module, features: Sequence[Tensor], segmentation_logits: Tensor | None, logit: int, tile_size: Sequence[int]
) -> Tensor:
    """The map of one head.

    Args:
        head: With a ``description`` that names the stages it looks at.
        features: Encoder features ``(1, C, *spatial)`` of all stages, finest first.
        segmentation_logits: ``(1, C, *tile)`` for heads that pool over them.
        logit: Which of the head's logits.
        tile_size: Voxels per axis of the map.
    """
    device = features[0].device
    total = torch.zeros(tuple(tile_size), device=device)
    # In float32, also where the encoder runs in half precision: gradients by voxel are too small for it.
    with torch.autocast(device_type=device.type, enabled=False):
        with torch.enable_grad():
            watched = {stage: features[stage].detach().float().requires_grad_() for stage in head.description.stages}
            seen = [watched.get(stage, feature) for stage, feature in enumerate(features)]
            value = _logits_of_tile(head, seen, segmentation_logits)[0, logit]
            gradients = torch.autograd.grad(value, list(watched.values()))
        for feature, gradient in zip(watched.values(), gradients, strict=True):
            channel_weights = gradient[0].flatten(1).sum(dim=1)
            stage_map = torch.tensordot(channel_weights, feature.detach()[0], dims=1).relu()
            mode = INTERPOLATION[len(tile_size)]
            total += F.interpolate(stage_map[None, None], size=tuple(tile_size), mode=mode, align_corners=False)[0, 0]
    return total


def _logits_of_tile(head: nn.Module, features: Sequence[Tensor], segmentation_logits: Tensor | None) -> Tensor:
    """Logits of a head for a tile alone; for a head of whole cases as if the case were this tile."""
    output = head(features, segmentation_logits)
    if not isinstance(head, CaseHead):
        return output
    # Measures of the case at their mean: the layer is linear, so they do not change the gradient.
    measures = head.feature_mean[output.shape[1] :].expand(len(output), -1)
    return head.classify_case(torch.cat([output, measures], dim=1))


def saliency_on_original_grid(
    values: Tensor, plans_manager: PlansManager, configuration_manager: ConfigurationManager, properties: dict
) -> np.ndarray:
    """A map ``(X, Y, Z)`` of the preprocessed case on the grid of the image, float32, scaled to a maximum of 1.

    Raises:
        RuntimeError: If the map holds a value that is no finite number.
    """
    result = values_on_original_grid(values[None], plans_manager, configuration_manager, properties)[0].astype(np.float32, copy=False)
    result = np.maximum(result, 0)  # resampling with splines swings below
    highest = float(result.max())
    if not np.isfinite(highest):
        raise RuntimeError("The saliency holds values that are not finite numbers; the features of the network overflowed.")
    return result / highest if highest > 0 else result


def saliency_file(output_file_truncated: str, task: str) -> str:
    """Where the map of a task goes, given the case's output file without its ending."""
    folder, case = os.path.split(output_file_truncated)
    return os.path.join(folder, SALIENCY_FOLDER, f"{case}_{task}{SALIENCY_ENDING}")


def check_saliency_files(output_files_truncated: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise ValueError if two maps would have one name, as those of case ``a``, task ``b_c`` and of case ``a_b``, task ``c``."""
    owners: dict[str, str] = {}
    for output in output_files_truncated:
        for task in tasks:
            file, owner = saliency_file(output, task), f"case {os.path.basename(output)}, task {task}"
            if file in owners:
                raise ValueError(
                    f"The saliency of two cases would be written to the same file {file}: {owners[file]}, and {owner}. "
                    "Rename one of the cases."
                )
            owners[file] = owner


def write_saliency(
    maps: Mapping[str, Tensor],
    output_file_truncated: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    properties: dict,
) -> None:
    """Write the maps of a case as NIfTI files in the geometry of its image.

    Args:
        maps: ``(X, Y, Z)`` of the preprocessed case by task.
        output_file_truncated: Of the case; see :func:`saliency_file`.
        plans_manager: Says how axes were permuted, and which reader knows the geometry.
        configuration_manager: Says how probabilities are resampled.
        properties: Of the case, from the reader and the preprocessor.
    """
    writer = plans_manager.image_reader_writer_class()
    for task, values in maps.items():
        file = saliency_file(output_file_truncated, task)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        writer.write_map(saliency_on_original_grid(values, plans_manager, configuration_manager, properties), file, properties)
