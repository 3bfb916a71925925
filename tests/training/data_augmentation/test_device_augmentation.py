"""Images that are augmented on a device equal those of the loading processes up to rounding; all else is the same."""

from __future__ import annotations

import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from memory_loaders import SCALES, make_loader

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms
from nnunetv2.training.data_augmentation.device_augmentation import reason_to_stay, wanted_place
from nnunetv2.training.data_augmentation.strong_augmentation import strong_training_transforms
from nnunetv2.training.dataloading import data_loader
from nnunetv2.training.dataloading.batch_stream import BatchStream
from nnunetv2.training.dataloading.class_targets import EvidenceRule
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader, reason_to_augment_here
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks

CPU = torch.device("cpu")
TASKS = classification_tasks({"labels": {"background": 0}, "classification": {"grade": {"classes": ["low", "high"]}}})


def streams(mode: str, num_workers: int = 0, **settings):
    usual = BatchStream(make_loader(mode, **settings), 100)
    return usual, BatchStream(make_loader(mode, **settings), 100, num_workers).on_device(CPU)


@pytest.mark.parametrize("partial_reading", [True, False])
@pytest.mark.parametrize("mode", ["3d", "planes", "2d"])
@pytest.mark.parametrize("settings", [{}, {"cascade": True}, {"regions": [(1, 2), 2]}])
def test_batches_are_those_of_the_loading_processes(monkeypatch, mode: str, partial_reading: bool, settings: dict) -> None:
    monkeypatch.setattr(data_loader, "PARTIAL_READING_FROM_VOXELS", 0 if partial_reading else 10**9)
    usual, later = streams(mode, **settings)
    for _ in range(16):
        expected, found = next(usual), next(later)
        assert found.keys() == expected.keys() and list(found["keys"]) == list(expected["keys"])
        assert all(torch.equal(a, b) for a, b in zip(found["target"], expected["target"], strict=True))
        torch.testing.assert_close(found["data"], expected["data"], rtol=1e-4, atol=1e-4)


def test_classes_are_the_same_and_workers_make_no_difference() -> None:
    labels = CaseLabels(TASKS, {"x": {"grade": 0}, "y": {"grade": 1}})
    usual, later = streams("3d", 2, case_labels=labels, evidence_weights={"grade": EvidenceRule((2,), (1,))})
    with later:
        for _ in range(6):
            expected, found = next(usual)["class"]["grade"], next(later)["class"]["grade"]
            assert torch.equal(found["target"], expected["target"]) and torch.equal(found["weight"], expected["weight"])
        later.set_epoch(3)
        assert later.position == (3, 0)


def test_a_stream_with_classes_that_was_used_already_can_leave_its_images() -> None:
    labels = CaseLabels(TASKS, {"x": {"grade": 0}, "y": {"grade": 1}})
    usual, _ = streams("3d", case_labels=labels)
    next(usual)
    later = usual.on_device(CPU)
    assert later.position == (0, 1)
    torch.testing.assert_close(next(later)["data"], next(usual)["data"], rtol=1e-4, atol=1e-4)


def test_pipelines_with_other_steps_stay_with_the_processor() -> None:
    default = training_transforms((8, 12, 10), (-1, 1), SCALES, (0, 1, 2), False)
    assert reason_to_stay(default) is None

    class OwnStep(type(default.transforms[-1])):
        pass

    assert "OwnStep" in reason_to_stay(ComposeTransforms([*default.transforms, OwnStep([1])]))
    assert "begin" in reason_to_stay(ComposeTransforms(default.transforms[1:])) and "begin" in reason_to_stay(None)
    assert "begin" in reason_to_stay(training_transforms((8, 12, 10), (-1, 1), None, None, False, mode_segmentation="nearest"))
    assert reason_to_stay(strong_training_transforms((8, 12, 10), (-1, 1), SCALES, (0, 1, 2), False)) is not None


def test_loaders_that_make_batches_in_their_own_way_keep_their_images() -> None:
    class OwnWay(nnUNetDataLoader):
        def generate_train_batch(self):
            return super().generate_train_batch()

    loader = make_loader("3d")
    assert reason_to_augment_here(loader) is None
    loader.__class__ = OwnWay
    assert reason_to_augment_here(loader) == "OwnWay makes batches in its own way"
    assert "own way" in reason_to_augment_here(object())


def test_the_environment_variable_decides(monkeypatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.delenv("nnUNet_augmentation_device", raising=False)
    assert wanted_place(gpu) == "auto" and wanted_place(CPU) == "cpu"
    for name in ("auto", "cpu", "cuda"):
        monkeypatch.setenv("nnUNet_augmentation_device", name)
        assert wanted_place(gpu) == name
    with pytest.raises(ValueError, match="-device cuda"):
        wanted_place(CPU)
    monkeypatch.setenv("nnUNet_augmentation_device", "gpu")
    with pytest.raises(ValueError, match="cpu, cuda or auto"):
        wanted_place(gpu)
