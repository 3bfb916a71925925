"""How often each training case is drawn, or how much it counts, where classes are unequally frequent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.classification_labels import CaseLabels


def balanced_sampling_probabilities(
    identifiers: Sequence[str], case_labels: CaseLabels, task: str | None = None, *, draw_unknown: bool = True
) -> np.ndarray:
    """Probabilities with which every class of a task is drawn equally often.

    Cases of one class share its part evenly. A multilabel case belongs to each class that it shows, or to a class
    "none". Cases with an unknown label are drawn as often as without balancing, or never.

    Args:
        identifiers: The training cases, in the order of the result.
        case_labels: Labels by identifier and task.
        task: Name of the task; None averages over all tasks.
        draw_unknown: Whether cases without a label for the task are drawn at all.

    Returns:
        float64, one entry per identifier, summing to 1. Uniform where no label is known.
    """
    if len(identifiers) == 0:
        raise ValueError("There are no cases to sample from.")
    if task is None:
        tasks = list(case_labels.tasks)
        if not tasks:
            return np.full(len(identifiers), 1 / len(identifiers))
        return np.mean(
            [balanced_sampling_probabilities(identifiers, case_labels, name, draw_unknown=draw_unknown) for name in tasks], axis=0
        )
    if task not in case_labels.tasks:
        raise ValueError(f"There is no classification task {task!r}. Tasks: {', '.join(case_labels.tasks) or 'none'}.")
    members: dict[int, list[int]] = {}
    unknown: list[int] = []
    for position, identifier in enumerate(identifiers):
        target = case_labels.target(identifier, task)
        if target is None:
            unknown.append(position)
        else:
            for class_index in _classes_of(target):
                members.setdefault(class_index, []).append(position)
    if not members:
        return np.full(len(identifiers), 1 / len(identifiers))
    probabilities = np.zeros(len(identifiers))
    unknown_share = len(unknown) / len(identifiers) if draw_unknown else 0.0
    probabilities[unknown] = unknown_share / max(1, len(unknown))
    for positions in members.values():
        probabilities[positions] += (1 - unknown_share) / len(members) / len(positions)
    return probabilities / probabilities.sum()


def class_weights(identifiers: Sequence[str], case_labels: CaseLabels) -> dict[str, np.ndarray]:
    """Factors of the loss by class, inversely proportional to the number of training cases.

    Args:
        identifiers: The training cases of the fold.
        case_labels: Labels by identifier and task.

    Returns:
        By ``multiclass`` or ``ordinal`` task float64 ``(K,)``, such that the mean over the labelled cases is 1; a class without a training case
        gets 1. Tasks of which no label is known, and ``multilabel`` ones, whose classes do not compete, are left out.
    """
    weights = {}
    for name, task in case_labels.tasks.items():
        targets = [target for identifier in identifiers if (target := case_labels.target(identifier, name)) is not None]
        if task.is_multilabel or not targets:
            continue
        counts = np.bincount(targets, minlength=task.num_classes)
        present = counts > 0
        weights[name] = np.where(present, len(targets) / np.maximum(counts, 1) / present.sum(), 1.0)
    return weights


def _classes_of(target: int | np.ndarray) -> list[int]:
    """Class indices of a target; -1 is the class "none" of a multilabel task."""
    if isinstance(target, np.ndarray) and target.ndim == 1:
        return [int(index) for index in np.flatnonzero(target > 0)] or [-1]
    return [int(target)]
