"""A cascade: the second stage is trained with what the first one predicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_datasets import PLANNER, PLANS, SUBTYPE, write_tiny_dataset

from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry, preprocess_entry
from nnunetv2.cli.train import main as train
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

DATASET = "Dataset001_Tiny"


def test_second_stage_sees_the_labels_of_the_first(nnunet_folders: dict[str, Path]) -> None:
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
