"""From the class logits of all tiles and mirrored copies of a case to one probability vector for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nnunetv2.network_architecture.classification_heads import CaseHead, class_probabilities
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

AGGREGATIONS = ("evidence", "mean", "max", "top3")
AGGREGATIONS_OF_FEATURES = ("evidence", "mean")  # those that make sense of features as well as of probabilities
TOP_TILES = 3
# A tile's mean evidence below this (a millionth of its weighted voxels) is numerical dust of the softmax, not a structure.
NO_EVIDENCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class TaskPrediction:
    """Class of one case for one task."""

    label: str  # class name; names joined with ';' or 'none' for multilabel
    probabilities: dict[str, float]  # by class name


@dataclass(kw_only=True)
class _TileVotes:
    """What the tiles said about one task."""

    values: list[np.ndarray] = field(default_factory=list)  # class probabilities (K,), or the features (F,) of a head of whole cases
    evidence: list[float] = field(default_factory=list)


class CaseClassification:
    """Collects what the tiles of one case say and gives one answer per task.

    One object serves one case and one fold; several folds are joined by :func:`mean_of_folds`.

    Args:
        tasks: The tasks by name.
        evidence: Where the segmentation shows the evidence of a task, by task name; tasks that are missing count every tile the same.
        aggregation: ``evidence``: mean of the tiles weighted by the predicted evidence in them (the plain mean where there is
            none); ``mean``: plain mean; ``max``: by class the highest tile; ``top3``: by class the mean of the three highest tiles.
            The last two are scaled to sum to one, except for multilabel.
        case_heads: Heads of whole cases by task name. Of these tasks the features of the tiles are averaged, and the head is applied once;
            ``evidence`` and ``mean`` are the aggregations that they know.
    """

    def __init__(
        self,
        tasks: Mapping[str, ClassificationTask],
        evidence: Mapping[str, PredictedEvidence] | None = None,
        aggregation: str = "evidence",
        case_heads: Mapping[str, CaseHead] | None = None,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"Unknown aggregation {aggregation!r}. Choose one of {', '.join(AGGREGATIONS)}.")
        self.tasks = dict(tasks)
        self.evidence = dict(evidence or {})
        self.aggregation = aggregation
        self.case_heads = dict(case_heads or {})
        if self.case_heads and aggregation not in AGGREGATIONS_OF_FEATURES:
            raise ValueError(
                f"The aggregation {aggregation!r} is for heads that classify every tile; those of {', '.join(self.case_heads)} classify whole "
                f"cases. Choose one of {', '.join(AGGREGATIONS_OF_FEATURES)}."
            )
        self._votes: dict[str, _TileVotes] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all tiles."""
        self._votes = {name: _TileVotes() for name in self.tasks}

    def add_tile(
        self,
        class_logits: Mapping[str, torch.Tensor],
        segmentation_logits: torch.Tensor | None,
        tile_weights: torch.Tensor | None,
    ) -> None:
        """Add one tile.

        Args:
            class_logits: By task ``(num_logits,)``, or ``(M, num_logits)`` for M mirrored copies, whose probabilities are averaged. Of a
                head of whole cases, its features in place of logits.
            segmentation_logits: ``(C, *tile)``, averaged over the mirrored copies; None when only classes are predicted.
            tile_weights: Weight of the tile's voxels, as used for the segmentation; None if all count the same.

        Raises:
            RuntimeError: If a class logit is not a finite number.
        """
        for name, task in self.tasks.items():
            outputs = class_logits[name].detach().float()
            if not bool(torch.isfinite(outputs).all()):
                raise RuntimeError(f"The head of task {name!r} predicted values that are not finite numbers.")
            outputs = outputs.reshape(-1, outputs.shape[-1])
            values = outputs if name in self.case_heads else class_probabilities(task, outputs)
            votes = self._votes[name]
            votes.values.append(values.mean(dim=0).cpu().numpy().astype(np.float64))
            votes.evidence.append(self._evidence_mass(name, segmentation_logits, tile_weights))

    def _evidence_mass(self, name: str, segmentation_logits: torch.Tensor | None, tile_weights: torch.Tensor | None) -> float:
        """Weighted mean probability of the evidence in a tile; 0 where it is not asked for or cannot be known."""
        evidence = self.evidence.get(name)
        if self.aggregation != "evidence" or segmentation_logits is None or not evidence:
            return 0.0
        probability = evidence.probability(segmentation_logits[None])[0, 0]
        if tile_weights is None:
            return float(probability.mean())
        tile_weights = tile_weights.to(probability)
        return float((probability * tile_weights).sum() / tile_weights.sum())

    def probabilities(self, measures: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Probabilities ``(K,)`` float64 by task name.

        Args:
            measures: Morphometry of the case by task name, for heads of whole cases that look at it.

        Raises:
            RuntimeError: If no tile was added.
        """
        result = {}
        for name, task in self.tasks.items():
            if name in self.case_heads:
                features = self.case_features(name, (measures or {}).get(name))
                probabilities = self.case_heads[name].case_probabilities(torch.from_numpy(features)[None])[0]
                result[name] = probabilities.detach().cpu().numpy().astype(np.float64)
            else:
                result[name] = self._aggregated(name, exclusive=not task.is_multilabel)
        return result

    def probabilities_with(self, aggregation: str) -> dict[str, np.ndarray]:
        """What the same tiles say if they vote in another way, ``(K,)`` by task; tasks with heads of whole cases are left out.

        Args:
            aggregation: One of ``AGGREGATIONS``. Evidence is known only if this object was made for the aggregation ``evidence``.
        """
        votes = {name: self._votes[name] for name in self.tasks if name not in self.case_heads}
        return {
            name: aggregate_tiles(
                np.stack(vote.values), np.asarray(vote.evidence), aggregation=aggregation, exclusive=not self.tasks[name].is_multilabel
            )
            for name, vote in votes.items()
        }

    def case_features(self, name: str, measures: np.ndarray | None = None) -> np.ndarray:
        """What the head of whole cases of a task looks at: features ``(F,)`` averaged over the tiles, then the measures of the case."""
        features = self._aggregated(name, exclusive=False)
        return features if measures is None else np.concatenate([features, measures])

    def tile_shares(self, name: str, chosen: int) -> np.ndarray:
        """How much each tile counts in the answer of a task, ``(tiles,)`` in the order in which they were added; adds up to 1.

        Args:
            name: The task.
            chosen: Index of the class whose probability is asked about; of importance where every class takes its highest tiles.
        """
        votes = self._votes[name]
        if self.aggregation in AGGREGATIONS_OF_FEATURES:
            weights = mean_weights(np.asarray(votes.evidence), self.aggregation)
        else:
            weights = np.zeros(len(votes.values))
            highest = np.argsort([-values[chosen] for values in votes.values], kind="stable")
            weights[highest[: _tiles_that_count(self.aggregation)]] = 1
        return weights / weights.sum()

    def _aggregated(self, name: str, *, exclusive: bool) -> np.ndarray:
        votes = self._votes[name]
        values = np.stack(votes.values) if votes.values else np.zeros((0, 0))
        return aggregate_tiles(values, np.asarray(votes.evidence), aggregation=self.aggregation, exclusive=exclusive)


def aggregate_tiles(probabilities: np.ndarray, evidence: np.ndarray, *, aggregation: str, exclusive: bool) -> np.ndarray:
    """One probability vector from those of all tiles; with ``evidence`` and ``mean`` also one vector of features.

    Args:
        probabilities: ``(tiles, K)``.
        evidence: Predicted evidence in each tile, ``(tiles,)``, 0 to 1.
        aggregation: One of ``AGGREGATIONS``.
        exclusive: Exactly one class is true, so that the result has to sum to one.
    """
    if len(probabilities) == 0:
        raise RuntimeError("No tile was predicted, so there is no class.")
    if aggregation in AGGREGATIONS_OF_FEATURES:
        weights = mean_weights(evidence, aggregation)
        return (weights[:, None] * probabilities).sum(axis=0) / weights.sum()
    highest = np.sort(probabilities, axis=0)[::-1][: _tiles_that_count(aggregation)].mean(axis=0)
    return highest / highest.sum() if exclusive else highest


def mean_weights(evidence: np.ndarray, aggregation: str) -> np.ndarray:
    """Weight of every tile ``(tiles,)`` in a mean over tiles: its evidence, or 1 where there is none or the plain mean is asked for."""
    return evidence if aggregation == "evidence" and evidence.max() > NO_EVIDENCE else np.ones(len(evidence))


def _tiles_that_count(aggregation: str) -> int:
    """How many of the highest tiles make up the probability of a class."""
    return 1 if aggregation == "max" else TOP_TILES


def mean_of_folds(folds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Every fold's vote counts the same."""
    return {name: np.mean([fold[name] for fold in folds], axis=0) for name in folds[0]}


def task_prediction(task: ClassificationTask, probabilities: np.ndarray) -> TaskPrediction:
    """The readable form of one task's probabilities."""
    return TaskPrediction(
        label=task.format_target(predicted_target(task, probabilities)),
        probabilities={name: float(p) for name, p in zip(task.classes, probabilities, strict=True)},
    )
