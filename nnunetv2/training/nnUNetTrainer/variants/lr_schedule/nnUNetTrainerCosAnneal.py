"""Cosine decay of the learning rate."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2.training.lr_scheduler.warmup import CosineAnnealingLR_offset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerCosAnneal(nnUNetTrainer):
    """Half a cosine from the initial learning rate to 0."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, CosineAnnealingLR_offset(optimizer, T_max=self.num_epochs)
