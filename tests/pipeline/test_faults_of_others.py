"""Faults that joint models elsewhere were shipped with and that only show from end to end; the others are tested beside the code."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from tiny_datasets import tiny_case
from tiny_trainings import CPU, make_trainer, same, weights

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

DATASET = "Dataset001_Classes"


def true_cell(identifier: str, task: str) -> str:
    """What the dataset's annotator wrote; every fourth case has no labels."""
    index = int(identifier.removeprefix("case_"))
    return "" if index % 4 == 3 else tiny_case(index)[2][task]


class FullClassLoss(nnUNetTrainerMultitask):
    """The classes count from the first step on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.disable_checkpointing = True

    def classification_loss_weight(self) -> float:
        return 1.0


@pytest.fixture(scope="module")
def finished(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer of 2D slices, so that every case has many tiles, after its training and the validation of whole cases."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
        environment.setenv("nnUNet_results", str(results))
        environment.setenv("nnUNet_n_proc_DA", "0")
        environment.setenv("nnUNet_def_n_proc", "1")
        trainer = make_trainer(nnUNetTrainerMultitask, tiny_preprocessed, configuration="2d", num_epochs=1)
        trainer.run_training()
        assert trainer.enable_deep_supervision  # the network returns a list of scales beside the classes
        trainer.perform_actual_validation()
    return trainer


def validation_table(trainer: Any) -> dict[str, dict[str, np.ndarray]]:
    return read_classification_csv(Path(trainer.output_folder, "validation", "classification.csv"), trainer.classification_tasks)


def test_validation_of_a_joint_network_writes_masks_and_classes_of_every_case(finished: Any) -> None:
    _, cases = finished.do_split()
    folder = Path(finished.output_folder, "validation")
    assert {file.name.removesuffix(".nii.gz") for file in folder.glob("*.nii.gz")} == set(cases) == set(validation_table(finished))
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(cases) == 2
    assert set(summary["mean"]) == {"1", "2"}  # not the background, whose Dice is always high


def test_prediction_of_the_raw_images_gives_the_classes_of_the_validation(
    finished: Any, tiny_preprocessed: Path, tmp_path: Path, nnunet_folders: dict[str, Path]
) -> None:
    """Neither another preprocessing than the training's nor the annotation, which is not there, has a part in either."""
    table = validation_table(finished)
    (tmp_path / "images").mkdir()
    for identifier in table:
        shutil.copy(tiny_preprocessed.parent / "raw" / DATASET / "imagesTr" / f"{identifier}_0000.nii.gz", tmp_path / "images")
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(finished.output_folder_base, (0,))
    predictor.predict_from_files(str(tmp_path / "images"), str(tmp_path / "out"), save_classification=True)
    predicted = read_classification_csv(tmp_path / "out" / "classification.csv", finished.classification_tasks)
    assert list(predicted) == list(table)
    for identifier, row in predicted.items():
        for task, probabilities in row.items():
            np.testing.assert_allclose(probabilities, table[identifier][task], atol=1e-6, err_msg=f"{identifier}, {task}")


@pytest.mark.parametrize(("heads", "table"), [("refit", "classification.csv"), ("joint", "classification_joint.csv")])
def test_scores_of_the_validation_are_those_of_whole_cases_and_their_labels(heads: str, table: str, finished: Any) -> None:
    folder = Path(finished.output_folder, "validation")
    summary = json.loads((folder / "classification_summary.json").read_text())[heads]["tasks"]
    with open(folder / table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels_seen = set()
    for task in ("subtype", "grade", "side"):
        classes = list(finished.classification_tasks[task].classes)
        known = [row for row in rows if true_cell(row["identifier"], task)]
        truth, decided = [true_cell(row["identifier"], task) for row in known], [row[task] for row in known]
        assert (summary[task]["n"], summary[task]["unknown"]) == (len(known), len(rows) - len(known))
        assert summary[task]["confusion"] == metrics.confusion_matrix(truth, decided, labels=classes).tolist()
        expected = metrics.f1_score(truth, decided, labels=classes, average="macro", zero_division=0)
        assert summary[task]["scores"]["macro_f1"] == pytest.approx(expected, abs=1e-9)
        labels_seen.update(classes.index(cell) for cell in truth)
    assert labels_seen - {0}  # so that labels which are all 0 would show


def test_labels_of_validation_cases_have_no_part_in_the_training(
    tiny_training: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by class weights nor by sampling."""
    original = make_trainer(FullClassLoss, tiny_training["preprocessed"])
    _, held_out = original.do_split()  # also writes the split, which the copy keeps
    copied = shutil.copytree(tiny_training["preprocessed"] / DATASET, tmp_path / "preprocessed" / DATASET)
    with open(copied / "labels.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["identifier", "subtype", "findings", "grade", "side"]
    # One class for all of them, such that the number of cases by class, which weights would come from, changes in every task.
    choices = (("dark", "bright"), ("none", "bright_lesion;upper_half"), ("G1", "G2"), ("left", "right"))
    cells = [
        next(choice for choice in names if any(row[column] != choice for row in rows if row[0] in held_out))
        for column, names in enumerate(choices, start=1)
    ]
    changed = [[row[0], *cells] if row[0] in held_out else row for row in rows]
    with open(copied / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *changed])
    original.run_training()
    monkeypatch.setenv("nnUNet_preprocessed", str(copied.parent))
    other = make_trainer(FullClassLoss, copied.parent)
    other.run_training()
    counts = [trainer.class_scores.case_labels.class_counts() for trainer in (original, other)]
    assert all(counts[0][task] != counts[1][task] for task in original.classification_tasks)
    assert same(weights(original), weights(other))
