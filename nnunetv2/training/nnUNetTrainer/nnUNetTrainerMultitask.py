"""nnUNetTrainerMultitask: nnU-Net's training with case-level classification heads on the encoder.

nnUNetTrainer handles any joint output already. This class builds the heads, their optimiser and their share of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2.network_architecture.classification_heads import (
    build_heads,
    classification_entry,
    encoder_channels,
    head_rng_state,
    set_head_rng_state,
)
from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities
from nnunetv2.training.dataloading.class_targets import evidence_rules
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.nnUNetTrainer.epoch_class_scores import EpochClassScores
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.compilation import unwrapped_network
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks

EXAMPLE = '{"classification": {"subtype": {"classes": ["benign", "malignant"], "evidence": ["lesion"]}}}'


class nnUNetTrainerMultitask(nnUNetTrainer):
    """Trains segmentation and case-level classification together.

    Raises:
        ValueError: If ``dataset.json`` has no ``classification``.
    """

    # The successful projects weigh the classes with 0.05 to 0.1; a weight of 3 halved the Dice.
    maximum_classification_loss_weight: float = 0.1
    classification_warmup_share: float = 0.1  # of the epochs, in which the weight rises from 0
    classification_warmup_epochs: float = 25  # at most
    # SGD with nnU-Net's learning rate made fresh heads collapse to one class in three independent projects.
    head_lr: float = 3e-4
    head_weight_decay: float = 1e-4
    head_gradient_norm: float = 1
    head_pooling: str = "mean_max"  # or "attention", "evidence"
    head_stages: tuple[int, ...] | None = None  # None: a middle encoder stage and the bottleneck
    balanced_sampling: bool = False  # draw training cases of every class equally often

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        tasks = classification_tasks(dataset_json)
        if not tasks:
            raise ValueError(
                f"{type(self).__name__} needs case-level classes, but dataset.json of the preprocessed dataset has no entry "
                f"'classification'. Add one to the raw dataset's dataset.json, such as {EXAMPLE}, with a file labels.csv (identifier,subtype) beside it, and "
                "run nnUNetv2_plan_and_preprocess again. For segmentation alone use -tr nnUNetTrainer."
            )
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.classification_tasks = tasks
        self._classification_steps = 0  # of the optimisers, for the warm-up of the loss weight

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads by task."""
        return unwrapped_network(self.network).heads

    def build_heads(self) -> dict[str, nn.Module]:
        return build_heads(
            self.classification_tasks,
            encoder_channels(self.network),
            pooling=self.head_pooling,
            stages=self.head_stages,
            labels=self.dataset_json["labels"],
            seed=self.seed,
        )

    def classification_entry(self) -> dict | None:
        return classification_entry(self.heads)

    def build_classification_loss(self) -> Callable[[Mapping, Mapping], dict[str, Tensor]]:
        return ClassificationLoss(self.classification_tasks)

    def build_class_scores(self) -> EpochClassScores:
        evidence = {name: head.description.evidence for name, head in self.heads.items()}
        return EpochClassScores(self.classification_tasks, evidence, self.case_labels())

    def class_label_arguments(self) -> dict[str, Any]:
        return {
            "case_labels": self.case_labels(),
            "evidence_weights": evidence_rules(self.classification_tasks, self.dataset_json),
        }

    def sampling_probabilities(self, identifiers: Sequence[str]) -> np.ndarray | None:
        return balanced_sampling_probabilities(identifiers, self.case_labels()) if self.balanced_sampling else None

    def configure_head_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head_parameters(), lr=self.head_lr, weight_decay=self.head_weight_decay)

    def classification_loss_weight(self) -> float:
        """The factor λ: it rises linearly from 0 over the first epochs, then stays."""
        warmup_epochs = min(self.classification_warmup_epochs, self.classification_warmup_share * self.num_epochs)
        warmup_steps = max(1.0, warmup_epochs * self.num_iterations_per_epoch)
        return self.maximum_classification_loss_weight * min(1.0, self._classification_steps / warmup_steps)

    def optimizer_step(self, loss: Tensor) -> None:
        super().optimizer_step(loss)
        self._classification_steps += 1

    def head_optimizer_step(self) -> None:
        parameters = self.head_parameters()
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.head_optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, self.head_gradient_norm)
        if self.grad_scaler is None:
            self.head_optimizer.step()
        else:
            self.grad_scaler.step(self.head_optimizer)
        # Nothing left for another optimiser that holds these parameters too (a subclass with its own configure_optimizers).
        self.head_optimizer.zero_grad(set_to_none=True)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.print_to_log_file(f"Weight of the classification losses: {self.classification_loss_weight():.4f}")

    def training_state(self) -> dict[str, Any]:
        return {
            **super().training_state(),
            "classification_steps": self._classification_steps,
            "head_rng_state": head_rng_state(self.heads),
        }

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        super().restore_training_state(state)
        self._classification_steps = state["classification_steps"]
        set_head_rng_state(self.heads, state["head_rng_state"])


class nnUNetTrainerMultitask_5epochs(nnUNetTrainerMultitask):
    num_epochs = 5


class nnUNetTrainerMultitask_20epochs(nnUNetTrainerMultitask):
    num_epochs = 20


class nnUNetTrainerMultitask_50epochs(nnUNetTrainerMultitask):
    num_epochs = 50


class nnUNetTrainerMultitask_100epochs(nnUNetTrainerMultitask):
    num_epochs = 100


class nnUNetTrainerMultitask_250epochs(nnUNetTrainerMultitask):
    num_epochs = 250
