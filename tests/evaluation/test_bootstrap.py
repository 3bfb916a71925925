from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2.evaluation.bootstrap import bootstrap_intervals, mean_interval, resampling_weights
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

TASK = ClassificationTask(name="t", classes=("a", "b"))


def table(number: int, share_right: float = 0.8) -> tuple[list[int], list[np.ndarray]]:
    """Half of the cases are a; of each class the given share is predicted right."""
    targets = [0, 1] * (number // 2)
    right = [i // 2 < share_right * (number // 2) for i in range(number)]
    return targets, [np.eye(2)[t if r else 1 - t] * 0.8 + 0.1 for t, r in zip(targets, right, strict=True)]


def test_every_draw_has_as_many_groups_as_there_are_and_whole_groups() -> None:
    groups = ["p", "q", "p", "r", "q", "p"]
    weights = np.concatenate(list(resampling_weights(groups, draws=250)))
    assert weights.shape == (250, 6)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, 3].mean() == pytest.approx(1, abs=0.15)
    assert np.array_equal(weights, np.concatenate(list(resampling_weights(groups, draws=250))))
    assert not np.array_equal(weights, np.concatenate(list(resampling_weights(groups, draws=250, seed=1))))


def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution() -> None:
    interval = bootstrap_intervals(TASK, *table(100), groups=[str(i) for i in range(100)])["scores"]["accuracy"]
    assert interval["draws"] == 2000
    assert (interval["low"], interval["high"]) == pytest.approx((0.72, 0.88), abs=0.011)


def test_cases_of_one_patient_do_not_make_the_interval_narrower() -> None:
    targets, probabilities = table(40)
    alone = bootstrap_intervals(TASK, targets, probabilities, groups=[str(i) for i in range(40)])
    copies = bootstrap_intervals(TASK, targets * 3, probabilities * 3, groups=[str(i) for i in range(40)] * 3)
    for name, interval in alone["scores"].items():
        assert copies["scores"][name] == pytest.approx(interval), name


def test_draws_without_a_score_are_left_out_and_counted() -> None:
    """One case of b among six: some draws lack it, so that its recall and the areas cannot be computed there."""
    targets, probabilities = [0, 0, 0, 0, 0, 1], [np.array([p, 1 - p]) for p in (0.9, 0.8, 0.7, 0.6, 0.4, 0.3)]
    intervals = bootstrap_intervals(TASK, targets, probabilities, groups=list("uvwxyz"))
    expected = 2000 * (1 - (5 / 6) ** 6)
    assert intervals["per_class"]["b"]["recall"]["draws"] == pytest.approx(expected, rel=0.05)
    assert intervals["per_class"]["b"]["auroc"]["draws"] == pytest.approx(expected, rel=0.05)
    assert intervals["per_class"]["b"]["recall"]["low"] == 1
    assert intervals["scores"]["accuracy"]["draws"] == 2000


def test_one_patient_says_nothing_about_others() -> None:
    interval = bootstrap_intervals(TASK, *table(10), groups=["p"] * 10)["scores"]["accuracy"]
    assert interval["draws"] == 0 and math.isnan(interval["low"]) and math.isnan(interval["high"])


def test_the_interval_of_a_mean_is_that_of_the_accuracy_where_values_are_right_or_wrong() -> None:
    targets, probabilities = table(40)
    right = [float(p.argmax() == t) for t, p in zip(targets, probabilities, strict=True)]
    groups = [str(i // 2) for i in range(40)]
    expected = bootstrap_intervals(TASK, targets, probabilities, groups)["scores"]["accuracy"]
    assert mean_interval(np.array(right), groups) == pytest.approx(expected)


def test_values_that_are_no_numbers_do_not_count_in_the_interval_of_a_mean() -> None:
    values = np.array([0.2, 0.4, np.nan, 0.9])
    assert mean_interval(values, list("abcd")) == mean_interval(values[[0, 1, 3]], list("abd"))
    nothing = mean_interval(np.array([0.2, np.nan]), ["a", "b"])
    assert nothing["draws"] == 0 and math.isnan(nothing["low"])


def test_the_mean_over_structures_weighs_each_alike_however_many_cases_have_it() -> None:
    table_of_two = np.array([[0.0, 1.0], [0.0, np.nan], [0.0, np.nan], [0.0, 1.0]])
    interval = mean_interval(table_of_two, list("abcd"))
    # half, except for draws without any case that has the second structure
    assert (interval["high"], interval["draws"]) == (0.5, 2000)
    assert mean_interval(np.array([[0.3, 0.5]] * 3), list("abc")) == pytest.approx({"low": 0.4, "high": 0.4, "draws": 2000})
