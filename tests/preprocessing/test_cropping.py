"""Cropping to the non-zero region."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask, crop_to_nonzero


def image_with_box(shape: tuple[int, ...] = (2, 6, 7, 8)) -> np.ndarray:
    image = np.zeros(shape, dtype=np.float32)
    image[0, 1:3, 2:6, 3:7] = 1
    return image


def test_box_is_the_tight_box_over_all_channels() -> None:
    image = image_with_box()
    image[1, 4, 0, 0] = -1
    data, seg, bbox = crop_to_nonzero(image)
    assert bbox == [[1, 5], [0, 6], [0, 7]]
    assert data.shape == (2, 4, 6, 7)
    assert seg.shape == (1, 4, 6, 7)


def test_without_segmentation_the_mask_marks_the_outside() -> None:
    image = image_with_box()
    image[0, 1, 2, 3] = 0  # at the border of the box: outside
    _, seg, _ = crop_to_nonzero(image)
    assert seg.dtype == np.int8
    assert seg[0, 0, 0, 0] == -1
    assert (seg == -1).sum() == 1


def test_enclosed_zeros_belong_to_the_inside() -> None:
    image = np.ones((1, 5, 5, 5), dtype=np.float32)
    image[0, 2, 2, 2] = 0
    assert create_nonzero_mask(image).all()
    assert (crop_to_nonzero(image)[1] == 0).all()


def test_nothing_is_enclosed_along_an_axis_of_length_one() -> None:
    image = np.ones((1, 1, 5, 5), dtype=np.float32)
    image[0, 0, 2, 2] = 0
    assert crop_to_nonzero(image)[1][0, 0, 2, 2] == -1


def test_only_background_outside_the_mask_is_marked() -> None:
    image = image_with_box()
    image[0, 1, 2, 3:5] = 0
    seg = np.zeros((1, 6, 7, 8), dtype=np.int16)
    seg[0, 1, 2, 3] = 2
    _, cropped, _ = crop_to_nonzero(image, seg, nonzero_label=-5)
    assert cropped[0, 0, 0, 0] == 2
    assert cropped[0, 0, 0, 1] == -5
    assert cropped[0, 0, 0, 2] == 0


def test_an_empty_image_keeps_its_extent() -> None:
    data, seg, bbox = crop_to_nonzero(np.zeros((1, 3, 4, 5), dtype=np.float32))
    assert bbox == [[0, 3], [0, 4], [0, 5]]
    assert data.shape == (1, 3, 4, 5)
    assert (seg == -1).all()


def test_nothing_is_copied() -> None:
    image = image_with_box()
    seg = np.zeros((1, 6, 7, 8), dtype=np.int16)
    data, cropped, _ = crop_to_nonzero(image, seg)
    assert np.shares_memory(data, image)
    assert np.shares_memory(cropped, seg)


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(9, 10, 11), (2, 12, 12), (13, 12)])
def test_filled_mask_equals_scipy(density: float, shape: tuple[int, ...]) -> None:
    image = (np.random.RandomState(7).rand(1, *shape) < density).astype(np.float32)
    np.testing.assert_array_equal(create_nonzero_mask(image), ndimage.binary_fill_holes(image[0] != 0))
