"""Heads that learned nothing are noticed, and only these."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.nnUNetTrainer.collapse_detector import CollapseDetector
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

TASKS = {
    "subtype": ClassificationTask(name="subtype", classes=("a", "b", "c")),
    "findings": ClassificationTask(name="findings", classes=("x", "y"), type="multilabel"),
    "grade": ClassificationTask(name="grade", classes=("low", "mid", "high"), type="ordinal"),
}
CELLS = {
    "case_1": {"subtype": "a", "findings": "x", "grade": "low"},
    "case_2": {"subtype": "b", "findings": "none", "grade": "mid"},
    "case_3": {"subtype": "c", "findings": "x;y", "grade": "high"},
}


def case_labels(cells: dict[str, dict[str, str]]) -> CaseLabels:
    return CaseLabels(TASKS, {case: {name: TASKS[name].parse_cell(cell) for name, cell in row.items()} for case, row in cells.items()})


@pytest.fixture
def labels() -> CaseLabels:
    return case_labels(CELLS)


def epoch(task: str, *rows: list[float]) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities of the three cases, right and sure for the other tasks."""
    right = {"subtype": np.eye(3), "findings": np.array([[1, 0], [0, 0], [1, 1.0]]), "grade": np.eye(3)}
    right[task] = np.array(rows)
    return {case: {name: values[i] for name, values in right.items()} for i, case in enumerate(CELLS)}


COLLAPSED = {
    "subtype": [[0.8, 0.1, 0.1]] * 3,
    "findings": [[0.9, 0.1]] * 3,
    "grade": [[0.1, 0.8, 0.1]] * 3,
}


@pytest.mark.parametrize("task", TASKS)
def test_one_answer_for_every_case_is_noticed_after_ten_epochs(labels: CaseLabels, task: str) -> None:
    detector = CollapseDetector(TASKS, labels)
    said = [detector.update(epoch(task, *COLLAPSED[task])) for _ in range(20)]
    assert [bool(warnings) for warnings in said] == [number in (9, 19) for number in range(20)]
    assert task in said[9][0] and "3 validation cases" in said[9][0] and "for 10 epochs" in said[9][0] and "for 20 epochs" in said[19][0]


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_as_that_of_a_guess_is_noticed(labels: CaseLabels, task: str) -> None:
    nearly = {"subtype": np.full((3, 3), 1 / 3), "findings": np.full((3, 2), 0.5), "grade": np.full((3, 3), 1 / 3)}[task]
    nearly[0, 0] += 1e-3  # decisions differ
    nearly[1, 1] += 1e-3
    nearly[2] -= 1e-3
    detector = CollapseDetector(TASKS, labels, epochs_to_notice=2)
    assert detector.update(epoch(task, *nearly)) == []
    (warning,) = detector.update(epoch(task, *nearly))
    assert task in warning and "that of a guess" in warning


def test_an_epoch_with_different_answers_starts_the_count_anew(labels: CaseLabels) -> None:
    detector = CollapseDetector(TASKS, labels, epochs_to_notice=3)
    collapsed, fine = epoch("subtype", *COLLAPSED["subtype"]), epoch("subtype", *np.eye(3))
    assert not any(detector.update(table) for table in (collapsed, collapsed, fine, collapsed, collapsed))
    assert detector.update(collapsed)


def test_cases_of_one_class_alone_are_no_collapse(labels: CaseLabels) -> None:
    detector = CollapseDetector(TASKS, labels, epochs_to_notice=1)
    table = epoch("subtype", *COLLAPSED["subtype"])
    assert detector.update({"case_1": table["case_1"]}) == []


def test_unknown_labels_are_left_out() -> None:
    cells = {**CELLS, "case_2": {"subtype": "", "findings": "", "grade": ""}, "case_3": {"subtype": "", "findings": "", "grade": ""}}
    detector = CollapseDetector(TASKS, case_labels(cells), epochs_to_notice=1)
    assert detector.update(epoch("subtype", *COLLAPSED["subtype"])) == []
