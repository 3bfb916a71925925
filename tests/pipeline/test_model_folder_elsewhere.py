"""A model that was trained with missing labels, its folder copied elsewhere, or exported and installed: the same classes to the last digit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_datasets import PLANS, tiny_case, write_image

from nnunetv2.cli.calibrate_classification import main as calibrate
from nnunetv2.cli.model_sharing import export_entry, install_entry
from nnunetv2.cli.predict import predict_entry, predict_modelfolder_entry
from nnunetv2.cli.train import main as train

DATASET, TRAINER, CONFIGURATION = "Dataset001_Classes", "nnUNetTrainerMultitask", "3d_fullres"
WAYS = {  # what is appended to the command
    "refitted heads": [],
    "joint heads": ["--cls_heads", "joint"],
    "not calibrated": ["--cls_no_calibration"],
}


@pytest.fixture(scope="module", params=["cases", "patches"])
def tables(request: pytest.FixtureRequest, tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``classification.csv`` by way of predicting, where the model was trained and from a copy after everything else was removed."""
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")
    images = elsewhere / "images"
    images.mkdir()
    write_image(tiny_case(50)[0], images / "one_tile_0000.nii.gz")
    write_image(np.concatenate([tiny_case(index)[0] for index in (51, 52)]), images / "several_tiles_0000.nii.gz")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_n_proc_DA", "0")
        environment.setenv("nnUNet_def_n_proc", "1")
        for name in ("raw", "preprocessed"):
            shutil.copytree(tiny_preprocessed.parent / name / DATASET, home / name / DATASET)
            environment.setenv(f"nnUNet_{name}", str(home / name))
        environment.setenv("nnUNet_results", str(home / "results"))
        with open(home / "preprocessed" / DATASET / "labels.csv", newline="", encoding="utf-8") as file:
            assert any(cell == "" for row in csv.reader(file) for cell in row)
        short = ["--epochs", "1", "--iterations_per_epoch", "2", "--seed", "3", "-device", "cpu", "--head_refit", request.param]
        train(["1", CONFIGURATION, "0", "-tr", TRAINER, "-p", PLANS, *short])
        model = home / "results" / DATASET / f"{TRAINER}__{PLANS}__{CONFIGURATION}"
        here = {"before the calibration": predicted(predict_entry, named(), images, elsewhere / "before")}
        calibrate(["-m", str(model)])
        for way, options in WAYS.items():
            here[way] = predicted(predict_entry, [*named(), *options], images, elsewhere / f"here {way}")
        copied = shutil.copytree(model, elsewhere / "somewhere" / model.name)
        export_entry(["-d", "1", "-o", str(elsewhere / "model.zip"), *named()[2:], "-f", "0"])
        shutil.rmtree(home)
        for name in ("raw", "preprocessed", "results"):
            environment.delenv(f"nnUNet_{name}")
        for way, options in WAYS.items():
            there = predicted(predict_modelfolder_entry, ["-m", str(copied), *options], images, elsewhere / f"there {way}")
            here[f"{way}, elsewhere"] = there
        environment.setenv("nnUNet_results", str(elsewhere / "results"))
        install_entry([str(elsewhere / "model.zip")])
        for way, options in WAYS.items():
            here[f"{way}, installed"] = predicted(predict_entry, [*named(), *options], images, elsewhere / f"installed {way}")
    return {"texts": here, "copy": copied}


def named() -> list[str]:
    """The model by its names."""
    return ["-d", "1", "-c", CONFIGURATION, "-tr", TRAINER, "-p", PLANS]


def predicted(command: Any, model: list[str], images: Path, output: Path) -> str:
    workers = ["-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar"]
    command(["-i", str(images), "-o", str(output), *model, "-f", "0", "--save_cls", *workers])
    return (output / "classification.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("way", list(WAYS))
def test_a_copied_or_installed_model_predicts_the_same_classes(way: str, tables: dict[str, Any]) -> None:
    texts = tables["texts"]
    assert texts[f"{way}, elsewhere"] == texts[way]
    assert texts[f"{way}, installed"] == texts[way]
    assert len(texts[way].splitlines()) == 3


def test_the_ways_differ(tables: dict[str, Any]) -> None:
    """So that a copy which lost heads or calibration would show."""
    texts = tables["texts"]
    assert texts["not calibrated"] != texts["joint heads"]
    assert "raw_probability" in texts["refitted heads"] and "raw_probability" not in texts["not calibrated"]
    assert texts["not calibrated"] == texts["before the calibration"]


def test_the_copy_needs_no_table_of_labels(tables: dict[str, Any]) -> None:
    assert not list(tables["copy"].rglob("labels.csv"))
