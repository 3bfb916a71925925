"""The sections about predicted classes: scores, tables and charts of every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunetv2.evaluation.classification_metrics import case_score_name
from nnunetv2.report.content import ReportContent
from nnunetv2.report.markup import Markup, absent, chart_grid, element, interval, paragraph, percent, score, table
from nnunetv2.report.page_content import PageContent, TaskSection
from nnunetv2.report.scores import predicted_counts
from nnunetv2.report.wording import count
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

SCORE_NAMES = {
    "accuracy": ("Accuracy", "share of the cases that are right", percent),
    "balanced_accuracy": ("Balanced accuracy", "mean over classes of the share of their cases that are right", percent),
    "macro_f1": ("Macro-F1", "mean over classes of the F1 score, 0 to 1", score),
    "auroc": ("AUROC", "how well the probabilities rank cases: 0.5 is guessing, 1 perfect", score),
    "mcc": ("Matthews correlation", "-1 to 1, 0 is guessing", score),
    "macro_average_precision": ("Average precision", "mean over classes of the area under the precision-recall curve", score),
    "quadratic_kappa": ("Quadratic kappa", "agreement of ordered classes, far errors count more: 0 is chance, 1 perfect", score),
    "brier": ("Brier score", "squared error of the probabilities, lower is better", score),
    "ece": ("Calibration error", "how far the probabilities are from what comes true, lower is better", score),
    "log_loss": ("Log loss", "price of probabilities given to wrong classes, lower is better", score),
}
MULTILABEL_MEANINGS = {
    "accuracy": "share of the cases that are right in all findings",
    "balanced_accuracy": "mean over findings of (sensitivity + specificity) / 2",
}
HEAD_NAMES = {
    "refit": "refitted heads (trained after the segmentation)",
    "joint": "joint heads (trained together with the segmentation)",
    "mixed": "different heads in different folds",
    "calibrated": "calibrated predictions",
    "predicted": "predictions",
}


NO_WIDTH = (
    "An interval without width, such as 100 % (100–100), does not mean certainty: all cases at hand agree, so that drawing them again "
    "gives the same number. With n such cases the true share may still be about 3/n away (3 of 10, 1 of 30)."
)


def class_sections(page: PageContent) -> list[tuple[str, str, Any]]:
    """One section for each task, or one that says why there is none."""
    content = page.content
    if not content.class_rows:
        return [("classes", "Classes", [absent(content.missing.get("classes", "There are no classes."))])]
    sections = []
    for name, task in content.tasks.items():
        inside = _scored_task(page, page.classes[name]) if name in page.classes else _unscored_task(page, task)
        sections.append((f"class-{name}", f"Class: {name}", inside))
    return sections


def _scored_task(page: PageContent, section: TaskSection) -> list[Any]:
    """Scores, tables and charts of a task."""
    content, task, report = page.content, section.task, section.report
    unknown = f" {count(report['unknown'], 'predicted case')} without a known class do not count." if report["unknown"] else ""
    heads = HEAD_NAMES.get(next(iter(content.class_tables)), next(iter(content.class_tables)))
    drawn = "groups (for example patients)" if content.groups is not None else "cases"
    return [
        paragraph(
            f"{count(report['n'], 'case')} with a known class; {heads}.{unknown} Intervals: {page.draws} bootstrap draws of {drawn}."
        ),
        element("h3", "Overall"),
        _overall_table(section),
        element("h3", "Each class"),
        _per_class_table(section),
        paragraph(
            "Sensitivity: share of the cases of the class that were found. Specificity: share of all others that were not taken for it. "
            "Precision: share of the cases predicted as the class that are. F1 combines sensitivity and precision, AUROC and average "
            "precision (AP) judge the probabilities without a threshold.",
            class_="soft",
        ),
        *([paragraph(NO_WIDTH, class_="soft")] if _has_intervals_without_width(report) else []),
        element("h3", "Charts"),
        chart_grid(section.charts, "charts columns"),
        *_calibration(content, task),
        *_heads_table(content, section),
    ]


def _overall_table(section: TaskSection) -> Markup:
    """All scores of a task with what they mean."""
    report = section.report
    rows = []
    for name, (label, meaning, form) in SCORE_NAMES.items():
        if name not in report["scores"]:
            continue
        meaning = MULTILABEL_MEANINGS.get(name, meaning) if section.task.is_multilabel else meaning
        rows.append([label, interval(report["scores"][name], report["intervals"]["scores"][name], form), meaning])
    return table(
        ["score", "value (95 % interval)", "meaning"], rows, caption=f"{section.task.name}: scores of all cases together", class_="wordy"
    )


def _per_class_table(section: TaskSection) -> Markup:
    """Every class against the rest."""
    report = section.report
    forms = {"recall": percent, "specificity": percent, "precision": percent, "f1": score, "auroc": score, "average_precision": score}
    rows = [
        [label, values["n"], *(interval(values[name], report["intervals"]["per_class"][label][name], form) for name, form in forms.items())]
        for label, values in report["per_class"].items()
    ]
    header = ["class", "cases", "sensitivity", "specificity", "precision", "F1", "AUROC", "AP"]
    return table(header, rows, caption=f"{section.task.name}: each class against the rest, with 95 % intervals")


def _has_intervals_without_width(report: Mapping[str, Any]) -> bool:
    """Whether some share of a class is the same in every bootstrap draw."""
    limits = [intervals[name] for intervals in report["intervals"]["per_class"].values() for name in ("recall", "specificity", "precision")]
    return any(one["draws"] and one["low"] == one["high"] for one in limits)


def _unscored_task(page: PageContent, task: ClassificationTask) -> list[Markup]:
    """How often each class was predicted, where the truth is not known."""
    content = page.content
    counts, total = predicted_counts(content, task), len(content.class_rows)
    probabilities = np.array([row[task.name] for row in content.class_rows.values()])
    rows = [
        [label, n, percent(n / total), percent(float(mean))]
        for (label, n), mean in zip(counts.items(), probabilities.mean(axis=0), strict=True)
    ]
    why = content.missing.get("labels", "None of the predicted cases has a known class.")
    return [
        absent(why),
        table(
            ["class", "predicted cases", "share", "mean probability"],
            rows,
            caption=f"{task.name}: what was predicted, {count(total, 'case')}",
        ),
    ]


def _heads_table(content: ReportContent, section: TaskSection) -> list[Markup]:
    """The other sets of heads beside the one that counts."""
    if not section.comparisons:
        return []
    label = SCORE_NAMES[case_score_name(section.task)][0]
    shown = [name for name in (case_score_name(section.task), "balanced_accuracy", "auroc", "brier") if name in section.report["scores"]]
    counting = next(iter(content.class_tables))

    def cells(report: Mapping[str, Any]) -> list[Any]:
        return [interval(report["scores"][n], report["intervals"]["scores"][n], SCORE_NAMES[n][2]) if report else "–" for n in shown]

    rows = [[HEAD_NAMES.get(counting, counting), *cells(section.report), "counts"]]
    for other in section.comparisons:
        limits = other.difference
        text = f"{other.value - other.counting_value:+.2f}" + (
            f" ({limits['low']:+.2f} to {limits['high']:+.2f})" if limits["draws"] else ""
        )
        rows.append([HEAD_NAMES.get(other.name, other.name), *cells(other.report), text])
    return [
        element("h3", "Sets of heads"),
        paragraph(
            f"The same cases, predicted by every set of heads of this model; the difference in {label} is paired and has a 95 % interval."
        ),
        table(
            ["heads", *(SCORE_NAMES[name][0] for name in shown), f"difference in {label}"],
            rows,
            caption=f"{section.task.name}: sets of heads",
        ),
    ]


def _calibration(content: ReportContent, task: ClassificationTask) -> list[Markup]:
    """What a stored calibration gains."""
    stored = (content.calibration or {}).get("tasks", {}).get(task.name)
    if content.raw_class_rows is not None:
        return [
            paragraph("The probabilities are calibrated (classification_calibration.json of the model); the reliability chart shows both.")
        ]
    if not isinstance(stored, Mapping):
        return []
    report = stored.get("report") or {}
    held_out = report.get("held_out")
    gain = (
        f" On held-out folds it changes the log loss from {held_out['log_loss_before']:.3f} to {held_out['log_loss_after']:.3f}."
        if isinstance(held_out, Mapping)
        else ""
    )
    kept = f" Raw probabilities are kept: {report['reason']}." if report.get("reason") else ""
    of = content.calibration.get("checkpoint", "checkpoint_final.pth")
    text = f"The model has a calibration, which is applied to new predictions of {of}; the scores here are those before it.{gain}{kept}"
    return [paragraph(text)]
