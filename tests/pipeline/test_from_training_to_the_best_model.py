"""From two trainings with regions, sparse annotation and classes to the best model, by the commands that the selection writes down."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_datasets import FINDINGS, PLANNER, PLANS, SUBTYPE, tiny_case, write_image, write_tiny_dataset

from nnunetv2.cli.ensemble import main as ensemble
from nnunetv2.cli.find_best_configuration import find_best_configuration_entry
from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry
from nnunetv2.cli.postprocessing import apply_postprocessing_entry
from nnunetv2.cli.predict import predict_entry
from nnunetv2.cli.train import main as train
from nnunetv2.evaluation.validation_tables import table_name
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import CLASSIFICATION_FILE, read_classification_csv

DATASET, TRAINER = "Dataset001_Tiny", "nnUNetTrainerMultitask"
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3}
TASKS = {"subtype": {**SUBTYPE, "evidence": ["whole"], "context": []}, "findings": FINDINGS}
CHECKPOINT = "checkpoint_best_classification.pth"
ENTRIES = {
    "nnUNetv2_predict": (predict_entry, ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]),
    "nnUNetv2_ensemble": (ensemble, ["-np", "1"]),
    "nnUNetv2_apply_postprocessing": (apply_postprocessing_entry, ["-np", "1"]),
}


@pytest.fixture
def selected(nnunet_folders: dict[str, Path]) -> Path:
    """Results of the dataset, after two configurations were trained and compared on one fold."""
    write_tiny_dataset(
        nnunet_folders["raw"] / DATASET,
        classification=TASKS,
        labels=REGIONS,
        regions_class_order=[1, 2],
        ignore_value=3,
        annotated_every=3,
        unknown_every=4,
    )
    plan_and_preprocess_entry(["-d", "1", "-pl", PLANNER, "-c", "2d", "3d_fullres", "-np", "1", "1", "-npfp", "1", "--no_pbar"])
    short = ["-p", PLANS, "-tr", TRAINER, "-device", "cpu", "--seed", "1", "--epochs", "1", "--iterations_per_epoch", "2"]
    for configuration in ("2d", "3d_fullres"):
        train(["1", configuration, "0", *short, "--npz", "-val_chk", CHECKPOINT])
    find_best_configuration_entry(["1", "-c", "2d", "3d_fullres", "-tr", TRAINER, "-p", PLANS, "-f", "0", "-np", "1"])
    return nnunet_folders["results"] / DATASET


def test_the_commands_of_the_selection_predict_masks_and_classes(selected: Path, tmp_path: Path) -> None:
    information = json.loads((selected / "inference_information.json").read_text())
    models = [f"{TRAINER}__{PLANS}__{configuration}" for configuration in ("2d", "3d_fullres")]
    assert set(information["checkpoints"]) == set(models)
    for name, checkpoints in information["checkpoints"].items():
        check_choice_of_checkpoint(selected / name, checkpoints, information["classification"]["all_results"][name])

    images = tmp_path / "images"
    images.mkdir()
    for index in (100, 101):
        write_image(tiny_case(index)[0], images / f"new_{index}_0000.nii.gz")
    text = (selected / "inference_instructions.txt").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("nnUNetv2_")]
    for command in commands:
        run(command, images, tmp_path)
    tasks = classification_tasks({"classification": TASKS, "labels": REGIONS, "regions_class_order": [1, 2]})
    rows = read_classification_csv(tmp_path / "OUTPUT_FOLDER_PP" / CLASSIFICATION_FILE, tasks)
    assert list(rows) == ["new_100", "new_101"]
    for case, row in rows.items():
        assert set(row) == set(TASKS)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "OUTPUT_FOLDER_PP" / f"{case}.nii.gz")))
        assert mask.shape == tiny_case(100)[0].shape
        assert set(np.unique(mask)) <= {0, 1, 2}  # never the ignore label

    members = [f"OUTPUT_FOLDER_{configuration}" for configuration in ("2d", "3d_fullres")]
    for name, output in zip(models, members):
        options = ["-tr", TRAINER, "-p", PLANS, "-c", name.split("__")[-1], "-f", "0", "-chk", CHECKPOINT]
        run(
            ["nnUNetv2_predict", "-d", "1", "-i", "INPUT_FOLDER", "-o", output, *options, "--save_cls", "--save_probabilities"],
            images,
            tmp_path,
        )
    run(["nnUNetv2_ensemble", "-i", *members, "-o", "OUTPUT_FOLDER_BOTH"], images, tmp_path)
    first, second, both = (
        read_classification_csv(tmp_path / name / CLASSIFICATION_FILE, tasks) for name in (*members, "OUTPUT_FOLDER_BOTH")
    )
    for case in rows:
        for task in TASKS:
            assert not np.array_equal(first[case][task], second[case][task])
            np.testing.assert_allclose(both[case][task], (first[case][task] + second[case][task]) / 2, atol=1e-6)


def run(command: list[str], images: Path, folder: Path) -> None:
    """A command line, its images and its outputs where they are in this test, without worker processes."""
    entry, options = ENTRIES[command[0]]
    there = {"INPUT_FOLDER": str(images), **{word: str(folder / word) for word in command if word.startswith("OUTPUT_FOLDER")}}
    entry([*(there.get(word, word) for word in command[1:]), *options])


def check_choice_of_checkpoint(model: Path, checkpoints: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Both were validated with tables of their own; the best of both is what stands beside the Dice."""
    assert set(checkpoints) == {"checkpoint_final.pth", CHECKPOINT}
    best = max((scores["dice"] + max(scores["case_scores_of_heads"].values())) / 2 for scores in checkpoints.values())
    score_of = {
        name: scores for name, scores in checkpoints.items() if chosen["case_score"] == max(scores["case_scores_of_heads"].values())
    }
    assert best in [(scores["dice"] + chosen["case_score"]) / 2 for scores in score_of.values()]
    tables = {name: set(scores["case_scores_of_heads"]) for name, scores in checkpoints.items()}
    assert {"refit", "joint"} <= tables["checkpoint_final.pth"]
    assert "joint" in tables[CHECKPOINT] and not [name for name in tables[CHECKPOINT] if name.startswith("refit")]
    assert (model / "fold_0" / "validation_best_classification" / table_name("joint_max")).is_file()
