"""The separable operators give what scipy's and scikit-image's resize give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from nnunetv2.preprocessing.resampling.interpolation_operators import (
    axis_operator,
    linear_taps,
    nearest_indices,
    resize_slices,
    resize_volume,
)

SIZES = [(1, 1), (1, 5), (2, 3), (7, 7), (8, 16), (16, 8), (13, 29), (60, 100), (100, 33)]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_axis_equals_scipys_zoom(old: int, new: int, order: int) -> None:
    signal = np.random.RandomState(old + new).randn(old, 4, 3)
    for axis in range(3):
        array = np.ascontiguousarray(np.moveaxis(signal, 0, axis))
        zoom = [1.0, 1.0, 1.0]
        zoom[axis] = new / old
        expected = ndimage.zoom(array, zoom, order=order, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(axis_operator(old, new, order).apply(array, axis), expected, atol=1e-11)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_weights_and_nearest_voxels_are_scipys_to_the_last_bit(old: int, new: int) -> None:
    identity = np.eye(old)
    lower, lower_weight, upper_weight = linear_taps(old, new)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), lower] = lower_weight
    matrix[np.arange(new), np.minimum(lower + 1, old - 1)] += upper_weight
    np.testing.assert_array_equal(matrix, ndimage.zoom(identity, (new / old, 1), order=1, mode="nearest", grid_mode=True))
    nearest = ndimage.zoom(np.arange(old), new / old, order=0, mode="nearest", grid_mode=True)
    np.testing.assert_array_equal(nearest_indices(old, new), nearest)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("new_shape", [(9, 20, 31), (20, 7, 11), (12, 30, 6), (12, 15, 13), (5, 5, 5)])
def test_a_volume_equals_skimages_resize(order: int, new_shape: tuple[int, int, int]) -> None:
    volume = (np.random.RandomState(1).randn(12, 15, 13) * 100).astype(np.float32)
    out = np.empty(new_shape, dtype=np.float64)
    resize_volume(volume, new_shape, order, out)
    expected = resize(volume.astype(np.float64), new_shape, order, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-10)


def test_overshoot_is_clipped_to_the_range_of_the_input() -> None:
    signal = np.array([0, 0, 10, 0, 0, 10, 10, 10], dtype=np.float32)[None, None]
    out = np.empty((1, 1, 16))
    resize_volume(signal, (1, 1, 16), 3, out)
    expected = [0.325, 0, 0, 2.654, 8.745, 8.958, 2.953, 0, 0, 2.487, 8.025, 10, 10, 9.763, 9.869, 10]
    np.testing.assert_allclose(out[0, 0], expected, atol=6e-4)


def test_slices_are_clipped_each_to_its_own_range() -> None:
    slices = np.zeros((2, 8, 8))
    slices[0, 2:5, 2:5], slices[1, 2:5, 2:5] = 1, 100
    result = resize_slices(slices, (20, 20), 3)
    assert result[0].max() == 1
    assert result[1].max() == 100
    assert result.min() == 0
    for index in range(2):
        expected = resize(slices[index], (20, 20), 3, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(result[index], expected, rtol=0, atol=1e-11 * slices[index].max())


def test_a_constant_volume_stays_exactly_constant() -> None:
    out = np.empty((9, 23, 31), dtype=np.float32)
    resize_volume(np.full((12, 60, 50), -0.7310585, dtype=np.float32), out.shape, 3, out)
    assert (out == np.float32(-0.7310585)).all()


def test_unsupported_orders_are_named() -> None:
    with pytest.raises(ValueError, match="order 4"):
        axis_operator(3, 5, 4)
