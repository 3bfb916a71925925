"""Target spacing, axis order and median shapes."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.experiment_planning.experiment_planners.target_spacing import (
    axis_order,
    coarser_spacing,
    fullres_target_spacing,
    median_resampled_shape,
)


def test_the_median_spacing_is_the_target() -> None:
    spacings = [(1, 1, 2), (1, 1, 2.5), (1.5, 1, 2.5)]
    assert fullres_target_spacing(spacings, [(64, 64, 64)] * 3).tolist() == [1, 1, 2.5]


def test_thick_slices_get_the_tenth_percentile() -> None:
    spacings = [(10, 1.5625, 1.5625), (5, 1.5625, 1.5625), (10, 1.4, 1.4)]
    target = fullres_target_spacing(spacings, [(9, 256, 216)] * 3)
    assert target.tolist() == [6.0, 1.5625, 1.5625]
    assert median_resampled_shape(spacings, [(9, 256, 216)] * 3, target).tolist() == [15, 256, 216]


def test_many_thick_slices_keep_their_median() -> None:
    spacings = [(10, 1, 1), (4, 1, 1), (10, 1, 1)]
    assert fullres_target_spacing(spacings, [(200, 256, 256)] * 3).tolist() == [10, 1, 1]


def test_the_thick_axis_stays_the_thickest() -> None:
    spacings = [(0.5, 1, 1)] * 4 + [(8, 1, 1)] * 6
    assert fullres_target_spacing(spacings, [(9, 99, 99)] * 10)[0] == 1 + 1e-5


@pytest.mark.parametrize(
    ("spacing", "forward", "backward"),
    [
        ((1, 1, 1), [0, 1, 2], [0, 1, 2]),
        ((1.2, 1.2, 3), [2, 0, 1], [1, 2, 0]),
        ((1, 3, 3), [1, 0, 2], [1, 0, 2]),
    ],
)
def test_the_coarsest_axis_comes_first(spacing, forward, backward) -> None:
    assert axis_order(spacing) == (forward, backward)
    assert np.array(spacing)[forward][backward].tolist() == list(spacing)


def test_low_resolution_coarsens_fine_axes_first() -> None:
    assert coarser_spacing(np.array([3.0, 1.0, 2.0])).tolist() == [3.0, 1.03, 2.0]
    assert coarser_spacing(np.array([2.0, 1.0, 1.0])).tolist() == [2.06, 1.03, 1.03]
