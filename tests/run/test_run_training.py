"""run_training: what its options do on a tiny dataset."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_datasets import PLANS
from tiny_trainings import CPU, make_trainer, same

from nnunetv2.run import run_training as run_training_module
from nnunetv2.run.run_training import (
    _run_options,
    check_validates_further,
    get_trainer_from_args,
    run_training,
    slow_torch_warning,
    validate_further,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

Folders = dict[str, Path]


def run(dataset: int = 2, trainer: str = "nnUNetTrainer", fold: int | str = 0, **options: Any) -> None:
    lengths = {"num_epochs": 1, "num_iterations_per_epoch": 1, "seed": 0}
    run_training(dataset, "3d_fullres", fold, trainer, PLANS, device=CPU, **{**lengths, **options})


def fold_folder(folders: Folders, dataset: str = "Dataset002_Plain", trainer: str = "nnUNetTrainer", fold: int | str = 0) -> Path:
    return folders["results"] / dataset / f"{trainer}__{PLANS}__3d_fullres" / f"fold_{fold}"


@pytest.mark.parametrize(
    ("version", "device", "warns"),
    [
        ("2.9.0+cu128", "cuda", True),
        ("2.9.1", "cuda:0", True),
        ("2.9.0", "cpu", False),
        ("2.8.0", "cuda", False),
        ("2.10.0", "cuda", False),
    ],
)
def test_a_torch_release_known_to_be_slow_gives_a_warning(version: str, device: str, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert (f"torch {version} is known" in slow_torch_warning(torch.device(device))) == warns


def test_the_warning_about_torch_stands_in_the_log(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_training_module, "slow_torch_warning", lambda device: f"WARNING: slow on {device}")
    run()
    (log,) = fold_folder(tiny_training).glob("training_log_*.txt")
    assert "WARNING: slow on cpu" in log.read_text()


def test_val_predicts_again_without_training(tiny_training: Folders) -> None:
    run()
    fold = fold_folder(tiny_training)
    checkpoint = (fold / "checkpoint_final.pth").read_bytes()
    first = json.loads((fold / "validation" / "summary.json").read_text())
    for file in (fold / "validation").iterdir():
        file.unlink()
    run(only_run_validation=True)
    assert json.loads((fold / "validation" / "summary.json").read_text()) == first
    assert (fold / "checkpoint_final.pth").read_bytes() == checkpoint


def test_val_best_uses_the_best_checkpoint(tiny_training: Folders) -> None:
    run(num_epochs=2)
    fold = fold_folder(tiny_training)
    best = load_checkpoint_file(fold / "checkpoint_best.pth")
    for value in best["network_weights"].values():
        value.zero_()  # so that it can be told from the final one: everything is background
    torch.save(best, fold / "checkpoint_best.pth")
    (fold / "checkpoint_final.pth").unlink()
    run(only_run_validation=True, val_with_best=True)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert summary["foreground_mean"]["n_pred"] == 0
    assert summary["checkpoint"] == "checkpoint_best.pth"  # the file says whose results replaced those of the final checkpoint


def test_further_checkpoints_are_validated_beside_the_final_one(tiny_training: Folders) -> None:
    run(1, "nnUNetTrainerMultitask", further_validated_checkpoints=["checkpoint_best_joint.pth"])
    fold = fold_folder(tiny_training, "Dataset001_Classes", "nnUNetTrainerMultitask")
    final, further = (json.loads((fold / name / "summary.json").read_text()) for name in ("validation", "validation_best_joint"))
    assert "checkpoint" not in final
    assert further["checkpoint"] == "checkpoint_best_joint.pth"
    assert set(json.loads((fold / "validation" / "classification_summary.json").read_text())) == {"refit", "joint"}
    assert set(json.loads((fold / "validation_best_joint" / "classification_summary.json").read_text())) == {"joint"}
    before = {path: path.stat().st_mtime_ns for path in (fold / "validation").iterdir()}
    shutil.rmtree(fold / "validation_best_joint")
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint_best_dice.pth. .* found checkpoint_best.pth, checkpoint_best_class"):
        run(1, "nnUNetTrainerMultitask", only_run_validation=True, further_validated_checkpoints=["checkpoint_best_dice.pth"])
    run(1, "nnUNetTrainerMultitask", only_run_validation=True, further_validated_checkpoints=["checkpoint_best_joint.pth"])
    assert json.loads((fold / "validation_best_joint" / "summary.json").read_text()) == further
    assert {path: path.stat().st_mtime_ns for path in (fold / "validation").iterdir()} == before


class ValidatesByItself(nnUNetTrainer):
    """As users of nnU-Net write it: the folder has a fixed name."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        Path(self.output_folder, "validation").mkdir(exist_ok=True)
        Path(self.output_folder, "validation", "summary.json").write_text(
            "of the final checkpoint" if self.network is None else "of another"
        )


class ValidatesWhereAsked(ValidatesByItself):
    validates_into_validation_name = True

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        Path(self.output_folder, self.validation_name).mkdir()


class InheritsTheValidation(ValidatesByItself):
    validates_into_validation_name = True  # the method is another class's


def test_a_validation_of_the_users_own_does_not_replace_the_final_checkpoints_results(tiny_training: Folders) -> None:
    trainer = make_trainer(ValidatesByItself, tiny_training["preprocessed"], dataset="Dataset002_Plain")
    trainer.perform_actual_validation()
    Path(trainer.output_folder, "checkpoint_best.pth").touch()
    with pytest.raises(ValueError, match="-val_chk: ValidatesByItself validates in a way of its own .* set validates_into_validation_name"):
        validate_further(trainer, ["checkpoint_best.pth"])
    assert Path(trainer.output_folder, "validation", "summary.json").read_text() == "of the final checkpoint"
    with pytest.raises(ValueError, match=r"InheritsTheValidation .*ValidatesByItself\.perform"):
        check_validates_further(InheritsTheValidation)
    check_validates_further(ValidatesWhereAsked)


def test_such_a_trainer_is_refused_before_it_trains(tiny_training: Folders) -> None:
    with pytest.raises(ValueError, match="-val_chk: nnUNetTrainerBenchmark_5epochs validates in a way of its own"):
        run(trainer="nnUNetTrainerBenchmark_5epochs", further_validated_checkpoints=["checkpoint_best.pth"])
    assert not list(tiny_training["results"].iterdir())


def test_without_checkpointing_no_checkpoint_is_written(tiny_training: Folders) -> None:
    run(disable_checkpointing=True)
    fold = fold_folder(tiny_training)
    assert not list(fold.glob("*.pth"))
    assert (fold / "validation" / "summary.json").is_file()


def test_fold_all_trains_and_warns_about_its_scores(tiny_training: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    run(fold="all")
    assert "fold all validates on the training cases" in capsys.readouterr().out
    summary = json.loads((fold_folder(tiny_training, fold="all") / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 10


def test_pretrained_weights_are_the_start(tiny_training: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    source = fold_folder(tiny_training) / "checkpoint_final.pth"
    run(dataset=1, trainer="nnUNetTrainerMultitask", pretrained_weights=str(source))
    assert "keep their initial weights" in capsys.readouterr().out


def test_two_runs_with_one_seed_give_the_same_weights(tiny_training: Folders) -> None:
    weights = []
    for _ in range(2):
        run(dataset=1, trainer="nnUNetTrainerMultitask", seed=3)
        file = fold_folder(tiny_training, "Dataset001_Classes", "nnUNetTrainerMultitask") / "checkpoint_final.pth"
        weights.append(load_checkpoint_file(file)["network_weights"])
        os.unlink(file)
    assert same(*weights)


def test_an_epoch_validates_a_fifth_as_many_steps_as_it_trains() -> None:
    assert _run_options(3, 10) == {"num_epochs": 3, "num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 2}
    assert _run_options(None, 1) == {"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    assert _run_options(None, None) == {}


def test_a_missing_configuration_names_those_that_exist(tiny_training: Folders) -> None:
    with pytest.raises(ValueError, match="no configuration '3d_lowres'.*2d, 3d_fullres"):
        get_trainer_from_args(2, "3d_lowres", 0, "nnUNetTrainer", PLANS, device=CPU)


def test_a_gpu_that_is_not_there_is_an_error(tiny_training: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="finds no CUDA device"):
        run_training(2, "3d_fullres", 0, "nnUNetTrainer", PLANS)
