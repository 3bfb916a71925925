"""Adam and AdamW with nnU-Net's learning rate schedule."""

from __future__ import annotations

from typing import Any

import torch

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerAdam(nnUNetTrainer):
    """AdamW, in the variant AMSGrad."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.AdamW(self.segmentation_parameters(), lr=self.initial_lr, weight_decay=self.weight_decay, amsgrad=True)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class nnUNetTrainerVanillaAdam(nnUNetTrainer):
    """Adam, with the weight decay as a part of the gradient."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.Adam(self.segmentation_parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class nnUNetTrainerVanillaAdam1en3(nnUNetTrainerVanillaAdam):
    initial_lr = 1e-3


class nnUNetTrainerVanillaAdam3en4(nnUNetTrainerVanillaAdam):
    initial_lr = 3e-4


class nnUNetTrainerAdam1en3(nnUNetTrainerAdam):
    initial_lr = 1e-3


class nnUNetTrainerAdam3en4(nnUNetTrainerAdam):
    initial_lr = 3e-4
