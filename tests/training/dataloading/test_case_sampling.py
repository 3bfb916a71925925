"""Cases drawn balanced by class."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities, class_weights
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks

TASKS = classification_tasks(
    {
        "labels": {"background": 0, "lesion": 1},
        "classification": {
            "grade": {"classes": ["low", "high"]},
            "findings": {"type": "multilabel", "classes": ["cyst", "stone"]},
        },
    }
)


def labels(**rows) -> CaseLabels:
    return CaseLabels(TASKS, rows)


def test_every_class_has_the_same_share() -> None:
    case_labels = labels(a={"grade": 0}, b={"grade": 0}, c={"grade": 0}, d={"grade": 1})
    assert balanced_sampling_probabilities("abcd", case_labels, "grade").tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_unknown_cases_keep_their_share_or_none() -> None:
    case_labels = labels(a={"grade": 0}, b={"grade": 1})
    assert balanced_sampling_probabilities("abxy", case_labels, "grade").tolist() == pytest.approx([0.25] * 4)
    assert balanced_sampling_probabilities("abxy", case_labels, "grade", draw_unknown=False).tolist() == pytest.approx([0.5, 0.5, 0, 0])


def test_a_multilabel_case_counts_for_each_of_its_classes() -> None:
    both, stone, none = np.array([1.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0])
    case_labels = labels(a={"findings": both}, b={"findings": stone}, c={"findings": none})
    assert balanced_sampling_probabilities("abc", case_labels, "findings").tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 3])


def test_without_a_task_all_tasks_are_averaged() -> None:
    case_labels = labels(a={"grade": 0, "findings": np.array([1.0, 0.0])}, b={"grade": 1, "findings": np.array([1.0, 0.0])}, c={"grade": 1})
    expected = np.mean([balanced_sampling_probabilities("abc", case_labels, task) for task in TASKS], axis=0)
    assert balanced_sampling_probabilities("abc", case_labels) == pytest.approx(expected)


def test_nothing_known_is_uniform_and_errors_name_the_task() -> None:
    assert balanced_sampling_probabilities("ab", labels(), "grade").tolist() == [0.5, 0.5]
    assert balanced_sampling_probabilities("ab", CaseLabels()).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no classification task 'side'.*grade"):
        balanced_sampling_probabilities("ab", labels(), "side")


def test_class_weights_are_the_inverse_of_the_frequency() -> None:
    case_labels = labels(a={"grade": 0}, b={"grade": 0}, c={"grade": 0}, d={"grade": 1}, e={"grade": None}, f={"findings": np.ones(2)})
    assert {name: w.tolist() for name, w in class_weights("abcdef", case_labels).items()} == {"grade": pytest.approx([4 / 6, 2])}


def test_a_class_without_a_training_case_has_the_weight_1() -> None:
    assert class_weights("ab", labels(a={"grade": 0}, b={"grade": 0}))["grade"].tolist() == [1, 1]
    assert class_weights("ab", labels()) == {}
