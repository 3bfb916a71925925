"""Training on cross-entropy alone."""

from __future__ import annotations

from torch import nn

from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, label_map_arguments
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerCELoss(nnUNetTrainer):
    """Cross-entropy without Dice, for labels that exclude each other."""

    def _build_loss(self) -> nn.Module:
        return self.with_deep_supervision(RobustCrossEntropyLoss(**label_map_arguments(self.label_manager)))


class nnUNetTrainerCELoss_5epochs(nnUNetTrainerCELoss):
    num_epochs = 5
