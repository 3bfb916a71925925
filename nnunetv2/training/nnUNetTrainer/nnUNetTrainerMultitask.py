"""nnUNetTrainerMultitask: nnU-Net's training with case-level classification heads on the encoder.

nnUNetTrainer handles any joint output already. This class builds the heads, their optimiser and their share of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os.path import join
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2.network_architecture.classification_heads import (
    build_heads,
    classification_entry,
    encoder_channels,
    head_rng_state,
    heads_from_checkpoint,
    seed_dropout,
    set_head_rng_state,
)
from nnunetv2.network_architecture.joint_network import HEADS_PREFIX, JointNetwork
from nnunetv2.training.checkpointing import load_checkpoint_file
from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities, class_weights
from nnunetv2.training.dataloading.class_targets import evidence_rules
from nnunetv2.training.distributed import of_first_process
from nnunetv2.training.head_refit import (
    EVIDENCE_CENTRED_SHARE,
    REFITS,
    SEED_OFFSET,
    new_patch_heads,
    refit_on_cases,
    refit_on_patches,
    unfitted_case_heads,
    way_of_refit,
)
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.nnUNetTrainer.collapse_detector import EPOCHS_TO_NOTICE, CollapseDetector
from nnunetv2.training.nnUNetTrainer.epoch_class_scores import EpochClassScores, EpochScores
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.compilation import unwrapped_network
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks, structure_values

if TYPE_CHECKING:
    from nnunetv2.training.dataloading.batch_stream import BatchStream

EXAMPLE = '{"classification": {"subtype": {"classes": ["benign", "malignant"], "evidence": ["lesion"]}}}'


class nnUNetTrainerMultitask(nnUNetTrainer):
    """Trains segmentation and case-level classification together.

    Raises:
        ValueError: If ``dataset.json`` has no ``classification``.
    """

    # Larger weights cost Dice in short trainings and won nothing for the classes; see documentation/classification-evidence.md.
    maximum_classification_loss_weight: float = 0.01
    classification_warmup_share: float = 0.1  # of the epochs, in which the weight rises from 0
    classification_warmup_epochs: float = 25  # at most
    # SGD with nnU-Net's learning rate made fresh heads collapse to one class in three independent projects; AdamW with 3e-4 is too slow for
    # short trainings.
    head_lr: float = 3e-3
    head_weight_decay: float = 1e-4
    head_gradient_norm: float = 1
    head_pooling: str = "mean_max"  # or "attention", "evidence"
    head_stages: tuple[int, ...] | None = None  # None: a middle encoder stage and the bottleneck
    # Against imbalance one of these, never both: cases drawn equally often by class, or the loss weighted by class.
    balanced_sampling: bool = False
    class_weights: bool = False

    # New heads on the finished encoder, beside those of the joint training.
    head_refit: str = "cases"  # or "patches", "none"
    refit_pooling: str = "mean_max"  # or "attention" (on cases as the joint heads have learned it), "evidence"
    refit_stages: tuple[int, ...] | None = None  # None: a middle encoder stage and the bottleneck
    refit_augmented_copies: int = 0  # on cases: further views of every case with other intensities; each costs as much as the first
    refit_penalty: float = 0.003  # on cases: of the squared weights
    refit_morphometry: bool = True  # on cases: sizes and shapes of the predicted structures beside the features
    refit_trees: int = 200  # on cases: decision trees on the sizes and shapes
    refit_share_of_epochs: float = 0.3  # on patches
    refit_epochs_at_most: int = 30  # on patches

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
        if self.balanced_sampling and self.class_weights:
            raise ValueError(
                f"{type(self).__name__} sets balanced_sampling and class_weights. Both correct the imbalance of the classes; together they "
                "would correct it twice. Set one of them to False."
            )
        self.collapse_detector: CollapseDetector | None = None
        self.refitted_heads: dict[str, nn.Module] = {}
        self.joint_heads_trained = True  # not where only new heads were put onto the network of another training
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
        return {**classification_entry(self.heads), "trained": self.joint_heads_trained}

    def refitted_heads_entry(self) -> dict | None:
        if not self.refitted_heads:
            return None
        # Named as in a network that has these heads alone.
        joint = JointNetwork(self.segmentation_network(), self.refitted_heads)
        weights = {HEADS_PREFIX + key: value.cpu() for key, value in joint.classification_heads.state_dict().items()}
        return {"classification": classification_entry(self.refitted_heads), "weights": weights}

    def load_refitted_heads(self, entry: Mapping[str, Any] | None) -> None:
        """The reverse of :meth:`refitted_heads_entry`."""
        self.refitted_heads = {}
        if entry:
            heads = heads_from_checkpoint(entry["classification"], self.segmentation_network())
            joint = JointNetwork(self.segmentation_network(), heads)
            joint.classification_heads.load_state_dict(
                {key.removeprefix(HEADS_PREFIX): value for key, value in entry["weights"].items()}
            )
            self.refitted_heads = {name: head.to(self.device).eval() for name, head in heads.items()}

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, Mapping):
            checkpoint = load_checkpoint_file(filename_or_checkpoint, map_location="cpu")
        super().load_checkpoint(checkpoint)
        self.load_refitted_heads(checkpoint.get("refitted_heads"))
        self.joint_heads_trained = (checkpoint.get("classification") or {}).get("trained", True)

    def load_segmentation(self, filename: str) -> None:
        """Take the whole segmentation network of a finished training, of whatever trainer; heads of its own are not looked at.

        Raises:
            ValueError: If the network is another one.
        """
        checkpoint = load_checkpoint_file(filename, map_location="cpu")
        weights = {key.removeprefix("module."): value for key, value in checkpoint.get("network_weights", {}).items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(HEADS_PREFIX)}
        try:
            self.segmentation_network().load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[1:4])[:600]
            raise ValueError(
                f"The weights of {filename} do not fit the segmentation network of these plans: {reason} "
                "Give a checkpoint that was trained with the same plans, configuration and labels."
            ) from error
        self.patches_and_transforms()  # settles what may be mirrored here
        mirrored = checkpoint.get("inference_allowed_mirroring_axes") or ()
        allowed = self.inference_allowed_mirroring_axes or ()
        self.inference_allowed_mirroring_axes = tuple(axis for axis in allowed if axis in mirrored) or None
        self.joint_heads_trained = False
        self.current_epoch = self.num_epochs  # nothing is left to train

    def segmentation_network(self) -> nn.Module:
        """The network without heads; its encoder and decoder are those that are trained."""
        return unwrapped_network(self.network).segmentation_network

    def build_classification_loss(self) -> Callable[[Mapping, Mapping], dict[str, Tensor]]:
        weights = None
        if self.class_weights:
            # of the fold's training cases alone
            weights = class_weights(self.do_split()[0], self.case_labels())
            for name, by_class in weights.items():
                self.print_to_log_file(f"Class weights, {name}: {np.round(by_class, 3).tolist()}")
        return ClassificationLoss(self.classification_tasks, class_weights=weights)

    def build_class_scores(self) -> EpochClassScores:
        # In short trainings a sign that lasts for half of them is noticed.
        epochs = max(1, min(EPOCHS_TO_NOTICE, self.num_epochs // 2))
        self.collapse_detector = CollapseDetector(self.classification_tasks, self.case_labels(), epochs)
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

    # ------------------------------------------------------------------ the head refit

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        if self.head_refit != "none":
            self.check_refit()  # now, not after the last epoch
        super().on_train_start()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.head_refit == "none":
            return
        if not self.refitted_heads:
            self.refit_heads()
            self.save_finished(join(self.output_folder, "checkpoint_final.pth"))
        elif (present := way_of_refit(self.refitted_heads)) != self.head_refit:
            self.print_to_log_file(
                f"The heads of this training were refitted on {present} before and stay so, although --head_refit is {self.head_refit}. "
                f"For new ones: the same command with --refit_heads --head_refit {self.head_refit} in place of --c."
            )

    def refit_heads(self) -> None:
        """Train new heads on the finished encoder; those of the joint training stay beside them.

        Raises:
            ValueError: See :meth:`check_refit`.
        """
        self.check_refit()
        self.print_to_log_file(f"Head refit on {self.head_refit}: encoder and decoder stay as they are")
        self.refitted_heads = {}
        if self.head_refit == "cases":
            self.refitted_heads = refit_on_cases(
                self,
                augmented_copies=self.refit_augmented_copies,
                penalty=self.refit_penalty,
                with_morphometry=self.refit_morphometry,
                trees=self.refit_trees,
            )
        else:
            self.refitted_heads = refit_on_patches(self, epochs=self.refit_epochs())
        if self.is_ddp:
            self.load_refitted_heads(of_first_process(self.refitted_heads_entry()))

    def check_refit(self) -> None:
        """Raise ValueError for an unknown way of the refit, pooling or stage, or a task without a labelled training case."""
        if self.head_refit not in REFITS or self.head_refit == "none":
            raise ValueError(f"head_refit is {self.head_refit!r}, expected one of {', '.join(REFITS[:-1])}.")
        if self.head_refit == "patches":
            new_patch_heads(self)
            return
        unfitted_case_heads(self, self.refit_morphometry)
        training_cases, case_labels = self.do_split()[0], self.case_labels()
        unlabelled = [task for task in case_labels.tasks if all(case_labels.target(case, task) is None for case in training_cases)]
        if unlabelled:
            raise ValueError(
                f"Fold {self.fold}: no training case has a label for {', '.join(unlabelled)}, so no head can be fitted. Fill in labels.csv "
                "and run nnUNetv2_plan_experiment again, or train without new heads: --head_refit none."
            )

    def refit_epochs(self) -> int:
        """Epochs of a refit on patches, fewer after a short training."""
        return max(1, min(self.refit_epochs_at_most, round(self.refit_share_of_epochs * self.num_epochs)))

    def refit_stream(self) -> BatchStream:
        """Patches for a refit: cases balanced by class, centred on the evidence in two of three samples."""
        from nnunetv2.training.dataloading.evidence_centred_loader import EvidenceCentredLoader

        patch_size, transforms, _ = self.patches_and_transforms()
        dataset, _ = self.get_tr_and_val_datasets()
        stream = self.batch_stream(
            dataset,
            patch_size,
            transforms,
            self.num_iterations_per_epoch,
            get_allowed_n_proc_DA(),
            seed=self.seed + SEED_OFFSET,
            loader_class=EvidenceCentredLoader,
            sampling_probabilities=balanced_sampling_probabilities(dataset.identifiers, self.case_labels(), draw_unknown=False),
            oversample_foreground_percent=EVIDENCE_CENTRED_SHARE,
            probabilistic_oversampling=True,
        )
        evidence = {name for task in self.classification_tasks.values() for name in task.evidence}
        stream.loader.evidence_values = structure_values(sorted(evidence), self.dataset_json)
        stream.set_epoch(0)
        return stream

    # ------------------------------------------------------------------ reports and state

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.print_to_log_file(f"Weight of the classification losses: {self.classification_loss_weight():.4f}")

    def log_class_scores(self, records: list) -> EpochScores:
        scores = super().log_class_scores(records)
        for warning in self.collapse_detector.update(scores.probabilities):
            self.print_to_log_file(warning)
        return scores

    def training_state(self) -> dict[str, Any]:
        return {
            **super().training_state(),
            "collapse_detector": self.collapse_detector.state,
            "classification_steps": self._classification_steps,
            "head_rng_state": head_rng_state(self.heads),
            "head_refit": vars(self).get("head_refit"),  # None: that of the class
        }

    def random_states(self) -> dict[str, Any]:
        return {**super().random_states(), "head_rng_state": head_rng_state(self.heads)}

    def draw_independently(self, *position: int) -> None:
        super().draw_independently(*position)
        if self.local_rank > 0:
            seed_dropout(self.heads, int(torch.randint(2**31, ())))

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        super().restore_training_state(state)
        self._classification_steps = state["classification_steps"]
        self.collapse_detector.state = state.get("collapse_detector", self.collapse_detector.state)
        set_head_rng_state(self.heads, state["head_rng_state"])
        if state.get("head_refit") is not None and "head_refit" not in vars(self):  # what this run asks for wins
            self.head_refit = state["head_refit"]


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
