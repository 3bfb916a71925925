"""The command measures a training of a tiny dataset and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_datasets import PLANS

from nnunetv2.benchmark import training_speed
from nnunetv2.benchmark.training_speed import time_calls
from nnunetv2.cli.benchmark import main

MEASURED = ("read_seconds", "load_seconds", "step_seconds", "iteration_seconds")


@pytest.mark.parametrize(("trainer", "workers"), [("nnUNetTrainer", "0"), ("nnUNetTrainerMultitask", "1")])
def test_every_part_is_measured(tiny_training, tmp_path: Path, capsys, monkeypatch, trainer: str, workers: str) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    file = tmp_path / "new" / "speed.json"
    main(["-d", "1", "-p", PLANS, "-c", "3d_fullres", "-tr", trainer, "-device", "cpu", "-seconds", "0.1", "-o", str(file)])
    said = capsys.readouterr().out
    assert "Bottleneck: " in said and "network step" in said and "Epoch 0" not in said
    speed = json.loads(file.read_text())
    assert all(speed[name] > 0 for name in MEASURED) and speed["augment_seconds"] >= 0
    assert speed["iteration_seconds"] >= speed["wait_seconds"] >= 0
    assert (speed["trainer"], speed["workers"], speed["dataset"]) == (trainer, int(workers), "Dataset001_Classes")
    assert speed["bottleneck"]["kind"] in said
    assert not list(tiny_training["results"].iterdir())


def test_folds_are_not_written_for_a_measurement(tiny_training, tmp_path: Path, monkeypatch) -> None:
    """Preprocessed data may be another one's, and read-only; without splits_final.json the trainer makes up folds."""
    preprocessed = tmp_path / "preprocessed"
    shutil.copytree(tiny_training["preprocessed"] / "Dataset002_Plain", preprocessed / "Dataset002_Plain")
    (preprocessed / "Dataset002_Plain" / "splits_final.json").unlink(missing_ok=True)
    before = sorted(preprocessed.rglob("*"))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    main(["-d", "2", "-p", PLANS, "-c", "3d_fullres", "-device", "cpu", "-seconds", "0.1"])
    assert sorted(preprocessed.rglob("*")) == before


def test_a_dataset_that_is_not_preprocessed_is_one_line(nnunet_folders, capsys) -> None:
    (nnunet_folders["preprocessed"] / "Dataset009_None").mkdir()
    with pytest.raises(SystemExit):
        main(["-d", "9", "-c", "3d_fullres", "-device", "cpu"])
    assert "nnUNetv2_plan_and_preprocess -d 9" in capsys.readouterr().err
    assert not list(nnunet_folders["results"].iterdir())


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for the module."""
    clock = [0.0]
    monkeypatch.setattr(training_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    return pass_time


def test_the_mean_is_over_the_calls_after_the_warm_up(spend: Callable[[float], None]) -> None:
    durations = iter([5.0, 1.0, 3.0, 2.0, 9.0])
    assert time_calls(lambda: spend(next(durations)), 2.5, warm_up=1) == (2.0, 3)


def test_slow_calls_are_not_repeated_for_long(spend: Callable[[float], None]) -> None:
    assert time_calls(lambda: spend(20.0), 1.0, warm_up=5) == (20.0, 1)
