"""Training on Dice alone, and on a Dice without smoothing."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerDiceLoss(nnUNetTrainer):
    """Dice without cross-entropy."""

    voxel_loss_weight = 0


class nnUNetTrainerDiceCELoss_noSmooth(nnUNetTrainer):
    """Dice and cross-entropy; a structure that is absent and not predicted has a Dice of 0 instead of 1."""

    dice_smooth = 0
