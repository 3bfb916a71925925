"""Scores of the classes in the online validation: pooled over whole cases, not averaged over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nnunetv2.evaluation.classification_metrics import classification_summary
from nnunetv2.inference.case_classification import aggregate_tiles
from nnunetv2.network_architecture.classification_heads import class_probabilities
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

# Drawn as curves; the validation at the end of the training has all scores.
CURVES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "macro_average_precision", "quadratic_kappa")


@dataclass(frozen=True, kw_only=True)
class ClassRecord:
    """What the network said about one patch."""

    identifier: str
    probabilities: dict[str, np.ndarray]  # by task, (K,)
    evidence: dict[str, float]  # by task, mean probability of the predicted evidence in the patch


@dataclass(frozen=True, kw_only=True)
class EpochScores:
    """The scores of one epoch."""

    by_task: dict[str, dict[str, float]]  # task -> name of a score -> value
    case_score: float  # mean over tasks
    cases_seen: int  # validation cases of which a patch was drawn
    cases_total: int
    probabilities: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by case and task, (K,)

    def lines(self) -> list[str]:
        """For the log."""
        lines = [
            f"Classes, {task}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            for task, scores in self.by_task.items()
        ]
        return [*lines, f"Case score {self.case_score:.4f} on patches of {self.cases_seen} of {self.cases_total} validation cases"]


class EpochClassScores:
    """Pools the patches of an epoch by case and scores the cases.

    A case's probabilities are the mean of those of its patches, weighted by the evidence that the network itself predicts in them.

    Args:
        tasks: Tasks by name.
        evidence: By task where the segmentation shows its evidence.
        case_labels: The true classes.
    """

    def __init__(
        self, tasks: Mapping[str, ClassificationTask], evidence: Mapping[str, PredictedEvidence], case_labels: CaseLabels
    ) -> None:
        self.tasks = dict(tasks)
        self.evidence = dict(evidence)
        self.case_labels = case_labels
        self.cases_total = 0  # set once the validation cases are known

    def records(
        self, identifiers: Sequence[str], class_logits: Mapping[str, Tensor], segmentation_logits: Tensor
    ) -> list[ClassRecord]:
        """One record for each sample of a batch.

        Args:
            identifiers: Case of each sample.
            class_logits: By task ``(B, num_logits)``.
            segmentation_logits: ``(B, C, *patch)``.
        """
        probabilities = {
            name: class_probabilities(task, class_logits[name].detach()).cpu().double().numpy() for name, task in self.tasks.items()
        }
        evidence = {name: self._mean_evidence(name, segmentation_logits) for name in self.tasks}
        return [
            ClassRecord(
                identifier=str(identifier),
                probabilities={name: probabilities[name][i] for name in self.tasks},
                evidence={name: float(evidence[name][i]) for name in self.tasks},
            )
            for i, identifier in enumerate(identifiers)
        ]

    def _mean_evidence(self, task: str, segmentation_logits: Tensor) -> np.ndarray:
        """Mean probability of a task's evidence in each patch, ``(B,)``; nothing for tasks without evidence."""
        rule = self.evidence.get(task)
        if not rule:
            return np.zeros(len(segmentation_logits))
        with torch.no_grad():
            return rule.probability(segmentation_logits.detach()).flatten(1).mean(1).cpu().numpy()

    def case_probabilities(self, records: Sequence[ClassRecord]) -> dict[str, dict[str, np.ndarray]]:
        """Probabilities ``(K,)`` by case and task; patches with a value that is no finite number are left out."""
        by_case: dict[str, list[ClassRecord]] = {}
        for record in records:
            if all(np.isfinite(values).all() for values in record.probabilities.values()):
                by_case.setdefault(record.identifier, []).append(record)
        return {
            identifier: {
                name: aggregate_tiles(
                    np.stack([record.probabilities[name] for record in patches]),
                    np.nan_to_num([record.evidence[name] for record in patches]),
                    aggregation="evidence",
                    exclusive=not task.is_multilabel,
                )
                for name, task in self.tasks.items()
            }
            for identifier, patches in by_case.items()
        }

    def scores(self, records: Sequence[ClassRecord]) -> EpochScores:
        """Scores of all cases of which a patch was seen."""
        table = self.case_probabilities(records)
        summary = classification_summary(self.tasks, table, self.case_labels)
        by_task = {
            name: {score: _number(value) for score, value in entry["scores"].items() if score in CURVES}
            for name, entry in summary["tasks"].items()
        }
        return EpochScores(
            by_task=by_task,
            case_score=_number(summary["case_score"]),
            cases_seen=len(table),
            cases_total=max(self.cases_total, len(table)),
            probabilities=table,
        )


def _number(value: float | None) -> float:
    """A score that cannot be computed is NaN in the curves."""
    return float("nan") if value is None else float(value)
