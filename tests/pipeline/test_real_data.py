"""The commands as a user types them, on real images: from raw files to masks, classes and scores."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.utilities.file_io import load_json

DATA = Path(__file__).parents[1] / "data" / "hippocampus"
MODEL = ("-tr", "nnUNetTrainerMultitask", "-p", "nnUNetResEncUNetXSPlans")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the three commands and an evaluation ran."""
    root = tmp_path_factory.mktemp("real_data")
    shutil.copytree(DATA, root / "nnUNet_raw" / "Dataset004_Hippocampus")
    (root / "images").mkdir()
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (DATA / "labelsTr").iterdir())[:2]
    for case in cases:
        shutil.copy(DATA / "imagesTr" / f"{case}_0000.nii.gz", root / "images")
    model = ("-d", "004", "-c", "3d_fullres", "-f", "0", *MODEL)
    _run(root, "nnUNetv2_plan_and_preprocess", "-d", "004", "-pl", "nnUNetPlannerResEncXS", "-c", "3d_fullres", "--verify_dataset_integrity", "-np", "2")
    _run(root, "nnUNetv2_train", "004", "3d_fullres", "0", *MODEL, "--seed", "1", "--epochs", "2", "--iterations_per_epoch", "8", "-device", "cpu")
    _run(root, "nnUNetv2_predict", "-i", root / "images", "-o", root / "out", *model, "--save_cls", "--save_probabilities", "-device", "cpu")
    _run(root, "nnUNetv2_evaluate_folder", DATA / "labelsTr", root / "out", "-djfile", root / "out" / "dataset.json",
         "-pfile", root / "out" / "plans.json", "--chill")
    return root


def _run(root: Path, command: str, *arguments: str | Path) -> str:
    """Run a command of the package in its own process and return what it printed."""
    environment = dict(os.environ, nnUNet_n_proc_DA="1", **{k: str(root / k) for k in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    program = Path(sys.executable).parent / command
    done = subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _model_folder(root: Path) -> Path:
    return root / "nnUNet_results" / "Dataset004_Hippocampus" / "nnUNetTrainerMultitask__nnUNetResEncUNetXSPlans__3d_fullres"


def test_every_image_gets_a_mask_on_its_own_grid(folders: Path) -> None:
    for image_file in sorted((folders / "images").iterdir()):
        image = sitk.ReadImage(str(image_file))
        mask = sitk.ReadImage(str(folders / "out" / image_file.name.replace("_0000", "")))
        assert mask.GetSize() == image.GetSize() and mask.GetSpacing() == image.GetSpacing() and mask.GetDirection() == image.GetDirection()
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}


def test_class_table_is_complete_and_probabilities_sum_to_one(folders: Path) -> None:
    with open(folders / "out" / "classification.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["identifier", "volume", "volume_probability_small", "volume_probability_large"]
    assert [row["identifier"] for row in rows] == sorted(p.name[:-12] for p in (folders / "images").iterdir())
    for row in rows:
        probabilities = {name: float(row[f"volume_probability_{name}"]) for name in ("small", "large")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["volume"] == max(probabilities, key=probabilities.get)


def test_stored_probabilities_give_the_stored_mask_and_class(folders: Path) -> None:
    file = next((folders / "out").glob("*.npz"))
    arrays = np.load(file)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file.with_suffix("")) + ".nii.gz"))
    assert np.array_equal(arrays["probabilities"].argmax(0), mask)
    with open(folders / "out" / "classification.csv", newline="", encoding="utf-8") as table:
        row = next(r for r in csv.DictReader(table) if r["identifier"] == file.stem)
    assert ("small", "large")[int(arrays["classification_volume"].argmax())] == row["volume"]


def test_validation_scores_equal_scikit_learns_on_the_table(folders: Path) -> None:
    from sklearn.metrics import f1_score

    validation = _model_folder(folders) / "fold_0" / "validation"
    truth = dict(line.strip().split(",") for line in (DATA / "labels.csv").read_text().splitlines()[1:])
    summaries = load_json(validation / "classification_summary.json")
    assert set(summaries) == {"refit", "joint"}
    segmented = {Path(entry["prediction_file"]).name.removesuffix(".nii.gz") for entry in load_json(validation / "summary.json")["metric_per_case"]}
    for heads, table in (("refit", "classification.csv"), ("joint", "classification_joint.csv")):
        with open(validation / table, newline="", encoding="utf-8") as file:
            predicted = {row["identifier"]: row["volume"] for row in csv.DictReader(file)}
        assert set(predicted) == segmented
        known = [case for case in predicted if truth[case]]
        decided = [predicted[case] for case in known]
        expected = f1_score([truth[case] for case in known], decided, labels=["small", "large"], average="macro", zero_division=0)
        entry = summaries[heads]["tasks"]["volume"]
        assert entry["scores"]["macro_f1"] == pytest.approx(expected, abs=1e-9)
        assert entry["n"] == len(known)


def test_training_learns_something(folders: Path) -> None:
    import torch

    checkpoint = torch.load(_model_folder(folders) / "fold_0" / "checkpoint_final.pth", weights_only=True)
    losses = checkpoint["logging"]["train_losses"]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_evaluation_is_written(folders: Path) -> None:
    summary = load_json(folders / "out" / "summary.json")
    assert len(summary["metric_per_case"]) == 2 and 0 <= summary["foreground_mean"]["Dice"] <= 1
