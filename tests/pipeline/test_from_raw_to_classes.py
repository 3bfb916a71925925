"""From raw files to segmentations and classes, by the commands, with and without heads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_datasets import (
    FINDINGS,
    GRADE,
    LABELS,
    PLANNER,
    PLANS,
    SIDE,
    SUBTYPE,
    tiny_case,
    write_image,
    write_tiny_dataset,
)

from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry
from nnunetv2.cli.predict import predict_entry
from nnunetv2.cli.report import main as report
from nnunetv2.cli.train import main as train

DATASET = "Dataset001_Tiny"
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}
SEVERAL_TASKS = {"subtype": SUBTYPE, "findings": FINDINGS, "grade": GRADE, "side": SIDE}

CASES: dict[str, dict[str, Any]] = {
    "no classes": {"trainer": "nnUNetTrainer"},
    "no classes, 2d": {"trainer": "nnUNetTrainer", "configuration": "2d"},
    "classes unused": {"trainer": "nnUNetTrainer", "classification": {"subtype": SUBTYPE}},
    "several tasks, unknown labels": {"classification": SEVERAL_TASKS, "unknown_every": 4},
    "classes, 2d": {"classification": {"subtype": SUBTYPE, "side": SIDE}, "configuration": "2d"},
    "regions": {
        "classification": {"subtype": {**SUBTYPE, "context": ["whole"]}},
        "labels": REGIONS,
        "regions_class_order": [1, 2],
    },
    "ignore label": {"classification": {"subtype": SUBTYPE}, "labels": {**LABELS, "ignore": 3}, "ignore_value": 3},
}


@pytest.mark.parametrize("name", list(CASES))
def test_commands_take_raw_files_to_segmentations_and_classes(name: str, nnunet_folders: dict[str, Path]) -> None:
    options = dict(CASES[name])
    configuration = options.pop("configuration", "3d_fullres")
    trainer = options.pop("trainer", "nnUNetTrainerMultitask")
    raw = nnunet_folders["raw"] / DATASET
    write_tiny_dataset(raw, **options)
    tasks = options.get("classification", {}) if trainer == "nnUNetTrainerMultitask" else {}

    plan_and_preprocess_entry(
        ["-d", "1", "-pl", PLANNER, "-c", configuration, "--verify_dataset_integrity", "-np", "1", "-npfp", "1", "--no_pbar"]
    )
    model = ["-tr", trainer, "-p", PLANS]
    train(["1", configuration, "0", *model, "-device", "cpu", "--seed", "1", "--epochs", "2", "--iterations_per_epoch", "2", "--npz"])

    fold = nnunet_folders["results"] / DATASET / f"{trainer}__{PLANS}__{configuration}" / "fold_0"
    validation_cases = json.loads((nnunet_folders["preprocessed"] / DATASET / "splits_final.json").read_text())[0]["val"]
    check_training_folder(fold, validation_cases, tasks)

    images = nnunet_folders["raw"] / "new_cases"
    images.mkdir()
    for index in (100, 101):
        write_image(tiny_case(index)[0], images / f"new_{index}_0000.nii.gz")
    output = nnunet_folders["raw"] / "predictions"
    command = ["-i", str(images), "-o", str(output), "-d", "1", *model, "-c", configuration, "-f", "0", "-device", "cpu"]
    predict_entry([*command, "-npp", "0", "-nps", "0", *(["--save_cls"] if tasks else [])])

    for index in (100, 101):
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"new_{index}.nii.gz")))
        assert segmentation.shape == tiny_case(index)[0].shape
        assert set(np.unique(segmentation)) <= {0, 1, 2}
    assert (output / "classification.csv").exists() == bool(tasks)

    for folder in (fold.parent, output):
        report([str(folder), "--worst", "1"])
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert all(f">Class: {name}</h2>" in page for name in tasks) and ("Classes</h2>" in page) == (not tasks)
        assert ("Box plot of the Dice" in page) == (folder != output)  # the new cases have no reference
        assert page.count("data:image/png") == (1 + len(tasks) if folder != output else len(tasks))
    if tasks:
        check_class_table(output / "classification.csv", ["new_100", "new_101"], tasks)


def check_training_folder(fold: Path, validation_cases: list[str], tasks: dict[str, Any]) -> None:
    """Files of a finished training."""
    assert (fold / "checkpoint_final.pth").is_file()
    assert not (fold / "checkpoint_latest.pth").exists()
    assert (fold / "progress.png").is_file()
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json"} <= {path.name for path in fold.parent.iterdir()}
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(validation_cases)
    for identifier in validation_cases:
        with np.load(fold / "validation" / f"{identifier}.npz") as arrays:
            assert {f"classification_{task}" for task in tasks} <= set(arrays)
            assert np.isfinite(arrays["probabilities"]).all()
    assert (fold / "validation" / "classification.csv").exists() == bool(tasks)
    assert (fold / "checkpoint_best_classification.pth").exists() == bool(tasks)
    if tasks:
        check_class_table(fold / "validation" / "classification.csv", validation_cases, tasks)
        joint = json.loads((fold / "validation" / "classification_summary.json").read_text())["joint"]
        assert set(joint["tasks"]) == set(tasks)
        for entry in joint["tasks"].values():
            assert entry["n"] + entry["unknown"] == len(validation_cases)


def check_class_table(path: Path, identifiers: list[str], tasks: dict[str, Any]) -> None:
    """Every case once, in sorted order, with probabilities that make sense."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["identifier"] for row in rows] == sorted(identifiers)
    for row in rows:
        for name, task in tasks.items():
            probabilities = [float(row[f"{name}_probability_{label}"]) for label in task["classes"]]
            assert all(0 <= value <= 1 for value in probabilities)
            if task.get("type") != "multilabel":
                assert sum(probabilities) == pytest.approx(1, abs=1e-5)
                assert row[name] == task["classes"][int(np.argmax(probabilities))]
