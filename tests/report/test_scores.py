"""Warnings in plain words and the order of the cases to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2.report.content import MODEL, PREDICTIONS, ReportContent
from nnunetv2.report.scores import (
    chance_level,
    class_scores,
    compare_heads,
    segmentation_scores,
    warnings_of,
    worst_classified,
    worst_segmented,
)
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks

DATASET = {"labels": {"background": 0, "organ": 1}, "classification": {"grade": {"classes": ["a", "b"]}}}
TASKS = classification_tasks(DATASET)


def content_of(probabilities_of_b: dict[str, float], true: dict[str, str | None], **entries: Any) -> ReportContent:
    """A report on one task with two classes."""
    targets = {case: {"grade": None if label is None else "ab".index(label)} for case, label in true.items()}
    values: dict[str, Any] = {
        "kind": MODEL,
        "folder": Path("model"),
        "dataset_json": DATASET,
        "plans": {},
        "tasks": TASKS,
        "structures": {"organ": 1},
        "identifiers": tuple(probabilities_of_b),
        "class_tables": {"joint": {case: {"grade": np.array([1 - p, p])} for case, p in probabilities_of_b.items()}},
        "case_labels": CaseLabels(TASKS, targets),
    }
    return ReportContent(**values | entries)


def warnings_for(content: ReportContent) -> str:
    return "\n".join(warnings_of(content, segmentation_scores(content), class_scores(content)))


def dice_of(values: dict[str, float], n_ref: int = 5) -> dict[str, dict[str, dict[str, float]]]:
    return {case: {"organ": {"Dice": d, "TP": int(d > 0), "n_ref": n_ref, "n_pred": int(d > 0)}} for case, d in values.items()}


def right_cases(number: int) -> tuple[dict[str, float], dict[str, str]]:
    """Cases that are all predicted well."""
    names = [f"c{i:02d}" for i in range(number)]
    return {n: 0.1 + 0.8 * (i % 2) for i, n in enumerate(names)}, {n: "ab"[i % 2] for i, n in enumerate(names)}


def test_good_predictions_of_enough_cases_need_no_warning() -> None:
    assert warnings_for(content_of(*right_cases(40))) == ""


def test_one_class_for_all_cases_is_a_collapse() -> None:
    cases = {f"c{i}": 0.6 for i in range(12)}
    text = warnings_for(content_of(cases, {case: "ab"[i % 2] for i, case in enumerate(cases)}))
    assert "grade: every one of the 12 cases was predicted as b. The head has collapsed" in text
    assert "better than guessing" not in text  # said by the collapse already
    # where all cases are of one class indeed, that is right
    assert "collapsed" not in warnings_for(content_of(cases, dict.fromkeys(cases, "b")))
    # without any truth nobody knows, and a reader should
    assert "collapsed" in warnings_for(content_of(cases, {}, case_labels=None))


def test_a_class_that_is_never_predicted_is_named() -> None:
    three = classification_tasks({"labels": {}, "classification": {"grade": {"classes": ["a", "b", "c"]}}})
    rows = {f"c{i}": {"grade": np.eye(3)[i % 2]} for i in range(6)}
    truth = CaseLabels(three, {case: {"grade": i % 3} for i, case in enumerate(rows)})
    content = content_of({}, {}, tasks=three, class_tables={"joint": rows}, case_labels=truth, identifiers=tuple(rows))
    assert "grade: c was never predicted, although there are such cases." in warnings_for(content)


def test_few_cases_of_a_class_and_results_like_guessing_are_warned_about() -> None:
    cases = {f"c{i}": 0.9 if i // 4 % 2 else 0.1 for i in range(16)}  # half of each class is right
    text = warnings_for(content_of(cases, {case: "ab"[i % 4 == 0] for i, case in enumerate(cases)}))
    assert "fewer than 10 cases of b (4)" in text and "a (12)" not in text
    assert "better than guessing, which would reach a balanced accuracy of 0.50; the interval is 0." in text


def test_guessing_is_measured_by_the_classes_that_occur() -> None:
    report = {"per_class": {"a": {"n": 3}, "b": {"n": 1}, "c": {"n": 0}}}
    assert chance_level(TASKS["grade"], report) == 0.5


def test_cases_of_the_training_are_the_first_warning() -> None:
    probabilities, true = right_cases(40)
    content = content_of(probabilities, true, seen_in_training=["c03"], shared_groups=["p1", "p2"], failed={"x": "broken"})
    lines = warnings_for(content).splitlines()
    assert lines[0].startswith("1 of 40 cases was in the training of the very network that predicted them (c03).")
    assert lines[1].startswith("2 groups of cases (for example patients) have cases both in training and in validation (p1, p2).")
    assert "1 case could not be predicted and has no class: x." in lines[2]
    content.kind = PREDICTIONS
    assert "1 of 40 predicted cases belong to the data that the model was developed on (c03)." in warnings_for(content)


def test_structures_that_were_never_found_or_are_rare_are_named() -> None:
    probabilities, true = right_cases(40)
    assert "organ was not found in a single case" in warnings_for(
        content_of(probabilities, true, overlaps=dice_of({f"c{i:02d}": 0.0 for i in range(12)}))
    )
    text = warnings_for(content_of(probabilities, true, overlaps=dice_of({"c00": 0.9, "c01": 0.8})))
    assert "fewer than 10 cases have organ (2)" in text


def test_dice_of_a_structure_counts_misses_and_inventions() -> None:
    overlaps = {
        "good": {"organ": {"Dice": 0.8, "TP": 8, "n_ref": 10, "n_pred": 10}},
        "missed": {"organ": {"Dice": 0.0, "TP": 0, "n_ref": 10, "n_pred": 0}},
        "invented": {"organ": {"Dice": 0.0, "TP": 0, "n_ref": 0, "n_pred": 3}},
        "neither": {"organ": {"Dice": float("nan"), "TP": 0, "n_ref": 0, "n_pred": 0}},
    }
    scores = segmentation_scores(content_of({}, {}, overlaps=overlaps))
    organ = scores.structures["organ"]
    assert (organ.cases, organ.in_reference, organ.missed, organ.invented) == (3, 2, 1, 1)
    assert organ.mean == pytest.approx(0.8 / 3) and organ.quartiles[1] == 0
    assert scores.mean == organ.mean and set(organ.dice) == {"good", "missed", "invented"}
    assert organ.interval["low"] == 0 and organ.interval["high"] == pytest.approx(0.8)


def test_cases_of_one_patient_stay_together_in_the_intervals_of_the_dice() -> None:
    overlaps = dice_of({f"c{i}": value for i, value in enumerate([0.2, 0.2, 0.4, 0.4, 0.8, 0.8])})
    alone = segmentation_scores(content_of({}, {}, overlaps=overlaps)).interval
    grouped = segmentation_scores(content_of({}, {}, overlaps=overlaps, groups={f"c{i}": f"p{i // 2}" for i in range(6)})).interval
    assert grouped["high"] - grouped["low"] > alone["high"] - alone["low"]


def test_the_worst_cases_come_first() -> None:
    content = content_of(
        {"x": 0.1, "y": 0.9, "z": 0.4}, {"x": "a", "y": "a", "z": "b"}, overlaps=dice_of({"x": 0.9, "y": 0.2, "z": float("nan")})
    )
    assert [case for case, _ in worst_classified(content, TASKS["grade"], 2)] == ["y", "z"]
    assert worst_segmented(content, 5) == [("y", 0.2), ("x", 0.9)]


def test_without_truth_the_least_certain_cases_come_first() -> None:
    content = content_of({"x": 0.1, "y": 0.95, "z": 0.4}, {}, case_labels=None)
    assert [case for case, _ in worst_classified(content, TASKS["grade"], 10)] == ["z", "x", "y"]


def test_sets_of_heads_are_compared_on_the_same_cases_and_draws() -> None:
    probabilities, true = right_cases(20)
    good = {case: {"grade": np.array([1 - p, p])} for case, p in probabilities.items()}
    bad = {case: {"grade": row["grade"][::-1] if index < 6 else row["grade"]} for index, (case, row) in enumerate(good.items())}
    content = content_of(probabilities, true, class_tables={"refit": good, "joint": dict(list(bad.items())[:-2])})
    (comparison,) = compare_heads(content, TASKS["grade"])
    assert (comparison.name, comparison.score, comparison.counting_value) == ("joint", "macro_f1", 1.0)
    assert comparison.value == pytest.approx(12 / 18)
    assert comparison.difference["low"] < comparison.value - 1 < comparison.difference["high"] < 0
    same = content_of(probabilities, true, class_tables={"refit": good, "joint": good})
    assert {compare_heads(same, TASKS["grade"])[0].difference[key] for key in ("low", "high")} == {0.0}
