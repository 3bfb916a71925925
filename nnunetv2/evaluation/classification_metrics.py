"""Scores of predicted case classes, computed over whole cases. Agrees with scikit-learn to 1e-9.

Every score is computed with a weight for each case, for many sets of weights at once: ones give the score itself, the counts of a
resampled table give its bootstrap draws (:mod:`nnunetv2.evaluation.bootstrap`), so both follow one definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

NAN = float("nan")
CALIBRATION_BINS = 10  # equally wide, as in Guo et al. 2017; more are mostly empty with a few hundred cases
BIN_EDGES = np.linspace(0, 1, CALIBRATION_BINS + 1)
SMALLEST_PROBABILITY = np.finfo(np.float64).eps  # scikit-learn's clip of the log loss
# 0 where nothing can be divided, as in scikit-learn with zero_division=0; bootstrap draws leave it out.
ZERO_WHERE_UNDEFINED = ("precision", "recall", "specificity", "f1")


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
        known, targets, probabilities = known_cases(name, table, case_labels)
        by_task[name] = {"n": len(known), "unknown": len(table) - len(known), **task_report(task, targets, probabilities)}
    return {"tasks": by_task, "case_score": case_score(tasks, by_task)}


def known_cases(
    task_name: str, table: Mapping[str, Mapping[str, np.ndarray]], case_labels: CaseLabels
) -> tuple[list[str], list[int | np.ndarray], list[np.ndarray]]:
    """Sorted identifiers of the predicted cases whose label is known, their targets and probabilities ``(K,)``."""
    known = [identifier for identifier in sorted(table) if case_labels.target(identifier, task_name) is not None]
    return known, [case_labels.target(i, task_name) for i in known], [table[i][task_name] for i in known]


def case_score_name(task: ClassificationTask) -> str:
    """The score of a task that goes into the case score."""
    if task.is_multilabel:
        return "macro_average_precision"
    return "quadratic_kappa" if task.is_ordinal else "macro_f1"


def case_score(tasks: Mapping[str, ClassificationTask], reports: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean over tasks of each one's main score, from :func:`task_report` by task; NaN ones are left out."""
    return float(_mean_of_numbers(np.array([reports[name]["scores"][case_score_name(task)] for name, task in tasks.items()])))


def task_report(task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray]) -> dict[str, Any]:
    """Scores of one task.

    Args:
        task: Its classes and type.
        targets: What is true, by case: class index, or 0 and 1 by class for multilabel.
        probabilities: ``(K,)`` by case.

    Returns:
        ``scores``, ``per_class`` and ``confusion`` of :class:`WeightedScores`, as plain numbers and lists. What cannot be computed is
        NaN, except that ``precision``, ``recall``, ``specificity`` and ``f1`` are 0 then, as in scikit-learn with ``zero_division=0``.
    """
    result = weighted_scores(task, targets, probabilities, np.ones((1, len(targets))))
    per_class: dict[str, dict[str, float]] = {}
    for name, values in result.per_class.items():
        numbers = {score: float(value[0]) for score, value in values.items()}
        undefined = {score: 0.0 for score in ZERO_WHERE_UNDEFINED if np.isnan(numbers[score])}
        per_class[name] = {**numbers, **undefined, "n": int(numbers["n"])}
    return {
        "scores": {name: float(value[0]) for name, value in result.scores.items()},
        "per_class": per_class,
        "confusion": result.confusion[0].astype(int).tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class WeightedScores:
    """Scores of one task for B sets of case weights.

    ``scores``, by name ``(B,)``:

    - ``accuracy``: share of the cases that are right; for multilabel in every class.
    - ``balanced_accuracy``: mean recall of the classes that occur; for multilabel the mean over them of (recall + specificity) / 2.
    - ``macro_f1``: mean F1 of all classes; a class that is neither there nor predicted counts 0.
    - ``auroc``: mean over classes of the area under the ROC curve of the class against the rest, ties counting half.
    - ``mcc``: Matthews correlation coefficient of all classes together, 0 if only one class is there or predicted; for multilabel the
      mean over the classes that occur.
    - ``macro_average_precision``: mean over the classes that occur (multilabel only).
    - ``quadratic_kappa``: Cohen's kappa, errors counting by their squared distance (ordinal only).
    - ``brier``: mean over cases of the sum over classes of (probability - truth)^2, 0 to 2 (Brier's own definition, twice the one that
      is common for two classes); for multilabel the mean over cases and classes, 0 to 1.
    - ``ece``: expected calibration error. The cases are put into ten equally wide bins by the probability of the class they are
      predicted as, each bin closed above: (0, 0.1], ... (0.9, 1]. It is the mean over cases of |share that is right - mean probability|
      in the case's bin; for multilabel computed for every class from its probability and frequency, then averaged over classes.
    - ``log_loss``: mean over cases of -log(probability of the true class), natural logarithm, probabilities clipped to 2.2e-16; for
      multilabel of the binary cross-entropy, averaged over classes.

    ``per_class``, by class and name ``(B,)``, the class against the rest: ``n`` (weight of its cases), ``precision``, ``recall``,
    ``specificity``, ``f1``, ``auroc``, ``average_precision``. NaN where nothing can be divided.

    ``confusion``: ``(B, K, K)``, rows are true classes; for multilabel ``(B, K, 2, 2)``, by class ``[[TN, FP], [FN, TP]]``.
    """

    scores: dict[str, np.ndarray]
    per_class: dict[str, dict[str, np.ndarray]]
    confusion: np.ndarray


def weighted_scores(
    task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray], weights: np.ndarray
) -> WeightedScores:
    """Scores of one task, each case counting as often as its weight says.

    Args:
        task: Its classes and type.
        targets: What is true, by case: class index, or 0 and 1 by class for multilabel.
        probabilities: ``(K,)`` by case.
        weights: ``(B, cases)``, 0 or more.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    weights = np.asarray(weights, dtype=np.float64).reshape(len(weights), len(probabilities))
    truth = indicators(task, targets)
    decided = indicators(task, [predicted_target(task, row) for row in probabilities])
    by_class = _scores_by_class(truth, decided, probabilities, weights)
    total = weights.sum(axis=1)
    nothing = total == 0

    scores = {
        "accuracy": _ratio(weights @ (truth == decided).all(axis=1), total),
        "balanced_accuracy": _balanced_accuracy(task, by_class),
        "macro_f1": np.where(nothing, NAN, np.nan_to_num(by_class["f1"]).mean(axis=1)),
        "auroc": _mean_of_numbers(by_class["auroc"]),
    }
    if task.is_multilabel:
        confusion = _confusion_by_class(truth, decided, weights)
        by_class_mcc = np.where(by_class["n"] > 0, matthews_correlation(confusion), NAN)
        scores |= {"mcc": _mean_of_numbers(by_class_mcc), "macro_average_precision": _mean_of_numbers(by_class["average_precision"])}
    else:
        confusion = np.stack([weights @ (truth[:, [k]] & decided) for k in range(task.num_classes)], axis=1)
        scores["mcc"] = matthews_correlation(confusion)
    if task.is_ordinal:
        scores["quadratic_kappa"] = quadratic_kappa(confusion)
    scores["brier"] = _ratio(weights @ _brier_of_cases(task, truth, probabilities), total)
    scores["ece"] = _ratio(_calibration_gap(task, truth, probabilities, weights), total)
    scores["log_loss"] = _ratio(weights @ log_loss_of_cases(task, truth, probabilities), total)
    per_class = {label: {name: values[:, k] for name, values in by_class.items()} for k, label in enumerate(task.classes)}
    return WeightedScores(scores=scores, per_class=per_class, confusion=confusion)


def indicators(task: ClassificationTask, targets: Sequence[int | np.ndarray]) -> np.ndarray:
    """Targets as a boolean table ``(cases, K)``."""
    if task.is_multilabel:
        return np.asarray(targets, dtype=np.float64).reshape(-1, task.num_classes) > 0.5
    return np.asarray(targets, dtype=int).reshape(-1, 1) == np.arange(task.num_classes)


def matthews_correlation(confusion: np.ndarray) -> np.ndarray:
    """Matthews correlation coefficient of confusion matrices ``(..., K, K)``.

    0 if only one class is there, or only one predicted; NaN without cases.
    """
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total, right = confusion.sum(axis=(-1, -2)), np.trace(confusion, axis1=-2, axis2=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    correlation = _ratio(right * total - (true * predicted).sum(axis=-1), np.sqrt(spread))
    return np.where(total == 0, NAN, np.nan_to_num(correlation))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa of ordered classes, errors counting by their squared distance.

    Args:
        confusion: ``(..., K, K)``.

    Returns:
        ``(...)``; NaN if all cases are one class, truly and predicted.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    classes = np.arange(confusion.shape[-1])
    weights = (classes[:, None] - classes[None]) ** 2
    total = confusion.sum(axis=(-1, -2))
    expected = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    return 1 - _ratio((weights * confusion).sum(axis=(-1, -2)) * total, (weights * expected).sum(axis=(-1, -2)))


def log_loss_of_cases(task: ClassificationTask, truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log loss of every case ``(cases,)`` from ``(cases, K)``; see :class:`WeightedScores`."""
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if task.is_multilabel:
        return -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean(axis=1)
    return -np.where(truth, np.log(clipped), 0).sum(axis=1)


def roc_curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1), one point for every different score.

    Args:
        truth: Boolean ``(cases,)`` with cases of both kinds.
        scores: ``(cases,)``.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives = np.cumsum(truth[order])[last_of_ties]
    false_positives = last_of_ties + 1 - true_positives
    return np.append(0, false_positives / (~truth).sum()), np.append(0, true_positives / truth.sum())


def reliability(
    task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray]
) -> dict[str, list[dict]]:
    """The bins of the calibration error that hold cases.

    Returns:
        By curve the bins ``{"low", "high", "n", "mean_probability", "frequency"}``. Curves are the classes for multilabel, else the one
        named ``predicted class``, whose probability is that of the class a case is predicted as and whose frequency is the accuracy.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    events = _events(task, indicators(task, targets), probabilities)
    return {name: _bins(probability, happened) for name, (probability, happened) in events.items()}


def _events(task: ClassificationTask, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By curve the predicted probability of something and whether it is so, each ``(cases,)``."""
    if task.is_multilabel:
        return {label: (probabilities[:, k], truth[:, k]) for k, label in enumerate(task.classes)}
    decided = indicators(task, [predicted_target(task, row) for row in probabilities])
    return {"predicted class": (np.where(decided, probabilities, 0).sum(axis=1), (truth & decided).any(axis=1))}


def _bin_members(probability: np.ndarray) -> np.ndarray:
    """In which calibration bin each case lies, boolean ``(cases, bins)``."""
    return np.searchsorted(BIN_EDGES[1:-1], probability, side="left")[:, None] == np.arange(CALIBRATION_BINS)


def _bins(probability: np.ndarray, happened: np.ndarray) -> list[dict]:
    """The bins of one reliability curve."""
    bins = []
    for index, inside in enumerate(_bin_members(probability).T):
        if inside.any():
            values = {"n": int(inside.sum()), "mean_probability": probability[inside].mean(), "frequency": happened[inside].mean()}
            bins.append({"low": float(BIN_EDGES[index]), "high": float(BIN_EDGES[index + 1]), **values})
    return bins


def _calibration_gap(task: ClassificationTask, truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error times the number of cases, ``(B,)``: averaged over curves, |sum of what is so - sum of probabilities|."""
    gaps = []
    for probability, happened in _events(task, truth, probabilities).values():
        excess = _bin_members(probability) * (happened - probability)[:, None]
        gaps.append(np.abs(weights @ excess).sum(axis=1))
    return np.mean(gaps, axis=0)


def _brier_of_cases(task: ClassificationTask, truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Brier score of every case ``(cases,)``."""
    squares = (probabilities - truth) ** 2
    return squares.mean(axis=1) if task.is_multilabel else squares.sum(axis=1)


def _scores_by_class(truth: np.ndarray, decided: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each class against the rest, by name ``(B, K)``."""
    true_positives, positives, predicted = weights @ (truth & decided), weights @ truth, weights @ decided
    total = weights.sum(axis=1, keepdims=True)
    true_negatives = weights @ (~truth & ~decided)
    areas, precisions = np.empty_like(positives), np.empty_like(positives)
    for k in range(truth.shape[1]):
        areas[:, k], precisions[:, k] = _ranking_scores(truth[:, k], probabilities[:, k], weights)
    return {
        "n": positives,
        "precision": _ratio(true_positives, predicted),
        "recall": _ratio(true_positives, positives),
        "specificity": _ratio(true_negatives, total - positives),
        "f1": _ratio(2 * true_positives, positives + predicted),
        "auroc": areas,
        "average_precision": precisions,
    }


def _ranking_scores(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve, and average precision (area under the precision-recall curve as a sum of steps), each ``(B,)``.

    The area is NaN without cases of both kinds, the average precision without positive ones.
    """
    if len(scores) == 0:
        return np.full(len(weights), NAN), np.full(len(weights), NAN)
    order = np.argsort(-scores, kind="stable")
    # Cases with equal scores pass the threshold together.
    first_of_ties = np.append(0, np.flatnonzero(np.diff(scores[order])) + 1)
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * truth[order], first_of_ties, axis=1)
    everything = np.add.reduceat(sorted_weights, first_of_ties, axis=1)
    above, positives_above = np.cumsum(everything, axis=1), np.cumsum(positives, axis=1)
    negatives_above = above - positives_above
    all_positives, all_negatives = positives_above[:, -1], negatives_above[:, -1]
    outranked = all_negatives[:, None] - negatives_above + (everything - positives) / 2
    area = _ratio((positives * outranked).sum(axis=1), all_positives * all_negatives)
    precision = np.nan_to_num(_ratio(positives_above, above))
    return area, _ratio((positives * precision).sum(axis=1), all_positives)


def _confusion_by_class(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``(B, K, 2, 2)``: by class ``[[TN, FP], [FN, TP]]``."""
    cells = [[weights @ (~truth & ~decided), weights @ (~truth & decided)], [weights @ (truth & ~decided), weights @ (truth & decided)]]
    return np.moveaxis(np.array(cells), (0, 1), (-2, -1))


def _balanced_accuracy(task: ClassificationTask, by_class: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean recall of the classes that occur; for multilabel their mean of (recall + specificity) / 2."""
    if not task.is_multilabel:
        return _mean_of_numbers(by_class["recall"])
    halves = _mean_of_numbers(np.stack([by_class["recall"], by_class["specificity"]], axis=-1))
    return _mean_of_numbers(np.where(by_class["n"] > 0, halves, NAN))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), NAN), where=denominator != 0)


def _mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are numbers; NaN without any."""
    is_number = ~np.isnan(values)
    return _ratio(np.where(is_number, values, 0).sum(axis=-1), is_number.sum(axis=-1))
