"""A cascade: the second stage is trained with what the first one predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_datasets import PLANNER, PLANS, SUBTYPE, write_tiny_dataset

from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry, preprocess_entry
from nnunetv2.cli.predict import predict_entry as predict
from nnunetv2.cli.train import main as train
from nnunetv2.imageio.simpleitk_reader_writer import write_image
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

DATASET = "Dataset001_Tiny"


def test_second_stage_sees_the_labels_of_the_first(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_dataset(nnunet_folders["raw"] / DATASET, classification={"subtype": SUBTYPE})
    plan_and_preprocess_entry(["-d", "1", "-pl", PLANNER, "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar"])
    # The images are too small for the planner to make a cascade.
    file = nnunet_folders["preprocessed"] / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    full = plans["configurations"]["3d_fullres"]
    lowres = {**full, "data_identifier": f"{PLANS}_3d_lowres", "spacing": [1.25, 1.25, 1.25], "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_lowres"] = lowres
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    preprocess_entry(["-d", "1", "-plans_name", PLANS, "-c", "3d_lowres", "-np", "1", "--no_pbar"])

    options = ["-p", PLANS, "-tr", "nnUNetTrainerMultitask", "-device", "cpu", "--seed", "1", "--epochs", "1", "--iterations_per_epoch", "2"]
    train(["1", "3d_lowres", "all", *options])  # fold all validates, and thus predicts, every case
    results = nnunet_folders["results"] / DATASET
    next_stage = results / f"nnUNetTrainerMultitask__{PLANS}__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres"
    identifiers = sorted(path.stem for path in next_stage.glob("*.b2nd"))
    assert len(identifiers) == 10
    folder = str(nnunet_folders["preprocessed"] / DATASET / full["data_identifier"])
    data, _, previous, _ = nnUNetDatasetBlosc2(folder, None, str(next_stage)).load_case(identifiers[0])
    assert tuple(previous.shape)[-3:] == tuple(data.shape)[-3:]
    assert set(np.unique(previous[:])) <= {0, 1, 2}

    train(["1", "3d_cascade_fullres", "0", *options])
    validation = results / f"nnUNetTrainerMultitask__{PLANS}__3d_cascade_fullres" / "fold_0" / "validation"
    assert (validation / "summary.json").is_file()
    assert (validation / "classification.csv").is_file()

    images, first, second = nnunet_folders["raw"] / DATASET / "imagesTr", tmp_path / "first", tmp_path / "second"
    model = ["-d", "1", "-tr", "nnUNetTrainerMultitask", "-p", PLANS, "-device", "cpu", "-npp", "0", "-nps", "0", "-i", str(images)]
    second_stage = ["-c", "3d_cascade_fullres", "-f", "0", "-o", str(second), "--save_cls"]
    said = error_of(capsys, predict, *model, *second_stage)
    assert "Predict the same images with 3d_lowres first" in said
    predict([*model, "-c", "3d_lowres", "-f", "all", "-o", str(first)])
    said = error_of(capsys, predict, *model, "-c", "3d_lowres", "-f", "all", "-o", str(second), "-prev_stage_predictions", str(first))
    assert "has no previous stage" in said
    predict([*model, *second_stage, "-prev_stage_predictions", str(first)])
    before = probabilities(second)
    assert sorted(before) == identifiers
    for file in first.glob("*.nii.gz"):  # as if the first stage had found nothing
        write_image(0 * sitk.ReadImage(str(file)), file)
    predict([*model, *second_stage, "-prev_stage_predictions", str(first)])
    assert any(not np.array_equal(values, before[identifier]) for identifier, values in probabilities(second).items())

    # Another trainer without a first stage of its own; one case of the only other one is lost.
    said = error_of(capsys, train, "1", "3d_cascade_fullres", "0", *options, "-tr", "nnUNetTrainer")
    assert "10 of 10 cases have none" in said and "-prev_stage_tr nnUNetTrainerMultitask" in said
    train(["1", "3d_cascade_fullres", "0", *options, "-tr", "nnUNetTrainer", "-prev_stage_tr", "nnUNetTrainerMultitask"])
    (next_stage / f"{identifiers[3]}.b2nd").unlink()
    said = error_of(capsys, train, "1", "3d_cascade_fullres", "1", *options)
    assert f"1 of 10 cases have none in {next_stage}, for example {identifiers[3]}" in said
    said = error_of(capsys, train, "1", "3d_lowres", "1", *options, "-prev_stage_tr", "nnUNetTrainer")
    assert "3d_lowres is no second stage of a cascade" in said


def error_of(capsys: pytest.CaptureFixture[str], command: Callable, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        command([*arguments])
    assert stopped.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    table = read_classification_csv(folder / "classification.csv", {"subtype": ClassificationTask.from_dict("subtype", SUBTYPE)})
    return {identifier: row["subtype"] for identifier, row in table.items()}
