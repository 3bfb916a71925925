"""The curves of a training: kept by epoch, drawn into ``progress.png``, stored in checkpoints, forwarded to external loggers.

External loggers (Weights & Biases, TensorBoard, CSV files) are switched on by environment variables, any number of them at once, and
each is imported only then. None of them can end a training.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.progress_figure import save_progress_figure
from nnunetv2.utilities.checkpoint_io import SEGMENTATION_KEYS

_LOG = logging.getLogger(__name__)

# Logged by themselves whenever their source is; they decide which checkpoint is the best.
MOVING_AVERAGES = {"mean_fg_dice": "ema_fg_dice", "classification/case_score": "classification/ema_case_score"}
_PREVIOUS_SHARE = 0.9  # of the previous value in a moving average

# By the variable that switches it on: module and class, made from the output folder and whether a training is continued.
EXTERNAL_LOGGERS = {
    "nnUNet_wandb_enabled": ("nnunetv2.training.logging.nnunet_logger", "WandbLogger"),
    "nnUNet_tensorboard_enabled": ("nnunetv2.training.logging.tensorboard_logger", "TensorBoardLogger"),
    "nnUNet_csv_enabled": ("nnunetv2.training.logging.csv_logger", "CSVLogger"),
}

_TRUE, _FALSE = ("1", "True", "true"), ("0", "False", "false", "")


def get_cluster_job_id() -> str | None:
    """Id of the job that this process runs in, under LSF or SLURM."""
    return os.environ.get("LSB_JOBID") or os.environ.get("SLURM_JOB_ID")


class MissingPackageError(RuntimeError):
    """A logger was chosen whose package is not installed."""


class MetaLogger:
    """Keeps the curves here and forwards them to external loggers.

    An external logger has ``update_config(dict)``, ``log(key, value, step)`` and ``log_summary(key, value)``; those of your own are
    appended to ``loggers``. One that fails is reported once and left out from then on.

    Args:
        output_folder: Folder of the fold, for files of external loggers.
        resume: Whether an earlier run is continued.
        verbose: Report every value.
        warn: Called with the text of a warning; by default it goes to the module's logger.

    Raises:
        MissingPackageError: If a logger is chosen whose package is not installed: nothing is lost yet.
        RuntimeError: If an environment variable says neither yes nor no.
    """

    def __init__(
        self, output_folder: str | os.PathLike, resume: bool, verbose: bool = False, *, warn: Callable[[str], None] | None = None
    ) -> None:
        self.output_folder = output_folder
        self.resume = resume
        self.verbose = verbose
        self.local_logger = LocalLogger(verbose)
        self.loggers: list[Any] = []
        self._warn = _LOG.warning if warn is None else warn
        for variable, (module, class_name) in EXTERNAL_LOGGERS.items():
            if self._is_logger_enabled(variable) and _is_first_process():
                self._start(getattr(importlib.import_module(module), class_name))

    def _start(self, logger_class: Callable[[str | os.PathLike, bool], Any]) -> None:
        """Add a logger; one that cannot start, such as without a network, is left out."""
        try:
            self.loggers.append(logger_class(self.output_folder, self.resume))
        except MissingPackageError:
            raise
        except Exception as error:  # whatever it is, it is no reason not to train
            self._warn(f"{logger_class.__name__} could not start, the training goes on without it: {type(error).__name__}: {error}")

    def _call_all(self, method: str, *arguments: Any) -> None:
        """Call a method of every external logger."""
        for logger in list(self.loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # whatever it is, it is no reason to end a training
                self.loggers.remove(logger)
                self._warn(f"{type(logger).__name__} failed, the training goes on without it: {type(error).__name__}: {error}")

    @property
    def my_fantastic_logging(self) -> dict[str, list[Any]]:
        """The curves by key, one value per epoch."""
        return self.local_logger.my_fantastic_logging

    def update_config(self, config: dict) -> None:
        """Tell external loggers the settings of this training."""
        self._call_all("update_config", config)

    def log(self, key: str, value: Any, step: int) -> None:
        """Keep the value of an epoch; lists go to external loggers as ``{key}/class_{i}``, counted from 1."""
        self.local_logger.log(key, value, step)
        self._forward(key, value, step)
        if key in MOVING_AVERAGES:
            average = MOVING_AVERAGES[key]
            self._forward(average, self.local_logger.get_value(average, step), step)

    def log_summary(self, key: str, value: Any) -> None:
        """Tell external loggers a value of the whole training."""
        self._call_all("log_summary", key, value)

    def get_value(self, key: str, step: int | None) -> Any:
        """The value of an epoch; the whole list for ``None``."""
        return self.local_logger.get_value(key, step)

    def plot_progress_png(self, output_folder: str | os.PathLike) -> None:
        """Draw ``progress.png``."""
        self.local_logger.plot_progress_png(output_folder)

    def get_checkpoint(self) -> dict[str, list[Any]]:
        """The curves, for a checkpoint."""
        return self.local_logger.get_checkpoint()

    def load_checkpoint(self, checkpoint: Mapping[str, Sequence[Any]]) -> None:
        """Restore the curves of a checkpoint."""
        self.local_logger.load_checkpoint(checkpoint)

    def _forward(self, key: str, value: Any, step: int) -> None:
        """Send one value to the external loggers."""
        if isinstance(value, (list, tuple)):
            for i, entry in enumerate(value, start=1):
                self._call_all("log", f"{key}/class_{i}", entry, step)
        else:
            self._call_all("log", key, value, step)

    def _is_logger_enabled(self, env_var: str) -> bool:
        """Whether an environment variable switches a logger on."""
        value = os.environ.get(env_var, "0")
        if value not in _TRUE + _FALSE:
            raise RuntimeError(f"Environment variable {env_var}={value!r}: expected 1, True or true (on) or 0, False or false (off).")
        return value in _TRUE


class LocalLogger:
    """Lists with exactly one value per epoch.

    The curves of segmentation are known; any other key is added when it is first logged, and its missing epochs are NaN.

    Args:
        verbose: Report every value.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.my_fantastic_logging: dict[str, list[Any]] = {key: [] for key in SEGMENTATION_KEYS}

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Keep the value of an epoch, replacing an earlier one of the same epoch.

        Raises:
            ValueError: If an epoch of a segmentation curve was left out.
        """
        if self.verbose:
            _LOG.info("epoch %s, %s: %s", epoch, key, value)
        values = self.my_fantastic_logging.setdefault(key, [])
        if len(values) < epoch:
            if key in SEGMENTATION_KEYS:
                raise ValueError(f"{key} of epoch {epoch} was logged, but epoch {len(values)} is missing. Log every epoch once, in order.")
            values.extend([math.nan] * (epoch - len(values)))
        if len(values) == epoch:
            values.append(value)
        else:
            if epoch != len(values) - 1:
                last = len(values) - 1
                raise ValueError(f"{key} of epoch {epoch} was logged, but epoch {last} was logged before. Only the last can be changed.")
            _LOG.info("%s of epoch %s was logged before; %s is replaced by %s.", key, epoch, values[epoch], value)
            values[epoch] = value
        if key in MOVING_AVERAGES:
            self._log_moving_average(key, MOVING_AVERAGES[key], epoch)

    def get_value(self, key: str, step: int | None = None) -> Any:
        """The value of an epoch (negative counts from the end); the whole list for ``None``."""
        values = self.my_fantastic_logging[key]
        return values if step is None else values[step]

    def plot_progress_png(self, output_folder: str | os.PathLike) -> None:
        """Draw ``progress.png`` into a folder; nothing before the first epoch is complete."""
        if any(self.my_fantastic_logging[key] for key in ("train_losses", "val_losses", "mean_fg_dice", "epoch_end_timestamps")):
            save_progress_figure(self.my_fantastic_logging, Path(output_folder) / "progress.png")

    def get_checkpoint(self) -> dict[str, list[Any]]:
        """A copy of the curves. Added ones are as long as the others: stock nnU-Net draws as many epochs as the shortest has."""
        n_epochs = max(len(self.my_fantastic_logging[key]) for key in SEGMENTATION_KEYS)
        return {
            key: list(values) if key in SEGMENTATION_KEYS else values + [math.nan] * (n_epochs - len(values))
            for key, values in self.my_fantastic_logging.items()
        }

    def load_checkpoint(self, checkpoint: Mapping[str, Sequence[Any]]) -> None:
        """Restore the curves of a checkpoint of any version; a segmentation curve that it does not have is NaN so far."""
        n_epochs = max((len(values) for values in checkpoint.values()), default=0)
        curves: dict[str, list[Any]] = {key: [math.nan] * n_epochs for key in SEGMENTATION_KEYS}
        self.my_fantastic_logging = curves | {key: list(values) for key, values in checkpoint.items()}

    def _log_moving_average(self, key: str, average_key: str, epoch: int) -> None:
        """Log the exponential moving average. An epoch without a value (NaN) leaves it as it was."""
        current = self.my_fantastic_logging[key][epoch]
        averages = self.my_fantastic_logging.setdefault(average_key, [])
        previous = averages[epoch - 1] if epoch > 0 and len(averages) >= epoch else math.nan
        if math.isnan(previous):
            average = current
        elif math.isnan(current):
            average = previous
        else:
            average = _PREVIOUS_SHARE * previous + (1 - _PREVIOUS_SHARE) * current
        self.log(average_key, average, epoch)


nnUNetLogger = LocalLogger  # its name before nnU-Net 2.7


class WandbLogger:
    """Curves to Weights & Biases; environment variables ``nnUNet_wandb_project`` and ``nnUNet_wandb_mode``.

    Args:
        output_folder: Folder of the fold; the run's files go to its subfolder ``wandb``.
        resume: Go on with the last run of this folder, if there is one.
    """

    def __init__(self, output_folder: str | os.PathLike, resume: bool) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError(
                "nnUNet_wandb_enabled is set, but wandb is not installed. Install it (pip install wandb) or unset the variable."
            ) from error
        run_id = _last_wandb_run(Path(output_folder)) if resume else None
        self.run = wandb.init(
            dir=str(output_folder),
            project=os.environ.get("nnUNet_wandb_project", "nnunet"),
            mode=os.environ.get("nnUNet_wandb_mode", "online"),
            **({} if run_id is None else {"id": run_id, "resume": "allow"}),
        )
        # What was logged before the checkpoint that training goes on from cannot be changed any more.
        self.first_step = self.run.step if run_id is not None else 0
        self.update_config({"JobID": get_cluster_job_id()})

    def update_config(self, config: dict) -> None:
        """Add to the settings of the run."""
        self.run.config.update(config, allow_val_change=True)

    def log(self, key: str, value: Any, step: int) -> None:
        """Log a value of an epoch, unless a continued run already has it."""
        if step >= self.first_step:
            self.run.log({key: value}, step=step)

    def log_summary(self, key: str, value: Any) -> None:
        """Log a value of the whole training."""
        self.run.summary[key] = value


def _last_wandb_run(output_folder: Path) -> str | None:
    """Id of the last run in a folder, if there is one."""
    files = sorted((output_folder / "wandb" / "latest-run").glob("run-*.wandb"))
    return files[-1].stem.removeprefix("run-") if files else None


def _is_first_process() -> bool:
    """Whether this is rank 0, or not distributed at all."""
    import torch

    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
