"""Scores of predicted case classes, computed over whole cases. Agrees with scikit-learn to 1e-9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

NAN = float("nan")


def classification_summary(
    tasks: Mapping[str, ClassificationTask],
    table: Mapping[str, Mapping[str, np.ndarray]],
    case_labels: CaseLabels,
) -> dict[str, Any]:
    """The content of ``classification_summary.json``.

    Args:
        tasks: The tasks by name.
        table: Probabilities ``(K,)`` by identifier and task.
        case_labels: What is true.

    Returns:
        ``{"tasks": {NAME: {"n", "unknown", "scores", "per_class", "confusion"}}, "case_score"}``. ``n`` counts the predicted cases whose
        label is known; only these are scored.
    """
    by_task = {}
    for name, task in tasks.items():
        known = [identifier for identifier in sorted(table) if case_labels.target(identifier, name) is not None]
        targets = [case_labels.target(identifier, name) for identifier in known]
        probabilities = [table[identifier][name] for identifier in known]
        by_task[name] = {"n": len(known), "unknown": len(table) - len(known), **task_report(task, targets, probabilities)}
    scores = [report["scores"][case_score_name(tasks[name])] for name, report in by_task.items()]
    return {"tasks": by_task, "case_score": _mean_of_numbers(scores)}


def case_score_name(task: ClassificationTask) -> str:
    """The score of a task that goes into the case score."""
    if task.is_multilabel:
        return "macro_average_precision"
    return "quadratic_kappa" if task.is_ordinal else "macro_f1"


def task_report(task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray]) -> dict[str, Any]:
    """Scores of one task.

    Args:
        task: Its classes and type.
        targets: What is true, by case: class index, or 0 and 1 by class for multilabel.
        probabilities: ``(K,)`` by case.

    Returns:
        ``scores`` (``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc``; multilabel also ``macro_average_precision``, ordinal also
        ``quadratic_kappa``), ``per_class`` (``n``, ``precision``, ``recall``, ``specificity``, ``f1``, ``auroc``, ``average_precision``)
        and ``confusion``: rows are true classes; for multilabel by class ``[[TN, FP], [FN, TP]]``. What cannot be computed is NaN; a class
        that no case has is left out of ``auroc``, ``balanced_accuracy`` and ``macro_average_precision``, and counts 0 in ``macro_f1`` as in
        scikit-learn with ``zero_division=0``.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    decisions = [predicted_target(task, row) for row in probabilities]
    truth, decided = _indicators(task, targets), _indicators(task, decisions)
    per_class = {
        name: _class_scores(truth[:, index], decided[:, index], probabilities[:, index]) for index, name in enumerate(task.classes)
    }
    scores = {
        "accuracy": float((truth == decided).all(axis=1).mean()) if len(truth) else NAN,
        "balanced_accuracy": _balanced_accuracy(task, per_class),
        "macro_f1": float(np.mean([values["f1"] for values in per_class.values()])) if len(truth) else NAN,
        "auroc": _mean_of_numbers([values["auroc"] for values in per_class.values()]),
    }
    if task.is_multilabel:
        scores["macro_average_precision"] = _mean_of_numbers([values["average_precision"] for values in per_class.values()])
        confusion = [confusion_matrix(truth[:, index], decided[:, index], 2) for index in range(task.num_classes)]
    else:
        confusion = confusion_matrix(np.asarray(targets, dtype=int), np.asarray(decisions, dtype=int), task.num_classes)
    if task.is_ordinal:
        scores["quadratic_kappa"] = quadratic_kappa(confusion)
    return {"scores": scores, "per_class": per_class, "confusion": np.asarray(confusion).tolist()}


def confusion_matrix(truth: np.ndarray, decided: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of cases ``(true class, predicted class)``."""
    index = truth.astype(int) * num_classes + decided.astype(int)
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def area_under_roc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive case scores higher than a negative one, ties counting half; NaN without cases of both."""
    truth = np.asarray(truth, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return NAN
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a sum of steps; NaN without positive cases."""
    truth = np.asarray(truth, dtype=bool)
    if not truth.any():
        return NAN
    order = np.argsort(-np.asarray(scores), kind="stable")
    truth, scores = truth[order], np.asarray(scores)[order]
    # Cases with equal scores pass the threshold together.
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true_positives = np.cumsum(truth)[last_of_ties]
    precision = true_positives / (last_of_ties + 1)
    recall_steps = np.diff(true_positives, prepend=0) / truth.sum()
    return float((precision * recall_steps).sum())


def quadratic_kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa of ordered classes, errors counting by their squared distance; NaN if all cases are one class, truly and predicted."""
    confusion = np.asarray(confusion, dtype=np.float64)
    classes = np.arange(len(confusion))
    weights = (classes[:, None] - classes[None]) ** 2
    total = confusion.sum()
    if not total:
        return NAN
    expected = confusion.sum(axis=1, keepdims=True) * confusion.sum(axis=0, keepdims=True) / total
    by_chance = (weights * expected).sum()
    return float(1 - (weights * confusion).sum() / by_chance) if by_chance else NAN


def _indicators(task: ClassificationTask, targets: Sequence[int | np.ndarray]) -> np.ndarray:
    """Targets as a boolean table ``(cases, K)``."""
    if task.is_multilabel:
        return np.asarray(targets, dtype=np.float64).reshape(-1, task.num_classes) > 0.5
    return np.asarray(targets, dtype=int).reshape(-1, 1) == np.arange(task.num_classes)


def _class_scores(truth: np.ndarray, decided: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """One class against the rest."""
    (tn, fp), (fn, tp) = confusion_matrix(truth, decided, 2).tolist()
    return {
        "n": int(truth.sum()),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "specificity": tn / (tn + fp) if tn + fp else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
        "auroc": area_under_roc(truth, scores),
        "average_precision": average_precision(truth, scores),
    }


def _balanced_accuracy(task: ClassificationTask, per_class: Mapping[str, Mapping[str, float]]) -> float:
    """Mean recall of the classes that occur; for multilabel the mean over classes of (recall + specificity) / 2."""
    occurring = [values for values in per_class.values() if values["n"] > 0]
    if task.is_multilabel:
        return _mean_of_numbers([(values["recall"] + values["specificity"]) / 2 for values in occurring])
    return _mean_of_numbers([values["recall"] for values in occurring])


def _mean_of_numbers(values: Sequence[float]) -> float:
    """Mean of the values that are numbers; NaN without any."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else NAN
