from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger


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


def test_lists_go_to_external_loggers_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
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
