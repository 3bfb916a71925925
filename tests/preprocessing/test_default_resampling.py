"""Choice of the axis that is resampled separately, shapes, and resampling of images and labels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.utils import resize_segmentation
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    get_do_separate_z,
    get_lowres_axis,
    resample_data_or_seg,
    resample_data_or_seg_to_shape,
    resample_data_or_seg_to_spacing,
)
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name


@pytest.mark.parametrize(
    ("shape", "old", "new", "expected"),
    [
        ((10, 11, 12), (1.5, 1, 1), (1, 0.7, 2.0), (15, 16, 6)),
        ((5, 5, 5), (1, 1, 1), (2, 2, 2), (2, 2, 2)),  # half to even
        ((1, 4, 4), (1, 1, 1), (3, 1, 1), (1, 4, 4)),  # no axis vanishes
    ],
)
def test_new_shape(shape: tuple, old: tuple, new: tuple, expected: tuple) -> None:
    assert tuple(compute_new_shape(shape, old, new)) == expected


def test_new_shape_needs_equal_numbers_of_axes() -> None:
    with pytest.raises(ValueError, match="Axes differ"):
        compute_new_shape((4, 4), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("force", "spacing", "expected"),
    [
        (None, (3, 1, 1), (False, None)),
        (None, (3.01, 1, 1), (True, 0)),
        (None, (1, 1, 3.5), (True, 2)),
        (None, (0.24, 1.25, 1.25), (False, None)),
        (None, (5, 5, 1), (False, None)),
        (True, (3, 1, 1), (True, 0)),
        (True, (1, 1, 1), (False, None)),
        (True, (5, 5, 1), (False, None)),
        (False, (9, 1, 1), (False, None)),
    ],
)
def test_which_axis_is_separate(force: bool | None, spacing: tuple, expected: tuple) -> None:
    assert determine_do_sep_z_and_axis(force, spacing, (1, 1, 1)) == expected


def test_the_new_spacing_decides_if_the_current_one_is_isotropic() -> None:
    assert determine_do_sep_z_and_axis(None, (1, 1, 1), (1, 4, 1)) == (True, 1)
    assert determine_do_sep_z_and_axis(True, (1, 1, 1), (1, 4, 1)) == (False, None)


def test_anisotropy_and_lowres_axis() -> None:
    assert not get_do_separate_z((3, 1, 1))
    assert get_do_separate_z((3, 1, 1), anisotropy_threshold=2)
    assert get_lowres_axis((5, 5, 1)).tolist() == [0, 1]


class TestNumbersOfNnUNet:
    """Recorded from nnunetv2 2.8.1 with the voxels 0..23."""

    data = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)

    def test_joint(self) -> None:
        result = resample_data_or_seg_to_shape(self.data, (3, 5, 4), (2, 1, 1), (1.5, 0.6, 1), force_separate_z=None)
        np.testing.assert_allclose(result[0, :, 0, 0], [0, 5.7464623, 12.67417], rtol=1e-6)
        np.testing.assert_allclose(result[0, 1, :, 1], [6.7464623, 8.18843, 11, 13.81157, 15.253537], rtol=1e-6)

    def test_separate(self) -> None:
        result = resample_data_or_seg_to_shape(self.data, (3, 5, 4), (5, 1, 1), (3.5, 0.6, 1), force_separate_z=None)
        np.testing.assert_allclose(result[0, :, 0, 0], [0, 12, 12], atol=1e-6)
        np.testing.assert_allclose(result[0, 1, :, 1], [12.746463, 14.18843, 17, 19.81157, 21.253538], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_joint_image_equals_skimage_in_the_dtype_of_the_input(dtype: type, order: int) -> None:
    data = (np.random.RandomState(0).randn(2, 8, 9, 10) * 50).astype(dtype)
    result = resample_data_or_seg_to_shape(data, (11, 7, 15), (1, 1, 1), (1, 1, 1), order=order)
    assert result.dtype == dtype
    for channel in range(2):
        expected = resize(data[channel].astype(float), (11, 7, 15), order, mode="edge", anti_aliasing=False).astype(dtype)
        difference = np.abs(result[channel].astype(float) - expected.astype(float))
        tolerance = 0 if dtype == np.int16 else max(1e-10, 200 * np.finfo(dtype).eps)
        assert difference.max() <= tolerance


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1, 3])
@pytest.mark.parametrize("new_length", [6, 9, 14])
def test_separate_image_is_resized_slice_by_slice_then_along_the_axis(axis: int, order_z: int, new_length: int) -> None:
    volume = np.random.RandomState(axis).randn(9, 9, 9)
    new_shape = [12, 12, 12]
    new_shape[axis] = new_length
    result = resample_data_or_seg(volume[None], new_shape, axis=axis, order=3, do_separate_z=True, order_z=order_z)[0]
    slices = np.stack([resize(image, (12, 12), 3, mode="edge", anti_aliasing=False) for image in np.moveaxis(volume, axis, 0)])
    positions = np.meshgrid(9 / new_length * (np.arange(new_length) + 0.5) - 0.5, np.arange(12), np.arange(12), indexing="ij")
    expected = map_coordinates(slices, positions, order=order_z, mode="nearest")
    np.testing.assert_allclose(np.moveaxis(result, axis, 0), expected, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new_length", [5, 8, 17])
def test_separate_labels_take_the_nearest_slice(axis: int, new_length: int) -> None:
    seg = np.random.RandomState(axis).randint(-1, 4, (8, 8, 8)).astype(np.int8)
    new_shape = [13, 13, 13]
    new_shape[axis] = new_length
    result = resample_data_or_seg(seg[None], new_shape, True, axis=axis, order=1, do_separate_z=True)[0]
    slices = np.stack([resize_segmentation(labels, (13, 13), 1) for labels in np.moveaxis(seg, axis, 0)])
    nearest = map_coordinates(np.arange(8), [8 / new_length * (np.arange(new_length) + 0.5) - 0.5], order=0, mode="nearest")
    np.testing.assert_array_equal(np.moveaxis(result, axis, 0), slices[nearest])


def test_separate_labels_with_linear_interpolation_along_the_axis() -> None:
    seg = np.zeros((1, 2, 4, 4), dtype=np.int16)
    seg[0, 1] = 3
    result = resample_data_or_seg(seg, (8, 4, 4), True, axis=0, order=1, do_separate_z=True, order_z=1)
    assert result[0, :, 0, 0].tolist() == [0, 0, 0, 0, 3, 3, 3, 3]


def test_fractional_labels_and_high_orders_go_through_the_library() -> None:
    seg = np.random.RandomState(2).choice([0.5, 1.0, 2.0], (1, 5, 6, 7))
    np.testing.assert_array_equal(resample_data_or_seg(seg, (7, 7, 7), True, order=1)[0], resize_segmentation(seg[0], (7, 7, 7), 1))
    whole = np.round(seg)
    np.testing.assert_array_equal(resample_data_or_seg(whole, (7, 7, 7), True, order=3)[0], resize_segmentation(whole[0], (7, 7, 7), 3))


def test_an_unchanged_shape_returns_the_input() -> None:
    data = np.ones((1, 4, 5, 6))
    assert resample_data_or_seg_to_shape(data, [4, 5, 6], (5, 1, 1), (3, 1, 1), force_separate_z=None) is data


def test_tensors_become_arrays_of_the_same_precision() -> None:
    result = resample_data_or_seg_to_shape(torch.rand(1, 4, 5, 6).half(), (8, 5, 6), (1, 1, 1), (1, 1, 1), order=1)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float16


def test_to_spacing_computes_the_shape() -> None:
    assert resample_data_or_seg_to_spacing(np.zeros((2, 4, 6, 5)), (1, 1, 1), (2, 0.5, 0.7)).shape == (2, 2, 12, 7)


def test_non_finite_voxels_do_not_crash() -> None:
    data = np.ones((1, 4, 4, 4), dtype=np.float32)
    data[0, 0, 0, 0] = np.nan
    assert resample_data_or_seg(data, (5, 5, 5), order=1).shape == (1, 5, 5, 5)


def test_wrong_numbers_of_axes_are_named() -> None:
    with pytest.raises(ValueError, match="three sizes"):
        resample_data_or_seg(np.zeros((1, 4, 5, 6)), (4, 5))
    with pytest.raises(ValueError, match="axis"):
        resample_data_or_seg(np.zeros((1, 4, 5, 6)), (4, 5, 7), do_separate_z=True)


def test_no_resampling_returns_the_input() -> None:
    data = np.ones((1, 2, 3, 4))
    assert no_resampling_hack(data, (9, 9, 9), (1, 1, 1), (2, 2, 2)) is data


@pytest.mark.parametrize("name", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"])
def test_functions_named_in_plans_are_found(name: str) -> None:
    assert recursive_find_resampling_fn_by_name(name).__name__ == name


def test_an_unknown_function_is_named() -> None:
    with pytest.raises(RuntimeError, match="resample_with_magic"):
        recursive_find_resampling_fn_by_name("resample_with_magic")


def test_finding_and_using_the_default_does_not_import_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name as find\n"
        "find('resample_data_or_seg_to_shape')(np.ones((1, 3, 3, 3)), (4, 4, 4), (1, 1, 1), (1, 1, 1))\n"
        "import nnunetv2.preprocessing.preprocessors.default_preprocessor, nnunetv2.training.dataloading.nnunet_dataset\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
