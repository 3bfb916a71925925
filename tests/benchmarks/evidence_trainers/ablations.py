"""One change each to the trainer with classes: see ``documentation/classification-evidence.md``.

Found through ``nnUNet_extTrainer``.
"""

from __future__ import annotations

from torch import nn

from nnunetv2.network_architecture.classification_heads import encoder_channels
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring


class nnUNetTrainerWeight003(nnUNetTrainerMultitask):
    """A larger share of the classes in the loss."""

    maximum_classification_loss_weight = 0.03


class nnUNetTrainerWeight01(nnUNetTrainerMultitask):
    """A share of the classes in the loss as in earlier projects that succeeded."""

    maximum_classification_loss_weight = 0.1


class nnUNetTrainerAllStages(nnUNetTrainerMultitask):
    """Heads of the joint training on every stage of the encoder."""

    def build_heads(self) -> dict[str, nn.Module]:
        self.head_stages = tuple(range(len(encoder_channels(self.network))))
        return super().build_heads()


class nnUNetTrainerLateClasses(nnUNetTrainerMultitask):
    """The weight of the classes rises over the first half of the training."""

    classification_warmup_share = 0.5


class nnUNetTrainerHeadLr003(nnUNetTrainerMultitask):
    """A learning rate of the heads ten times as large."""

    head_lr = 3e-3


class nnUNetTrainerMultitaskNoMirroring(nnUNetTrainerMultitask, nnUNetTrainerNoMirroring):
    """Without mirrored copies, in training and prediction."""


class nnUNetTrainerHeadLr001(nnUNetTrainerMultitask):
    """A learning rate of the heads three times as large as 3e-4."""

    head_lr = 1e-3
