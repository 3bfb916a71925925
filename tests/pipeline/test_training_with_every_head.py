"""Faults that joint models elsewhere were shipped with, in training: every pooling, joint and refitted heads, every type of task."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainings import CPU, make_trainer, same
from torch import nn

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training import head_refit
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.head_refit import refit_on_cases, refit_on_patches
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

DATASET = "Dataset001_Classes"
POOLINGS = ("mean_max", "attention", "evidence")
WAYS = ("cases", "patches")


class EveryStep(nnUNetTrainerMultitask):
    """The classes count from the first step on; remembers the heads as they were before it."""

    def classification_loss_weight(self) -> float:
        return 1.0

    def on_train_start(self) -> None:
        super().on_train_start()
        self.heads_at_first = {name: copy.deepcopy(head.state_dict()) for name, head in self.heads.items()}


@pytest.fixture(scope="module", params=POOLINGS)
def finished(request: pytest.FixtureRequest, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer with one pooling for the joint and the refitted heads, after training, refit on cases and validation."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
        environment.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        environment.setenv("nnUNet_n_proc_DA", "0")
        environment.setenv("nnUNet_def_n_proc", "1")
        trainer = make_trainer(EveryStep, tiny_preprocessed, num_epochs=1)
        trainer.head_pooling = trainer.refit_pooling = request.param
        trainer.refit_augmented_copies = 0
        trainer.run_training()
        assert trainer.enable_deep_supervision  # the network returns a list of scales beside the classes
        trainer.perform_actual_validation()
        yield trainer


def state(heads: Mapping[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: value.detach().clone() for key, value in head.state_dict().items()} for name, head in heads.items()}


def refitted(trainer: Any, way: str) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of heads that were refitted now."""
    if way == "cases":
        return state(refit_on_cases(trainer, augmented_copies=0, penalty=0.1, with_morphometry=True, trees=10))
    return state(refit_on_patches(trainer, epochs=1))


def test_every_weight_of_the_heads_is_trained_and_kept(finished: Any) -> None:
    checkpoint = load_checkpoint_file(Path(finished.output_folder, "checkpoint_final.pth"))
    optimised = {id(parameter) for group in finished.head_optimizer.param_groups for parameter in group["params"]}
    for name, head in finished.heads.items():
        assert {id(parameter) for parameter in head.parameters()} <= optimised
        for key, value in head.state_dict().items():
            assert not torch.equal(value, finished.heads_at_first[name][key]), f"{name}, {key} did not change"
            assert torch.equal(value, checkpoint["network_weights"][f"classification_heads.task_{name}.{key}"])
    for name, head in finished.refitted_heads.items():
        for key, value in head.state_dict().items():
            assert torch.equal(value, checkpoint["refitted_heads"]["weights"][f"classification_heads.task_{name}.{key}"])
        assert head.output.state_dict() and all(value.any() for value in head.output.state_dict().values())


def test_validation_scores_two_sets_of_heads_and_prediction_repeats_it(
    finished: Any, tiny_preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of raw images without annotation, by the preprocessing of the training."""
    _, cases = finished.do_split()
    validation = Path(finished.output_folder, "validation")
    assert list(load_json(validation / "classification_summary.json")) == ["refit", "joint"]
    (tmp_path / "images").mkdir()
    for identifier in cases:
        shutil.copy(tiny_preprocessed.parent / "raw" / DATASET / "imagesTr" / f"{identifier}_0000.nii.gz", tmp_path / "images")
    for heads, name in (("refit", "classification.csv"), ("joint", "classification_joint.csv")):
        expected = read_classification_csv(validation / name, finished.classification_tasks)
        assert sorted(expected) == sorted(cases)
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(finished.output_folder_base, (0,), classification_heads=heads)
        file = tmp_path / f"{heads}.csv"
        predictor.predict_from_files_sequential(str(tmp_path / "images"), None, save_classification=file)
        found = read_classification_csv(file, finished.classification_tasks)
        for identifier, row in expected.items():
            for task, values in row.items():
                np.testing.assert_allclose(found[identifier][task], values, atol=1e-6, err_msg=f"{heads}, {identifier}, {task}")


@pytest.fixture
def frozen(finished: Any, tiny_preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The finished trainer, whose heads may be refitted once more."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return finished


def other_labels(trainer: Any, identifiers: list[str]) -> CaseLabels:
    """The labels of the dataset; those of some cases are the last class of every task."""
    labels = trainer.case_labels()
    rows = {name: {task: labels.target(name, task) for task in labels.tasks} for name in labels.rows}
    for name in identifiers:
        rows[name] = {name: last_class(task) for name, task in labels.tasks.items()}
    return CaseLabels(labels.tasks, rows)


def last_class(task: Any) -> Any:
    return np.eye(task.num_classes, dtype=np.float32)[-1] if task.is_multilabel else task.num_classes - 1


@pytest.mark.parametrize("way", WAYS)
def test_labels_of_validation_cases_have_no_part_in_a_refit(way: str, frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = refitted(frozen, way)
    training_cases, held_out = frozen.do_split()
    for cases, equal in ((held_out, True), (training_cases[:2], False)):
        with monkeypatch.context() as patch:
            labels = other_labels(frozen, cases)
            patch.setattr(frozen, "case_labels", lambda labels=labels: labels)
            assert same(before, refitted(frozen, way)) == equal


def test_the_annotation_decides_nothing_in_a_refit_on_cases(frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = refitted(frozen, "cases")
    load_case = nnUNetDatasetBlosc2.load_case

    def without_annotation(self: Any, identifier: str) -> tuple:
        data, segmentation, *rest = load_case(self, identifier)
        return data, np.zeros_like(segmentation[:]), *rest

    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", without_annotation)
    assert same(before, refitted(frozen, "cases"))


def test_cases_of_unknown_class_have_no_part_in_a_refit_on_cases(frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training_cases, _ = frozen.do_split()
    labels = frozen.case_labels()
    rows = {name: {task: labels.target(name, task) for task in labels.tasks} for name in labels.rows}
    known = [name for name in training_cases if any(value is not None for value in rows[name].values())]
    unknown = dict(zip(labels.tasks, known, strict=False))  # another case for each task
    for task, name in unknown.items():
        rows[name][task] = None
    some_unknown = CaseLabels(labels.tasks, rows)
    monkeypatch.setattr(frozen, "case_labels", lambda: some_unknown)
    before = refitted(frozen, "cases")
    vectors_of = head_refit.case_vectors

    def spoiled(*arguments: Any) -> tuple[list[str], dict[str, np.ndarray]]:
        identifiers, vectors = vectors_of(*arguments)
        for task, name in unknown.items():
            vectors[task][identifiers.index(name)] = 1e3
        return identifiers, vectors

    monkeypatch.setattr(head_refit, "case_vectors", spoiled)
    assert same(before, refitted(frozen, "cases"))
