"""Numbers of a report, and what they mean: scores with intervals, warnings in plain words, the cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2.evaluation.bootstrap import DRAWS, mean_interval, percentile_interval, resampling_weights
from nnunetv2.evaluation.classification_metrics import (
    case_score_name,
    indicators,
    known_cases,
    log_loss_of_cases,
    weighted_scores,
)
from nnunetv2.evaluation.evaluate_classification import evaluate_tables
from nnunetv2.report.content import PREDICTIONS, ClassRows, ReportContent
from nnunetv2.report.wording import and_list, count, has, some, was
from nnunetv2.utilities.label_handling.class_decision import MULTILABEL_THRESHOLD, predicted_target
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

FEW_CASES = 10  # of a class or structure: an interval of a share is then half of the scale wide
FEWEST_FOR_COLLAPSE = 5  # fewer cases may well be all the same
Interval = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class StructureScores:
    """How well one structure was outlined."""

    cases: int  # in which it is, in the reference or the prediction; only these have a Dice
    in_reference: int
    mean: float
    interval: Interval
    quartiles: tuple[float, float, float]
    missed: int  # cases that have it and in which nothing was found of it
    invented: int  # cases that do not have it and in which it was predicted
    dice: Mapping[str, float]  # by identifier, numbers only


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """All structures, and the mean over them."""

    structures: Mapping[str, StructureScores]
    cases: int
    mean: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """One set of heads against the one that counts, on the same cases."""

    name: str
    score: str
    value: float
    counting_value: float
    difference: Interval  # of this one minus the one that counts
    report: Mapping[str, Any]


def segmentation_scores(content: ReportContent, draws: int = DRAWS) -> SegmentationScores | None:
    """Dice by structure; None without any."""
    if not content.overlaps:
        return None
    identifiers = list(content.overlaps)
    names = list(dict.fromkeys(name for metrics in content.overlaps.values() for name in metrics))
    groups = [content.group_of(identifier) for identifier in identifiers]
    table = np.array([[content.overlaps[i].get(name, {}).get("Dice", np.nan) for name in names] for i in identifiers], dtype=np.float64)
    structures = {name: _structure(content, name, column, identifiers, groups, draws) for name, column in zip(names, table.T, strict=True)}
    means = [structure.mean for structure in structures.values() if structure.cases]
    return SegmentationScores(
        structures=structures,
        cases=len(identifiers),
        mean=float(np.mean(means)) if means else float("nan"),
        interval=mean_interval(table, groups, draws),
    )


def _structure(
    content: ReportContent, name: str, dice: np.ndarray, identifiers: Sequence[str], groups: Sequence[str], draws: int
) -> StructureScores:
    """Scores of one structure from its Dice by case."""
    numbers = dice[~np.isnan(dice)]
    counts = [content.overlaps[identifier].get(name, {}) for identifier in identifiers]
    return StructureScores(
        cases=len(numbers),
        in_reference=sum(values.get("n_ref", 0) > 0 for values in counts),
        mean=float(numbers.mean()) if len(numbers) else float("nan"),
        interval=mean_interval(dice, groups, draws),
        quartiles=tuple(np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()) if len(numbers) else (float("nan"),) * 3,
        missed=sum(values.get("n_ref", 0) > 0 and values.get("TP", 0) == 0 for values in counts),
        invented=sum(values.get("n_ref", 0) == 0 and values.get("n_pred", 0) > 0 for values in counts),
        dice={identifier: float(value) for identifier, value in zip(identifiers, dice, strict=True) if not np.isnan(value)},
    )


def class_scores(
    content: ReportContent, rows: ClassRows | None = None, *, only: str | None = None, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """By task the report of :func:`~nnunetv2.evaluation.evaluate_classification.evaluate_tables`; empty without truth or table.

    Args:
        content: Labels, groups and the table that counts.
        rows: Another table.
        only: One task instead of all.
        draws: Of the bootstrap.
    """
    rows = content.class_rows if rows is None else rows
    if content.case_labels is None or not rows:
        return {}
    groups = None if content.groups is None else {identifier: content.group_of(identifier) for identifier in rows}
    tasks = {name: task for name, task in content.tasks.items() if only in (None, name)}
    reports = evaluate_tables(tasks, rows, content.case_labels, groups, draws=draws)["tasks"]
    return {name: report for name, report in reports.items() if report["n"]}


def compare_heads(content: ReportContent, task: ClassificationTask, draws: int = DRAWS) -> list[HeadComparison]:
    """The other sets of heads against the one that counts, on the cases that both predicted; draws are paired."""
    comparisons = []
    for name in list(content.class_tables)[1:]:
        rows = content.class_tables[name]
        common = sorted(set(rows) & set(content.class_rows))
        known, targets, other = known_cases(task.name, {i: rows[i] for i in common}, content.case_labels)
        if not known:
            continue
        counting = [content.class_rows[identifier][task.name] for identifier in known]
        score = case_score_name(task)
        differences = [np.empty(0)]
        if len({content.group_of(i) for i in known}) > 1:
            for weights in resampling_weights([content.group_of(i) for i in known], draws):
                values = [weighted_scores(task, targets, table, weights).scores[score] for table in (other, counting)]
                differences.append(values[0] - values[1])
        ones = np.ones((1, len(known)))
        value, counting_value = (float(weighted_scores(task, targets, table, ones).scores[score][0]) for table in (other, counting))
        comparisons.append(
            HeadComparison(
                name=name,
                score=score,
                value=value,
                counting_value=counting_value,
                difference=percentile_interval(np.concatenate(differences)),
                report=class_scores(content, rows, only=task.name, draws=draws).get(task.name, {}),
            )
        )
    return comparisons


def chance_level(task: ClassificationTask, report: Mapping[str, Any]) -> float:
    """The balanced accuracy of guessing: one half for multilabel, else one by the number of classes that occur."""
    if task.is_multilabel:
        return 0.5
    return 1 / max(1, sum(values["n"] > 0 for values in report["per_class"].values()))


def predicted_counts(content: ReportContent, task: ClassificationTask, identifiers: Sequence[str] | None = None) -> dict[str, int]:
    """How often each class was predicted."""
    rows = [content.class_rows[i][task.name] for i in (content.class_rows if identifiers is None else identifiers)]
    decided = indicators(task, [predicted_target(task, row) for row in rows])
    return {label: int(n) for label, n in zip(task.classes, decided.sum(axis=0), strict=True)}


# what to say about it


def warnings_of(content: ReportContent, segmentation: SegmentationScores | None, classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing the numbers, the gravest first."""
    found = _about_training_cases(content)
    if content.failed:
        found.append(
            f"{count(len(content.failed), 'case')} could not be predicted and {has(len(content.failed))} no class: {some(content.failed)}."
        )
    useless: set[str] = set()
    for name, task in content.tasks.items() if content.class_rows else ():
        collapsed = _about_collapse(content, task)
        useless |= {name} if collapsed else set()
        found += collapsed or _about_missing_classes(content, task)
    if segmentation is not None:
        found += _about_lost_structures(segmentation)
    scored = [(content.tasks[name], report) for name, report in classes.items()]
    for task, report in scored:
        found += [] if task.name in useless else _about_chance(task, report)
    for task, report in scored:
        found += _about_few_cases(task, report)
    return found + (_about_rare_structures(segmentation) if segmentation is not None else [])


def _about_training_cases(content: ReportContent) -> list[str]:
    """Scores of cases that a network has seen mean little."""
    found = []
    if content.seen_in_training:
        number, total = len(content.seen_in_training), len(content.identifiers)
        if content.kind == PREDICTIONS and not content.folds:
            found.append(
                f"{number} of {count(total, 'predicted case')} belong to the data that the model was developed on "
                f"({some(content.seen_in_training)}). The network may have been trained on them: their scores say little about new "
                "patients."
            )
        else:
            found.append(
                f"{number} of {count(total, 'case')} {was(number)} in the training of the very network that predicted them "
                f"({some(content.seen_in_training)}). Their scores say little about new patients."
            )
    if content.shared_groups:
        found.append(
            f"{count(len(content.shared_groups), 'group')} of cases (for example patients) {has(len(content.shared_groups))} cases both in "
            f"training and in validation ({some(content.shared_groups)}). The scores are probably too good."
        )
    return found


def _about_collapse(content: ReportContent, task: ClassificationTask) -> list[str]:
    """A head that says the same of every case, though they are not all the same or nothing is known about them."""
    total = len(content.class_rows)
    decided = {task.format_target(predicted_target(task, row[task.name])) for row in content.class_rows.values()}
    truth = content.case_labels.class_counts(content.class_rows)[task.name] if content.case_labels is not None else {}
    kinds = [label for label in task.classes if truth.get(label)]
    if total < FEWEST_FOR_COLLAPSE or len(decided) > 1 or (len(kinds) == 1 and not task.is_multilabel):
        return []
    return [
        f"{task.name}: every one of the {total} cases was predicted as {decided.pop()}. The head has collapsed; its classes are useless."
    ]


def _about_missing_classes(content: ReportContent, task: ClassificationTask) -> list[str]:
    """Classes that are never predicted."""
    counts = predicted_counts(content, task)
    truth = content.case_labels.class_counts(content.class_rows)[task.name] if content.case_labels is not None else {}
    never = [label for label, n in counts.items() if n == 0 and truth.get(label, 0) > 0]
    if never:
        return [f"{task.name}: {and_list(never)} {was(len(never))} never predicted, although there are such cases."]
    return []


def _about_chance(task: ClassificationTask, report: Mapping[str, Any]) -> list[str]:
    """Whether guessing would do as well."""
    interval, chance = report["intervals"]["scores"]["balanced_accuracy"], chance_level(task, report)
    if interval["draws"] and interval["low"] <= chance:
        text = (
            f"{task.name}: these cases do not show that the prediction is better than guessing, which would reach a balanced accuracy "
            f"of {chance:.2f}; the interval is {interval['low']:.2f} to {interval['high']:.2f}."
        )
        return [text]
    return []


def _about_few_cases(task: ClassificationTask, report: Mapping[str, Any]) -> list[str]:
    """Classes with too few cases for a number."""
    few = [f"{label} ({values['n']})" for label, values in report["per_class"].items() if values["n"] < FEW_CASES]
    if not few:
        return []
    return [
        f"{task.name}: fewer than {FEW_CASES} cases of {and_list(few)}. Scores of such classes are hardly more than single observations."
    ]


def _about_lost_structures(segmentation: SegmentationScores) -> list[str]:
    """Structures that were never found."""
    never = [name for name, s in segmentation.structures.items() if s.in_reference and s.missed == s.in_reference]
    return [f"Segmentation: {and_list(never)} {was(len(never))} not found in a single case."] if never else []


def _about_rare_structures(segmentation: SegmentationScores) -> list[str]:
    """Structures that few cases have."""
    few = [f"{name} ({s.in_reference})" for name, s in segmentation.structures.items() if s.in_reference < FEW_CASES]
    return [f"Segmentation: fewer than {FEW_CASES} cases have {and_list(few)}; the Dice of such structures is uncertain."] if few else []


# cases to look at


def worst_segmented(content: ReportContent, number: int) -> list[tuple[str, float]]:
    """Cases with the lowest mean Dice over their structures."""
    means = {}
    for identifier, metrics in content.overlaps.items():
        dice = [values["Dice"] for values in metrics.values() if not np.isnan(values["Dice"])]
        if dice:
            means[identifier] = float(np.mean(dice))
    return sorted(means.items(), key=lambda item: (item[1], item[0]))[:number]


def worst_classified(content: ReportContent, task: ClassificationTask, number: int) -> list[tuple[str, float]]:
    """Cases with the highest log loss: a true class got the least probability. Without truth: the least certain ones."""
    if content.case_labels is not None:
        known, targets, probabilities = known_cases(task.name, content.class_rows, content.case_labels)
        if known:
            values = log_loss_of_cases(task, indicators(task, targets), np.asarray(probabilities))
            return sorted(zip(known, values.tolist(), strict=True), key=lambda item: (-item[1], item[0]))[:number]
    doubt = {}
    for identifier, row in content.class_rows.items():
        p = np.asarray(row[task.name])
        doubt[identifier] = float(-np.abs(p - MULTILABEL_THRESHOLD).min() if task.is_multilabel else -p.max())
    return sorted(doubt.items(), key=lambda item: (-item[1], item[0]))[:number]
