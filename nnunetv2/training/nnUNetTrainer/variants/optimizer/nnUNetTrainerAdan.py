"""Adan (https://arxiv.org/abs/2208.06677), from the package adan-pytorch."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import CosineAnnealingLR_offset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerAdan(nnUNetTrainer):
    """Adan with nnU-Net's learning rate and schedule."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        try:
            from adan_pytorch import Adan
        except ImportError as error:
            raise RuntimeError(
                f"{type(self).__name__} needs the package adan-pytorch, which is not installed. Install it (pip install adan-pytorch) "
                "or choose another trainer (-tr)."
            ) from error
        optimizer = Adan(self.segmentation_parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class nnUNetTrainerAdan1en3(nnUNetTrainerAdan):
    initial_lr = 1e-3


class nnUNetTrainerAdan3en4(nnUNetTrainerAdan):
    initial_lr = 3e-4


class nnUNetTrainerAdan1en1(nnUNetTrainerAdan):
    initial_lr = 1e-1


class nnUNetTrainerAdanCosAnneal(nnUNetTrainerAdan):
    """Half a cosine from the initial learning rate to 0."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, CosineAnnealingLR_offset(optimizer, T_max=self.num_epochs)
