"""Names of classes stand in the pictures as they are."""

from __future__ import annotations

import numpy as np

from nnunetv2.evaluation.bootstrap import bootstrap_intervals
from nnunetv2.evaluation.classification_figures import confusion_figure, reliability_figure, roc_figure
from nnunetv2.evaluation.classification_metrics import reliability, task_report
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

TASK = ClassificationTask(name="t", classes=(r"$\frac$", "_b", "5 $"))


def test_class_names_are_no_formulas_and_none_is_left_out() -> None:
    targets = [0, 1, 2, 0, 1, 2]
    probabilities = list(np.random.default_rng(0).dirichlet(np.ones(3), 6))
    report = {"n": 6, **task_report(TASK, targets, probabilities)}
    intervals = bootstrap_intervals(TASK, targets, probabilities, list("abcdef"), draws=20)
    roc = roc_figure(TASK, targets, probabilities, report, intervals)
    bins = reliability(TASK, targets, probabilities)["predicted class"]
    for figure in (confusion_figure(TASK, report), roc, reliability_figure("t", {name: {"raw": bins} for name in TASK.classes})):
        figure.canvas.draw()  # raises where a name is read as a formula
    assert [text.get_text().split(" (n")[0] for text in roc.legends[0].get_texts()] == [r"\$\frac\$", " _b", r"5 \$"]
