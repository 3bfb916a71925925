"""Curves for TensorBoard, in the subfolder ``tensorboard`` of the fold's folder."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MissingPackageError

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Writes event files; ``tensorboard --logdir`` of any folder above shows all trainings below it.

    What an earlier run in the folder has logged for epochs that are trained now is hidden by TensorBoard.

    Args:
        output_folder: Folder of the fold.
        resume: Whether an earlier run is continued; the first epoch that is logged tells where.
    """

    def __init__(self, output_folder: str | os.PathLike, resume: bool) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "nnUNet_tensorboard_enabled is set, but tensorboard is not installed. Install it (pip install tensorboard) or unset the "
                "variable."
            ) from error
        self._writer_class = SummaryWriter
        self._folder = Path(output_folder) / FOLDER
        self._writer: Any = None
        self._config: dict[str, Any] = {}
        self._resume = resume
        self._step = 0

    def update_config(self, config: dict) -> None:
        """Add to the settings, shown as text."""
        self._config.update(config)
        if self._writer is not None:
            self._write_config()

    def log(self, key: str, value: Any, step: int) -> None:
        """Log a value of an epoch: a number as a point of a curve, anything else as text."""
        self._open(purge_step=step)
        self._step = step
        self._write(key, value)

    def log_summary(self, key: str, value: Any) -> None:
        """Log a value of the whole training at the last epoch that was logged here."""
        # A validation that is repeated logs no epoch, and the curves of the training stay.
        self._open(purge_step=None if self._resume else 0)
        self._write(key, value)

    def _open(self, purge_step: int | None) -> None:
        """Make the writer when the first epoch is known: everything of that epoch and later ones counts as never logged."""
        if self._writer is None:
            self._writer = self._writer_class(log_dir=str(self._folder), purge_step=purge_step)
            self._step = purge_step or 0
            self._write_config()

    def _write(self, key: str, value: Any) -> None:
        """Write one value at once, so that it can be looked at during a long epoch."""
        if not _is_number(value):
            self._writer.add_text(key, str(value), self._step)
        elif math.isfinite(value):
            self._writer.add_scalar(key, float(value), self._step)
        self._writer.flush()

    def _write_config(self) -> None:
        """The settings as indented JSON, which TensorBoard shows as it is."""
        if not self._config:
            return
        lines = json.dumps(self._config, indent=2, default=str).splitlines()
        self._writer.add_text("config", "\n".join(f"    {line}" for line in lines), self._step)


def _is_number(value: Any) -> bool:
    """Whether a value is one number, of Python, numpy or torch."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)
