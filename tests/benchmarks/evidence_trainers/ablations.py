"""One change each to the trainer with classes: see ``documentation/classification-evidence.md``.

Found through ``nnUNet_extTrainer``.
"""

from __future__ import annotations

from typing import Any

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


class nnUNetTrainerWithoutEvidenceWeights(nnUNetTrainerMultitask):
    """Every patch of a case teaches its class alike, whatever the patch shows."""

    def class_label_arguments(self) -> dict[str, Any]:
        return {**super().class_label_arguments(), "evidence_weights": {}}


class nnUNetTrainerAllStages(nnUNetTrainerMultitask):
    """Heads of the joint training on every stage of the encoder."""

    def build_heads(self) -> dict[str, nn.Module]:
        self.head_stages = tuple(range(len(encoder_channels(self.network))))
        return super().build_heads()


class nnUNetTrainerMultitaskNoMirroring(nnUNetTrainerMultitask, nnUNetTrainerNoMirroring):
    """Without mirrored copies, in training and prediction."""
