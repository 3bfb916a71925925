"""Training on the voxels with the highest loss."""

from __future__ import annotations

import torch
from torch import nn

from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss, label_map_arguments
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PERCENT = 10  # of the voxels


class nnUNetTrainerTopk10Loss(nnUNetTrainer):
    """Cross-entropy of the worst tenth of the voxels, without Dice."""

    label_smoothing: float = 0

    def _build_loss(self) -> nn.Module:
        loss = TopKLoss(k=PERCENT, label_smoothing=self.label_smoothing, **label_map_arguments(self.label_manager))
        return self.with_deep_supervision(loss)


class nnUNetTrainerTopk10LossLS01(nnUNetTrainerTopk10Loss):
    """The same with a tenth of each label's probability spread over all labels."""

    label_smoothing = 0.1


class nnUNetTrainerDiceTopK10Loss(nnUNetTrainer):
    """Dice, and the cross-entropy of the worst tenth of the voxels."""

    def _build_loss(self) -> nn.Module:
        label_map_arguments(self.label_manager)  # refuses regions
        loss = DC_and_topk_loss(
            {"batch_dice": self.configuration_manager.batch_dice, "smooth": self.dice_smooth, "do_bg": False, "ddp": self.is_ddp},
            {"k": PERCENT, "label_smoothing": 0.0},
            ignore_label=self.label_manager.ignore_label,
        )
        if self._do_i_compile():
            loss.dc = torch.compile(loss.dc)
        return self.with_deep_supervision(loss)
