"""Confidence intervals of class scores: cases, or groups of them such as patients, are drawn again with replacement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nnunetv2.evaluation.classification_metrics import weighted_scores
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

DRAWS = 2000
SEED = 12345
LEVEL = 0.95
# Draws that are computed together: bounds the memory, and is part of what the seed means.
DRAWS_AT_ONCE = 100


def resampling_weights(groups: Sequence[str], draws: int = DRAWS, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each case is in each draw, in blocks ``(up to DRAWS_AT_ONCE, cases)``.

    Every draw takes as many groups as there are, with replacement; all cases of a group come along. The same groups and seed give the
    same draws, so that scores of two models on the same cases can be compared draw by draw.

    Args:
        groups: Group of every case.
        draws: Number of draws.
        seed: Of the random numbers.
    """
    group_of_case = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].reshape(-1)
    number = int(group_of_case.max()) + 1 if len(group_of_case) else 0
    random = np.random.default_rng(seed)
    for start in range(0, draws, DRAWS_AT_ONCE):
        block = min(DRAWS_AT_ONCE, draws - start)
        drawn = random.integers(number, size=(block, number)) if number else np.zeros((block, 0), dtype=int)
        offset = np.arange(block)[:, None] * number
        counts = np.bincount((drawn + offset).reshape(-1), minlength=block * number).reshape(block, number)
        yield counts[:, group_of_case]


def bootstrap_intervals(
    task: ClassificationTask,
    targets: Sequence[int | np.ndarray],
    probabilities: Sequence[np.ndarray],
    groups: Sequence[str],
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """95 % intervals of all scores of :func:`~nnunetv2.evaluation.classification_metrics.task_report`: percentiles of the draws.

    Args:
        task: Its classes and type.
        targets: What is true, by case.
        probabilities: ``(K,)`` by case.
        groups: Group of every case; the identifier of the case itself where there are no groups.
        draws: Number of draws.
        seed: Of the random numbers.

    Returns:
        ``{"scores": {NAME: INTERVAL}, "per_class": {CLASS: {NAME: INTERVAL}}}`` with INTERVAL ``{"low", "high", "draws"}``. Draws in
        which a score cannot be computed, such as the recall of a class that was not drawn, are left out; ``draws`` says how many
        count. With less than two groups nothing can be said: NaN, and no draw counts.
    """
    groups = list(groups)
    if len(set(groups)) < 2:
        draws = 0
    blocks = [weighted_scores(task, targets, probabilities, weights) for weights in resampling_weights(groups, draws, seed)]
    # Without a draw the names still come from somewhere: of no set of weights.
    blocks = blocks or [weighted_scores(task, targets, probabilities, np.zeros((0, len(targets))))]
    return {
        "scores": {name: percentile_interval(np.concatenate([block.scores[name] for block in blocks])) for name in blocks[0].scores},
        "per_class": {
            label: {
                name: percentile_interval(np.concatenate([block.per_class[label][name] for block in blocks]))
                for name in values
                if name != "n"
            }
            for label, values in blocks[0].per_class.items()
        },
    }


def mean_interval(values: np.ndarray, groups: Sequence[str], draws: int = DRAWS, seed: int = SEED) -> dict[str, float | int]:
    """95 % interval of the mean of values of cases, such as their Dice.

    Args:
        values: ``(cases,)``, or ``(cases, structures)``: then of the mean over structures of each one's mean over cases. What is no number
            does not count.
        groups: Group of every case; the identifier of the case itself where there are no groups.
        draws: Number of draws.
        seed: Of the random numbers.

    Returns:
        ``{"low", "high", "draws"}``; NaN, and no draw, where fewer than two groups have a value.
    """
    values = np.asarray(values, dtype=np.float64).reshape(len(groups), -1)
    is_number = ~np.isnan(values)
    counts = is_number.any(axis=1)
    values, is_number = np.where(is_number, values, 0)[counts], is_number[counts].astype(np.float64)
    groups = [group for group, has_value in zip(groups, counts, strict=True) if has_value]
    means = [np.empty(0)]
    if len(set(groups)) > 1:
        for weights in resampling_weights(groups, draws, seed):
            numbers = weights @ is_number
            by_structure = np.divide(weights @ values, numbers, out=np.zeros_like(numbers), where=numbers > 0)
            means.append(by_structure.sum(axis=1) / (numbers > 0).sum(axis=1))
    return percentile_interval(np.concatenate(means))


def percentile_interval(values: np.ndarray) -> dict[str, float | int]:
    """``{"low", "high", "draws"}`` of the draws ``(B,)`` that are numbers; NaN without any."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {"low": float("nan"), "high": float("nan"), "draws": 0}
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high), "draws": len(values)}
