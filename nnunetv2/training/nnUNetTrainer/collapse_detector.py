"""Notices heads that learned nothing: the same class for every validation case, or a loss that guessing would reach."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nnunetv2.evaluation.classification_metrics import indicators, log_loss_of_cases
from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

EPOCHS_TO_NOTICE = 10
TOLERANCE = 0.01  # of the cross-entropy of a guess
ADVICE = (
    "Look at the loss of the task in progress.png. Check labels.csv and the counts by class (nnUNetv2_plan_and_preprocess "
    "--verify_dataset_integrity), name the structures that show the class as 'evidence' in dataset.json, draw the classes equally often "
    "(balanced_sampling of the trainer). The head refit at the end starts afresh and is not affected; compare both sets of heads in "
    "validation/classification_summary.json."
)


class CollapseDetector:
    """Watches the validation cases of every epoch.

    Args:
        tasks: Tasks by name.
        case_labels: The true classes.
        epochs_to_notice: In so many epochs after one another a task must look collapsed.
    """

    def __init__(self, tasks: Mapping[str, ClassificationTask], case_labels: CaseLabels, epochs_to_notice: int = EPOCHS_TO_NOTICE) -> None:
        self.tasks = dict(tasks)
        self.case_labels = case_labels
        self.epochs_to_notice = epochs_to_notice
        self.state: dict[str, dict[str, int]] = {name: {"one_class": 0, "guess": 0} for name in self.tasks}  # epochs so far

    def update(self, probabilities: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
        """Look at one epoch.

        Args:
            probabilities: ``(K,)`` by case and task.

        Returns:
            Warnings, one for every sign that has lasted for ``epochs_to_notice`` epochs, and again after as many more.
        """
        warnings = []
        for name, task in self.tasks.items():
            truth = {case: self.case_labels.target(case, name) for case in probabilities}
            known = [case for case, target in truth.items() if target is not None]
            if len({_as_key(truth[case]) for case in known}) < 2:
                continue  # cases of one class alone, for which one answer is right
            rows = np.stack([probabilities[case][name] for case in known])
            decisions = {_as_key(predicted_target(task, row)) for row in rows}
            loss = float(log_loss_of_cases(task, indicators(task, [truth[case] for case in known]), rows).mean())
            guess = math.log(2 if task.is_multilabel else task.num_classes)
            signs = {
                "one_class": (len(decisions) == 1, f"all {len(known)} validation cases get the same answer, {task.format_target(predicted_target(task, rows[0]))!r}"),
                "guess": (abs(loss - guess) <= TOLERANCE * guess, f"the cross-entropy {loss:.3f} is that of a guess ({guess:.3f})"),
            }  # fmt: skip
            for sign, (shows, what) in signs.items():
                lasted = self.state[name][sign] = self.state[name][sign] + 1 if shows else 0
                if lasted and lasted % self.epochs_to_notice == 0:
                    warnings.append(f"WARNING: the classification head of {name} may have collapsed: for {lasted} epochs {what}. {ADVICE}")
        return warnings


def _as_key(target: int | np.ndarray) -> int | tuple[float, ...]:
    return tuple(np.asarray(target).tolist()) if isinstance(target, np.ndarray) and target.ndim else int(target)
