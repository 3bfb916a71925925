"""The class part of a batch: what each sample's case is, and how much its patch shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

CONTEXT_WEIGHT = 0.3  # of a patch that shows only the surroundings of the evidence; a starting value, not measured
UNKNOWN_CLASS = -1
LABEL_MAP_KEY = "label_map"


@dataclass(frozen=True)
class EvidenceRule:
    """Label values whose presence in a patch shows the class (evidence) or hints at it (context)."""

    evidence: tuple[int, ...] = ()
    context: tuple[int, ...] = ()


def evidence_rules(tasks: Mapping[str, ClassificationTask], dataset_json: Mapping[str, Any]) -> dict[str, EvidenceRule]:
    """The rule of each task, names of structures resolved to label values."""
    from nnunetv2.utilities.label_handling.classification_labels import structure_values

    return {
        name: EvidenceRule(
            tuple(structure_values(task.evidence, dataset_json)), tuple(structure_values(task.context, dataset_json))
        )
        for name, task in tasks.items()
    }


def evidence_weight(
    label_map: torch.Tensor | np.ndarray, evidence_values: Sequence[int], context_values: Sequence[int] = ()
) -> float:
    """How much a patch teaches about a class: 1 if it shows evidence, 0.3 if only context, else 0.

    Args:
        label_map: Integer labels (not regions) after the last spatial transform, any shape, any device.
        evidence_values: Labels that show the class; without any, every patch counts fully.
        context_values: Labels that carry weak evidence.
    """
    if len(evidence_values) == 0:
        return 1.0
    if _contains_any(label_map, evidence_values):
        return 1.0
    return CONTEXT_WEIGHT if _contains_any(label_map, context_values) else 0.0


def class_part(
    identifiers: Sequence[str],
    case_labels: CaseLabels,
    rules: Mapping[str, EvidenceRule],
    label_maps: Sequence[torch.Tensor | None],
) -> dict[str, dict[str, torch.Tensor]]:
    """``batch["class"]``: by task the targets of the samples and their weights.

    Args:
        identifiers: Case of each sample.
        case_labels: Labels by identifier; a case without one is unknown.
        rules: Evidence of each task; a task without a rule weighs every patch 1.
        label_maps: Label map of each sample's patch; only needed for tasks with evidence.

    Returns:
        ``target`` int64 ``(B,)`` with -1 for unknown, or float32 ``(B, K)`` with NaN (multilabel); ``weight`` float32 ``(B,)``.
    """
    return {
        name: {
            "target": _targets(task, [case_labels.target(identifier, name) for identifier in identifiers]),
            "weight": torch.tensor(
                [_weight_of(label_map, rules.get(name, EvidenceRule())) for label_map in label_maps], dtype=torch.float32
            ),
        }
        for name, task in case_labels.tasks.items()
    }


class KeepLabelMapTransform(BasicTransform):
    """Remembers the label map before it becomes regions or a list of scales; changes nothing."""

    def apply(self, data_dict: dict, **params) -> dict:
        if data_dict.get("segmentation") is not None:
            data_dict[LABEL_MAP_KEY] = data_dict["segmentation"][:1]
        return data_dict


def with_label_map_kept(transforms: BasicTransform | None) -> BasicTransform | None:
    """The same pipeline, which also leaves the final label map in the sample, also for a user's own pipeline."""
    if transforms is None:
        return None
    steps = list(transforms.transforms) if isinstance(transforms, ComposeTransforms) else [transforms]
    after_space = (MoveSegAsOneHotToDataTransform, ConvertSegmentationToRegionsTransform, DownsampleSegForDSTransform)
    position = next((i for i, step in enumerate(steps) if isinstance(step, after_space)), len(steps))
    return ComposeTransforms([*steps[:position], KeepLabelMapTransform(), *steps[position:]])


def _weight_of(label_map: torch.Tensor | None, rule: EvidenceRule) -> float:
    if not rule.evidence:
        return 1.0
    if label_map is None:
        raise RuntimeError(
            "A task with evidence needs the label map of each patch, but the transforms kept none. "
            "They must be a batchgeneratorsv2 transform that returns the sample it was given."
        )
    return evidence_weight(label_map, rule.evidence, rule.context)


def _contains_any(label_map: torch.Tensor | np.ndarray, values: Sequence[int]) -> bool:
    return any(bool((label_map == value).any()) for value in values)


def _targets(task: ClassificationTask, targets: Sequence[int | np.ndarray | None]) -> torch.Tensor:
    if not task.is_multilabel:
        return torch.tensor([UNKNOWN_CLASS if target is None else int(target) for target in targets], dtype=torch.int64)
    unknown = np.full(len(task.classes), np.nan, dtype=np.float32)
    return torch.from_numpy(np.stack([unknown if t is None else np.asarray(t, dtype=np.float32) for t in targets]))
