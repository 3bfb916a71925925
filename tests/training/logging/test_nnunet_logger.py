from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2.training.logging.nnunet_logger import (
    EXTERNAL_LOGGERS,
    LocalLogger,
    MetaLogger,
    MissingPackageError,
    WandbLogger,
    get_cluster_job_id,
)


class Recorder:
    """An external logger."""

    def __init__(self) -> None:
        self.logged: list[tuple] = []

    def update_config(self, config: dict) -> None:
        self.logged.append(("config", config))

    def log(self, key: str, value: object, step: int) -> None:
        self.logged.append((key, value, step))

    def log_summary(self, key: str, value: object) -> None:
        self.logged.append(("summary", key, value))


@pytest.fixture(autouse=True)
def no_external_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*EXTERNAL_LOGGERS, "nnUNet_wandb_project", "LSB_JOBID", "SLURM_JOB_ID"):
        monkeypatch.delenv(variable, raising=False)


def log_epoch(logger: LocalLogger | MetaLogger, epoch: int) -> None:
    for key, value in {
        "epoch_start_timestamps": 100.0 * epoch,
        "lrs": 0.01,
        "train_losses": np.float32(0.5),
        "val_losses": np.float32(0.6),
        "mean_fg_dice": np.float32(0.4),
        "dice_per_class_or_region": [0.3, 0.5],
        "epoch_end_timestamps": 100.0 * epoch + 90,
    }.items():
        logger.log(key, value, epoch)


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")


def test_moving_average_starts_at_the_first_value_and_keeps_nine_tenths() -> None:
    logger = LocalLogger()
    for epoch, dice in enumerate([0.5, 0.6, 0.7]):
        logger.log("mean_fg_dice", dice, epoch)
    assert logger.get_value("ema_fg_dice") == pytest.approx([0.5, 0.51, 0.529])


def test_an_epoch_without_foreground_does_not_end_the_moving_average() -> None:
    logger = LocalLogger()
    for epoch, dice in enumerate([math.nan, 0.5, math.nan, 0.6]):
        logger.log("mean_fg_dice", dice, epoch)
    assert logger.get_value("ema_fg_dice")[1:] == pytest.approx([0.5, 0.5, 0.51])


def test_case_scores_have_a_moving_average_too() -> None:
    logger = LocalLogger()
    logger.log("classification/case_score", 0.5, 0)
    logger.log("classification/case_score", 1.0, 1)
    assert logger.get_value("classification/ema_case_score", 1) == pytest.approx(0.55)


def test_unknown_keys_are_added_and_earlier_epochs_are_nan() -> None:
    logger = LocalLogger()
    logger.log("my_score", 3.0, 2)
    values = logger.get_value("my_score")
    assert len(values) == 3 and math.isnan(values[0]) and values[2] == 3


def test_a_gap_in_a_segmentation_curve_is_an_error() -> None:
    logger = LocalLogger()
    logger.log("lrs", 0.1, 0)
    with pytest.raises(ValueError, match="lrs of epoch 2.*epoch 1 is missing"):
        logger.log("lrs", 0.1, 2)


def test_the_last_epoch_can_be_overwritten_and_no_other() -> None:
    logger = LocalLogger()
    for epoch in range(2):
        logger.log("lrs", 0.1, epoch)
    logger.log("lrs", 0.2, 1)
    assert logger.get_value("lrs") == [0.1, 0.2]
    with pytest.raises(ValueError, match="Only the last"):
        logger.log("lrs", 0.2, 0)


def test_curves_survive_a_checkpoint() -> None:
    logger = LocalLogger()
    log_epoch(logger, 0)
    logger.log("classification/case_score", 0.5, 0)
    restored = LocalLogger()
    restored.load_checkpoint(logger.get_checkpoint())
    assert restored.my_fantastic_logging == logger.my_fantastic_logging
    log_epoch(restored, 1)
    assert len(logger.get_value("lrs")) == 1  # a copy


def test_added_curves_in_a_checkpoint_are_as_long_as_the_others() -> None:
    logger = LocalLogger()
    log_epoch(logger, 0)
    logger.log("my_score", 3.0, 0)
    log_epoch(logger, 1)
    assert {len(values) for values in logger.get_checkpoint().values()} == {2}


def test_a_checkpoint_of_stock_nnunet_can_be_continued() -> None:
    stock = LocalLogger()
    log_epoch(stock, 0)
    logger = LocalLogger()
    logger.load_checkpoint({key: values for key, values in stock.get_checkpoint().items() if key != "epoch_end_timestamps"})
    log_epoch(logger, 1)
    assert len(logger.get_value("epoch_end_timestamps")) == 2


def test_lists_go_to_external_loggers_by_class(tmp_path: Path) -> None:
    logger = MetaLogger(tmp_path, resume=False)
    recorder = Recorder()
    logger.loggers.append(recorder)
    logger.log("dice_per_class_or_region", [0.3, 0.5], 0)
    logger.log("mean_fg_dice", 0.4, 0)
    logger.log_summary("final_val/foreground_dice", 0.9)
    logger.update_config({"fold": 0})
    assert recorder.logged == [
        ("dice_per_class_or_region/class_1", 0.3, 0),
        ("dice_per_class_or_region/class_2", 0.5, 0),
        ("mean_fg_dice", 0.4, 0),
        ("ema_fg_dice", 0.4, 0),
        ("summary", "final_val/foreground_dice", 0.9),
        ("config", {"fold": 0}),
    ]


def test_a_strange_switch_for_wandb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_wandb_enabled", "perhaps")
    with pytest.raises(RuntimeError, match="nnUNet_wandb_enabled='perhaps'"):
        MetaLogger(tmp_path, resume=False)


@pytest.mark.parametrize("variable", EXTERNAL_LOGGERS)
def test_loggers_are_off_unless_asked_for(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "False", "false"):
        monkeypatch.setenv(variable, value)
        assert MetaLogger(tmp_path, resume=False).loggers == []


def test_several_loggers_at_once_get_the_same(tmp_path: Path) -> None:
    logger = MetaLogger(tmp_path, resume=False)
    logger.loggers += [Recorder(), Recorder()]
    logger.log("classification/subtype/auroc", 0.9, 0)
    assert [recorder.logged for recorder in logger.loggers] == [[("classification/subtype/auroc", 0.9, 0)]] * 2


class Failing(Recorder):
    """Works until its service is gone."""

    def log(self, key: str, value: object, step: int) -> None:
        super().log(key, value, step)
        raise ConnectionError("the service is gone")


def test_a_logger_that_fails_is_reported_once_and_ends_nothing(tmp_path: Path) -> None:
    warnings: list[str] = []
    logger = MetaLogger(tmp_path, resume=False, warn=warnings.append)
    failing, other = Failing(), Recorder()
    logger.loggers += [failing, other]
    log_epoch(logger, 0)
    logger.log_summary("final_val/foreground_dice", 0.9)
    assert warnings == ["Failing failed, the training goes on without it: ConnectionError: the service is gone"]
    assert len(failing.logged) == 1
    assert len(other.logged) == 10  # two for the list of classes, one for the moving average, one for the summary
    assert logger.get_value("lrs", 0) == 0.01


def test_a_logger_that_cannot_start_ends_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    (tmp_path / "progress.csv").write_text("epoch,lrs\nfirst,0.1\n")  # by somebody else
    logger = MetaLogger(tmp_path, resume=True, warn=warnings.append)
    assert logger.loggers == []
    assert len(warnings) == 1 and warnings[0].startswith("CSVLogger could not start, the training goes on without it: ValueError")
    log_epoch(logger, 0)


@pytest.mark.parametrize(
    ("variable", "package"), [("nnUNet_wandb_enabled", "wandb"), ("nnUNet_tensorboard_enabled", "torch.utils.tensorboard")]
)
def test_a_missing_package_is_an_error_before_the_training(
    variable: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"{variable} is set, but .* is not installed. Install it"):
        MetaLogger(tmp_path, resume=False)


def test_external_loggers_are_not_imported_unless_chosen() -> None:
    code = (
        "import sys, tempfile, nnunetv2.training.nnUNetTrainer.nnUNetTrainer\n"
        "from nnunetv2.training.logging.nnunet_logger import MetaLogger\n"
        "MetaLogger(tempfile.gettempdir(), resume=False)\n"
        "names = {'wandb', 'tensorboard', 'torch.utils.tensorboard', 'nnunetv2.training.logging.csv_logger'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {names}' if names else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_first_process_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank, number in ((1, 0), (0, 1)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert len(MetaLogger(tmp_path, resume=False).loggers) == number


def rows(folder: Path, name: str = "progress.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_each_epoch_and_a_column_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    logger = MetaLogger(tmp_path, resume=False)
    log_epoch(logger, 0)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0"]  # as soon as the epoch is over
    logger.log("classification/subtype/auroc", 0.75, 1)
    log_epoch(logger, 1)
    logger.log("my_score", 2.0, 1)
    logger.log_summary("final_val/foreground_dice", 0.9)
    first, second = rows(tmp_path)
    assert (first["dice_per_class_or_region/class_2"], first["ema_fg_dice"], first["my_score"]) == ("0.5", "0.4", "")
    assert (second["classification/subtype/auroc"], second["my_score"]) == ("0.75", "2.0")
    assert rows(tmp_path, "progress_summary.csv") == [{"key": "final_val/foreground_dice", "value": "0.9"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.csv", "progress_summary.csv"]


def test_csv_of_a_continued_training_keeps_the_epochs_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_csv_enabled", "1")
    for resume, epochs in ((False, (0, 1, 2, 3)), (True, (1, 2))):
        logger = MetaLogger(tmp_path, resume=resume)
        for epoch in epochs:
            logger.loggers[0].log("lrs", 0.1 + resume, epoch)
            logger.loggers[0].log("epoch_end_timestamps", 5.0, epoch)
    MetaLogger(tmp_path, resume=True).log_summary("final_val/foreground_dice", 0.8)  # a validation that is repeated
    assert [(row["epoch"], row["lrs"]) for row in rows(tmp_path)] == [("0", "0.1"), ("1", "1.1"), ("2", "1.1")]
    MetaLogger(tmp_path, resume=False).loggers[0].log("epoch_end_timestamps", 5.0, 0)
    assert len(rows(tmp_path)) == 1


def test_tensorboard_shows_the_curves_of_the_continued_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("nnUNet_tensorboard_enabled", "1")
    for resume, epochs in ((False, (0, 1, 2)), (True, (2, 3))):
        logger = MetaLogger(tmp_path, resume=resume)
        logger.update_config({"hparas": {"initial_lr": 0.01}})
        if resume:
            logger.local_logger.load_checkpoint({"lrs": [0.1, 0.1]})
        for epoch in epochs:
            logger.log("lrs", np.float32(0.5 if resume else 0.1), epoch)
            logger.log("dice_per_class_or_region", [0.25, math.nan], epoch)
    logger.log_summary("final_val/foreground_dice", 0.75)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("lrs")] == [0, 1, 2, 3]
    assert [event.value for event in events.Scalars("lrs")] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert "dice_per_class_or_region/class_1" in events.Tags()["scalars"]
    assert "dice_per_class_or_region/class_2" not in events.Tags()["scalars"]  # not a number in every epoch
    assert [(event.step, event.value) for event in events.Scalars("final_val/foreground_dice")] == [(3, 0.75)]
    MetaLogger(tmp_path, resume=True).log_summary("final_val/foreground_dice", 0.8)  # a validation that is repeated
    events.Reload()
    assert [event.step for event in events.Scalars("lrs")] == [0, 1, 2, 3]
    assert [event.value for event in events.Scalars("final_val/foreground_dice")] == pytest.approx([0.75, 0.8])
    assert "initial_lr" in events.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    monkeypatch.setenv("nnUNet_wandb_project", "mine")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    logger = WandbLogger(tmp_path, resume=True)  # nothing to continue
    assert (logger.run.project, logger.run.config["JobID"], logger.first_step) == ("mine", "77", 0)
    logger.update_config({"fold": 0})
    logger.log("lrs", 0.1, 0)
    logger.log("lrs", 0.2, 1)
    logger.log_summary("final_val/foreground_dice", 0.75)
    assert (logger.run.config["fold"], logger.run.summary["final_val/foreground_dice"]) == (0, 0.75)
    run_id = logger.run.id
    logger.run.finish()
    continued = WandbLogger(tmp_path, resume=True)
    assert continued.run.id == run_id
    continued.first_step = 2
    continued.log("lrs", 0.3, 1)  # known already, which W&B cannot change
    continued.log("lrs", 0.4, 2)
    continued.run.finish()
    afresh = WandbLogger(tmp_path, resume=False)
    assert afresh.run.id != run_id
    afresh.run.finish()


def test_the_job_is_named_by_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_cluster_job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    assert get_cluster_job_id() == "2"
    monkeypatch.setenv("LSB_JOBID", "1")
    assert get_cluster_job_id() == "1"


def test_progress_png_grows_by_the_classification_panels_and_stays_small(tmp_path: Path) -> None:
    logger = LocalLogger()
    log_epoch(logger, 0)
    logger.plot_progress_png(tmp_path)
    without = png_size(tmp_path / "progress.png")
    logger.log("classification/subtype/macro_f1", 0.5, 0)
    logger.log("classification/subtype/train_loss", 0.9, 0)
    logger.log("classification/subtype/auroc", math.nan, 0)  # a class absent from the fold
    logger.log("classification/case_score", 0.5, 0)
    logger.plot_progress_png(tmp_path)
    with_classes = png_size(tmp_path / "progress.png")
    assert with_classes[0] == without[0] and with_classes[1] > without[1]
    assert max(with_classes) < 2500
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_nothing_is_drawn_before_the_first_epoch(tmp_path: Path) -> None:
    LocalLogger().plot_progress_png(tmp_path)
    assert not list(tmp_path.iterdir())
