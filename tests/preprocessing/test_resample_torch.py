"""Resampling with torch, as the *_torchres plans use it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet, resample_torch_simple

ISOTROPIC, ANISOTROPIC = (1, 1, 1), (5, 1, 1)


def test_joint_image_is_trilinear() -> None:
    data = torch.randn(2, 5, 6, 7)
    result = resample_torch_fornnunet(data, (7, 9, 5), ISOTROPIC, ISOTROPIC)
    torch.testing.assert_close(result, functional.interpolate(data[None], (7, 9, 5), mode="trilinear")[0])


def test_separate_image_is_bilinear_in_plane_and_nearest_along_the_axis() -> None:
    data = torch.randn(1, 3, 6, 7)
    result = resample_torch_fornnunet(data, (6, 9, 5), ANISOTROPIC, ISOTROPIC)
    in_plane = functional.interpolate(data[0][:, None], (9, 5), mode="bilinear")[:, 0]
    torch.testing.assert_close(result[0], in_plane.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC])
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_labels_stay_labels(spacing: tuple, one_at_a_time: bool) -> None:
    seg = np.zeros((1, 4, 8, 8), dtype=np.int16)
    seg[0, :, 2:6, 2:6] = 7
    seg[0, :, :, 6:] = -1
    result = resample_torch_fornnunet(seg, (4, 16, 16), spacing, ISOTROPIC, is_seg=True, memefficient_seg_resampling=one_at_a_time)
    assert result.dtype == np.int8
    np.testing.assert_array_equal(result, np.kron(seg, np.ones((1, 1, 2, 2))))


def test_large_labels_get_int16() -> None:
    seg = np.full((1, 3, 3, 3), 127, dtype=np.int16)
    assert resample_torch_simple(seg, (4, 4, 4), is_seg=True).dtype == np.int16


@pytest.mark.parametrize("data", [np.ones((1, 3, 4, 5), np.float16), torch.ones(1, 3, 4, 5, dtype=torch.float16)])
def test_the_kind_of_the_input_is_kept_and_images_become_float32(data: np.ndarray | torch.Tensor) -> None:
    result = resample_torch_simple(data, (5, 5, 5))
    assert type(result) is type(data)
    assert "float32" in str(result.dtype)
    assert resample_torch_simple(data, (3, 4, 5)) is data


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    resample_torch_simple(torch.ones(1, 3, 4, 5), (5, 5, 5), num_threads=1)
    assert torch.get_num_threads() == before
