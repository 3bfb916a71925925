"""Targets and weights of the classes in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms, validation_transforms
from nnunetv2.training.dataloading.class_targets import (
    LABEL_MAP_KEY,
    EvidenceRule,
    class_part,
    evidence_rules,
    evidence_weight,
    with_label_map_kept,
)
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks

DATASET_JSON = {
    "labels": {"background": 0, "organ": 1, "lesion": 2, "vessels": [3, 4]},
    "classification": {
        "grade": {"type": "ordinal", "classes": ["low", "mid", "high"], "evidence": ["lesion"], "context": ["organ", "vessels"]},
        "findings": {"type": "multilabel", "classes": ["cyst", "stone"]},
    },
}
TASKS = classification_tasks(DATASET_JSON)


@pytest.mark.parametrize(("label", "weight"), [(2, 1.0), (1, 0.3), (3, 0.3), (4, 0.3), (0, 0.0), (5, 0.0)])
def test_weight_tells_what_the_patch_shows(label: int, weight: float) -> None:
    patch = torch.zeros((1, 4, 4, 4), dtype=torch.int16)
    patch[0, 1, 2, 3] = label
    assert evidence_weight(patch, (2,), (1, 3, 4)) == weight == evidence_weight(patch.numpy(), (2,), (1, 3, 4))


def test_without_evidence_every_patch_counts() -> None:
    assert evidence_weight(torch.zeros(2, 2), (), (1,)) == 1.0


def test_names_of_structures_become_label_values() -> None:
    assert evidence_rules(TASKS, DATASET_JSON) == {"grade": EvidenceRule((2,), (1, 3, 4)), "findings": EvidenceRule()}


def test_targets_types_and_unknown() -> None:
    case_labels = CaseLabels(TASKS, {"a": {"grade": 2, "findings": np.array([0, 1], np.float32)}, "b": {"findings": None}})
    lesion, nothing = torch.tensor([[2]]), torch.tensor([[0]])
    classes = class_part(["a", "b", "c"], case_labels, evidence_rules(TASKS, DATASET_JSON), [lesion, lesion, nothing])
    assert classes["grade"]["target"].tolist() == [2, -1, -1] and classes["grade"]["target"].dtype == torch.int64
    assert classes["grade"]["weight"].tolist() == [1.0, 1.0, 0.0] and classes["grade"]["weight"].dtype == torch.float32
    findings = classes["findings"]["target"]
    assert findings.dtype == torch.float32 and findings[0].tolist() == [0, 1] and findings[1:].isnan().all() and findings.shape == (3, 2)
    assert classes["findings"]["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("regions", [None, [(1, 2), 2]])
@pytest.mark.parametrize("cascade", [False, True])
def test_the_label_map_survives_regions_cascade_and_deep_supervision(regions, cascade: bool) -> None:
    labels = torch.zeros((1 + cascade, 8, 8, 8), dtype=torch.int16)
    labels[0, 2:4, 2:4, 2:4] = 2
    labels[0, 5] = 3  # the ignore label
    labels[0, :, 7] = -1
    pipeline = validation_transforms([(1, 1, 1), (0.5, 0.5, 0.5)], cascade, [1, 2], regions, 3)
    plain = pipeline(image=torch.zeros(1, 8, 8, 8), segmentation=labels.clone())
    kept = with_label_map_kept(pipeline)(image=torch.zeros(1, 8, 8, 8), segmentation=labels.clone())
    assert torch.equal(kept[LABEL_MAP_KEY], labels[:1].clamp(min=0))
    assert all(torch.equal(one, other) for one, other in zip(plain["segmentation"], kept["segmentation"]))
    assert len(with_label_map_kept(pipeline).transforms) == len(pipeline.transforms) + 1  # and the original stays


def test_the_label_map_is_taken_after_the_last_spatial_transform() -> None:
    pipeline = with_label_map_kept(training_transforms((8, 8), (-3, 3), None, (0, 1), False))
    for seed in range(20):
        np.random.seed(seed), torch.manual_seed(seed)
        labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (1, 12, 12)).astype(np.int16))
        result = pipeline(image=torch.zeros(1, 12, 12), segmentation=labels)
        assert torch.equal(result[LABEL_MAP_KEY], result["segmentation"])


def test_a_pipeline_that_loses_the_label_map_is_an_error() -> None:
    case_labels = CaseLabels(TASKS, {})
    with pytest.raises(RuntimeError, match="label map"):
        class_part(["a"], case_labels, evidence_rules(TASKS, DATASET_JSON), [None])
