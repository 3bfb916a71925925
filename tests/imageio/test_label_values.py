"""Checks of label values and voxels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from nnunetv2.imageio.label_values import RoundedLabelsWarning, check_finite, declared_labels, undeclared_labels, whole_label_values


def test_whole_numbers_pass_without_a_copy_or_warning() -> None:
    for seg in (np.array([0, 1, 2], dtype=np.uint8), np.array([0.0, -1, 300], dtype=np.float32)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert whole_label_values(seg, "case_1") is seg


def test_almost_whole_numbers_are_rounded_with_one_warning() -> None:
    seg = np.array([[0, 1.0000153, 1.9995], [0.001, 2, 1]], dtype=np.float32)
    with pytest.warns(RoundedLabelsWarning, match="case_1") as caught:
        whole = whole_label_values(seg, "case_1")
    assert len(caught) == 1
    assert whole.dtype == np.float32
    assert np.array_equal(whole, [[0, 1, 2], [0, 2, 1]])
    assert seg[0, 1] != 1, "the input must stay as it is"


@pytest.mark.parametrize("value", [0.5, 1.002, -0.01])
def test_other_numbers_are_an_error_that_names_case_and_value(value: float) -> None:
    with pytest.raises(ValueError, match=rf"case_1.*{value:g}"):
        whole_label_values(np.array([0, value, 1], dtype=np.float32), "case_1")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="case_1"):
        whole_label_values(np.array([[0, value]]), "case_1")


def test_not_finite_voxels_are_counted_by_channel() -> None:
    image = np.zeros((3, 2, 2, 2), dtype=np.float32)
    check_finite(image, "case_1")
    image[1, 0, 0] = np.nan
    image[2, 1, 1, 1] = -np.inf
    with pytest.raises(ValueError, match=r"case_1.*2 NaN and 1 infinite.*channel 1, 2"):
        check_finite(image, "case_1")


def test_opposite_infinities_do_not_cancel() -> None:
    with pytest.raises(ValueError, match="2 infinite"):
        check_finite(np.array([[np.inf, -np.inf]]), "case_1")


def test_large_finite_voxels_are_not_taken_for_infinite_ones() -> None:
    image = np.full((1, 4), np.finfo(np.float64).max)  # whose sum is infinite
    check_finite(image, "case_1")
    check_finite(np.full((1, 4), 7), "case_1")
    image[0, 2] = np.inf
    with pytest.raises(ValueError, match="1 infinite"):
        check_finite(image, "case_1")


def test_labels_that_are_not_declared_are_found() -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    declared = declared_labels(labels)
    assert declared == [0, 1, 2, 3]
    assert undeclared_labels(np.array([[0, 1], [2, 3]]), declared) == []
    assert undeclared_labels(np.array([7, 1, -1, 7]), declared) == [-1, 7]
    # gaps: the smallest and the largest value do not tell
    assert undeclared_labels(np.array([0, 1, 2]), [0, 2]) == [1]
