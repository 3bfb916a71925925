"""The usual way of adding classification to a segmentation network, as a yardstick: see ``documentation/classification-evidence.md``.

Found through ``nnUNet_extTrainer``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nnunetv2.network_architecture.classification_heads import HeadDescription, encoder_channels
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask


class AverageLinearHead(nn.Module):
    """One linear layer on the average of the bottleneck."""

    needs_segmentation = False

    def __init__(self, description: HeadDescription, channels: int) -> None:
        super().__init__()
        self.description = description
        self.output = nn.Linear(channels, description.task.num_logits)

    def forward(self, features: list[Tensor], segmentation_logits: Tensor | None = None) -> Tensor:
        return self.output(features[-1].flatten(2).mean(dim=2).float())


class nnUNetTrainerCommonRecipe(nnUNetTrainerMultitask):
    """Average-pooled bottleneck, linear head, nnU-Net's SGD for everything, losses added with weight 1, every patch counts the same."""

    maximum_classification_loss_weight = 1.0
    classification_warmup_share = 0.0
    head_refit = "none"

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.classification_tasks = {name: replace(task, evidence=(), context=()) for name, task in self.classification_tasks.items()}

    def build_heads(self) -> dict[str, nn.Module]:
        channels = encoder_channels(self.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return {
                name: AverageLinearHead(
                    HeadDescription(task=task, stages=(len(channels) - 1,), evidence=PredictedEvidence()), channels[-1]
                )
                for name, task in self.classification_tasks.items()
            }

    def build_classification_loss(self) -> ClassificationLoss:
        return ClassificationLoss(self.classification_tasks, label_smoothing=0.0)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        optimizer = torch.optim.SGD(
            self.network.parameters(), self.initial_lr, momentum=0.99, weight_decay=self.weight_decay, nesterov=True
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_head_optimizer(self) -> None:
        return None

    def head_optimizer_step(self) -> None:
        """The one optimiser updates the heads too."""
