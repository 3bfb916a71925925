"""A learning rate that rises first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

STAGES = ("warmup_all", "train")


class nnUNetTrainer_warmup(nnUNetTrainer):
    """Linear warm-up, then polynomial decay over the epochs that are left. The optimiser and its momenta stay."""

    warmup_duration_whole_net: int = 50  # epochs
    training_stage: str | None = None  # one of STAGES, once there is an optimiser

    def configure_optimizers(self, stage: str = "warmup_all") -> tuple[torch.optim.Optimizer, Any]:
        """Optimizer and learning rate schedule of a stage; the optimizer is made once.

        Args:
            stage: ``warmup_all`` or ``train``.
        """
        if stage not in STAGES:
            raise ValueError(f"There is no stage {stage!r} of the learning rate, expected one of {', '.join(STAGES)}.")
        if stage == self.training_stage:
            return self.optimizer, self.lr_scheduler
        optimizer = super().configure_optimizers()[0] if self.optimizer is None else self.optimizer
        if stage == "warmup_all":
            scheduler: Any = Lin_incr_LRScheduler(optimizer, self.initial_lr, self.warmup_duration_whole_net)
        else:
            scheduler = PolyLRScheduler_offset(optimizer, self.initial_lr, self.num_epochs, self.warmup_duration_whole_net)
        self.print_to_log_file(f"Learning rate: stage {stage}")
        self.training_stage = stage
        return optimizer, scheduler

    def on_train_epoch_start(self) -> None:
        self.enter_stage_of_epoch()
        super().on_train_epoch_start()

    def load_checkpoint(self, filename_or_checkpoint: dict | str | Path) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        self.enter_stage_of_epoch()

    def enter_stage_of_epoch(self) -> None:
        """Let the current epoch decide about the schedule."""
        stage = "warmup_all" if self.current_epoch < self.warmup_duration_whole_net else "train"
        self.optimizer, self.lr_scheduler = self.configure_optimizers(stage)
