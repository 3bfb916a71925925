"""Fits the temperatures and offsets of calibrated class probabilities. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2.evaluation.classification_metrics import indicators, log_loss_of_cases
from nnunetv2.utilities.label_handling.class_calibration import METHODS, TaskCalibration, logits_of, probabilities_of
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

LARGEST_TEMPERATURE = 10.0  # and its inverse is the smallest; beyond, predictions are as good as uniform or certain
LARGEST_OFFSET = 3.0  # log odds, a factor of 20
# Standard deviations of the Gaussian priors on log(temperature) and offset: a dozen cases hardly move them, hundreds do.
PRIOR_OF_LOG_TEMPERATURE = 0.5
PRIOR_OF_OFFSET = 0.5
FEWEST_CASES = 20  # below, nothing is fitted
FEWEST_OF_A_CLASS = 5  # with and without the class, for a multilabel class or an offset of its own


def fit_calibration(
    task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray], method: str = "temperature"
) -> TaskCalibration:
    """The calibration with the smallest log loss, drawn towards changing nothing.

    Minimised is the summed negative log likelihood plus ``log(T)^2 / (2 * 0.5^2)`` for each temperature and ``b^2 / (2 * 0.5^2)`` for
    each offset (a Gaussian prior), within 0.1 <= T <= 10 and \\|b\\| <= 3. The start is T = 1, b = 0, so the result is always the same.

    Args:
        task: Its classes and type.
        targets: What is true, by case.
        probabilities: Raw ones, ``(K,)`` by case.
        method: ``temperature``: one temperature, for multilabel one for each class. ``vector``: a temperature and an offset for each
            class; for ordinal one temperature and an offset for each step.

    Returns:
        With the reason in its report where nothing, or not everything, was fitted because there are too few cases.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}. Choose one of {', '.join(METHODS)}.")
    truth = indicators(task, targets)
    if len(truth) < FEWEST_CASES:
        return TaskCalibration.identity(task, reason=f"{len(truth)} cases with a known label, expected {FEWEST_CASES} or more")
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    logits = logits_of(task.type, probabilities)
    rare = [bool(min(column.sum(), (~column).sum()) < FEWEST_OF_A_CLASS) for column in truth.T]
    temperature_of, offset_of = _parameters(task, method, rare)
    fitted = _minimise(task, truth, logits, temperature_of, offset_of)
    temperatures, offsets = _expanded(fitted, temperature_of, offset_of)
    report = {}
    if any(rare) and (task.is_multilabel or method == "vector"):
        names = ", ".join(label for label, is_rare in zip(task.classes, rare, strict=True) if is_rare)
        report["reason"] = f"fewer than {FEWEST_OF_A_CLASS} cases with or without {names}: no parameter of its own"
    return TaskCalibration(
        task_type=task.type, classes=task.classes, temperatures=tuple(temperatures), offsets=tuple(offsets), report=report
    )


def mean_log_loss(task: ClassificationTask, targets: Sequence[int | np.ndarray], probabilities: Sequence[np.ndarray]) -> float:
    """Log loss over all cases; NaN without any."""
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    losses = log_loss_of_cases(task, indicators(task, targets), probabilities)
    return float(losses.mean()) if len(losses) else float("nan")


def _parameters(task: ClassificationTask, method: str, rare: Sequence[bool]) -> tuple[list[int], list[int]]:
    """By logit the number of the free temperature and of the free offset that it takes; -1: none of its own."""
    indices = range(task.num_logits)
    if task.is_multilabel:
        own = [-1 if rare[k] else k for k in indices]
        return own, own if method == "vector" else [-1] * task.num_logits
    if method == "temperature":
        return [0] * task.num_logits, [-1] * task.num_logits
    if task.is_ordinal:  # step k lies between the classes k and k + 1
        return [0] * task.num_logits, [-1 if rare[k] or rare[k + 1] else k for k in indices]
    # Rare classes share one temperature.
    return [len(rare) if rare[k] else k for k in indices], [-1 if rare[k] else k for k in indices]


def _minimise(
    task: ClassificationTask, truth: np.ndarray, logits: np.ndarray, temperature_of: Sequence[int], offset_of: Sequence[int]
) -> dict[tuple[str, int], float]:
    """Fitted log temperatures and offsets by the numbers of :func:`_parameters`."""
    from scipy.optimize import minimize

    keys = [("temperature", n) for n in sorted({*temperature_of} - {-1})] + [("offset", n) for n in sorted({*offset_of} - {-1})]
    if not keys:
        return {}
    deviations = np.array([PRIOR_OF_LOG_TEMPERATURE if kind == "temperature" else PRIOR_OF_OFFSET for kind, _ in keys])
    limits = [np.log(LARGEST_TEMPERATURE) if kind == "temperature" else LARGEST_OFFSET for kind, _ in keys]
    # The log loss of multilabel is a mean over classes, the likelihood a sum.
    factor = task.num_classes if task.is_multilabel else 1

    def loss(values: np.ndarray) -> float:
        temperatures, offsets = _expanded(dict(zip(keys, values, strict=True)), temperature_of, offset_of)
        probabilities = probabilities_of(task.type, logits / temperatures + offsets)
        return factor * float(log_loss_of_cases(task, truth, probabilities).sum()) + 0.5 * float(((values / deviations) ** 2).sum())

    result = minimize(loss, np.zeros(len(keys)), method="L-BFGS-B", bounds=[(-limit, limit) for limit in limits])
    return dict(zip(keys, result.x, strict=True))


def _expanded(
    fitted: dict[tuple[str, int], float], temperature_of: Sequence[int], offset_of: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and offset of every logit; what was not fitted changes nothing."""
    temperatures = np.array([np.exp(fitted.get(("temperature", n), 0.0)) for n in temperature_of])
    return temperatures, np.array([fitted.get(("offset", n), 0.0) for n in offset_of])
