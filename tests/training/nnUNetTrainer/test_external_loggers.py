"""What external loggers get from a training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny_datasets import PLANS
from tiny_trainings import make_trainer

from nnunetv2.cli.train import main as train
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask


class Breaks:
    """A logger that fails from the first epoch on."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def update_config(self, config: dict) -> None:
        self.calls.append(config)

    def log(self, key: str, value: Any, step: int) -> None:
        self.calls.append(key)
        raise ConnectionError("gone")


def test_scores_of_classes_are_logged_and_a_broken_logger_ends_nothing(
    tiny_training: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "true")
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"], num_epochs=1, num_iterations_per_epoch=1)
    broken = Breaks()
    trainer.logger.loggers.insert(0, broken)
    trainer.disable_checkpointing = True
    trainer.head_refit = "none"
    trainer.run_training()
    assert broken.calls[0]["hparas"]["num_epochs"] == 1
    assert broken.calls[1:] == ["epoch_start_timestamps"]
    log = Path(trainer.log_file).read_text()
    assert log.count("WARNING: Breaks failed, the training goes on without it: ConnectionError: gone") == 1
    with open(Path(trainer.output_folder) / "progress.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["classification/case_score"] != ""
    assert any(key.startswith("classification/subtype/") for key in row)
    assert {"train_losses", "ema_fg_dice", "dice_per_class_or_region/class_1", "lrs"} <= set(row)


def test_loggers_learn_the_settings_but_nothing_about_single_cases(tiny_training: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[dict] = []
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.update_config", lambda self, config: configs.append(config))
    trainer = make_trainer(nnUNetTrainerMultitask, tiny_training["preprocessed"])
    assert trainer.logger.loggers == []
    assert set(configs[0]) == {"plans", "configuration", "fold", "dataset"}
    trainer_with_cases = type(trainer)(
        trainer.plans_manager.plans, "3d_fullres", 0, {**trainer.dataset_json, "case_groups": {"case_000": "Jane Doe"}}, trainer.device
    )
    assert "case_groups" in trainer_with_cases.dataset_json
    assert trainer_with_cases.logger.loggers == []
    assert "Jane Doe" not in str(configs[1])
    assert configs[1]["dataset"]["labels"] == trainer.dataset_json["labels"]


def test_a_repeated_validation_keeps_the_curves(tiny_training: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    options = ["2", "3d_fullres", "0", "-p", PLANS, "-device", "cpu"]
    train([*options, "--epochs", "1", "--iterations_per_epoch", "1"])
    fold = tiny_training["results"] / "Dataset002_Plain" / f"nnUNetTrainer__{PLANS}__3d_fullres" / "fold_0"
    tables = [(fold / name).read_text() for name in ("progress.csv", "progress_summary.csv")]
    assert "final_val/foreground_dice" in tables[1]
    (fold / "progress_summary.csv").write_text("key,value\nmine,1\n")
    train([*options, "--val"])
    assert (fold / "progress.csv").read_text() == tables[0]
    assert set(tables[1].splitlines()) | {"mine,1"} == set((fold / "progress_summary.csv").read_text().splitlines())
