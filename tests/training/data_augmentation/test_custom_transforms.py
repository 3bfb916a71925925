"""The batchgenerators-style transforms that custom trainers may import."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.data_augmentation.custom_transforms.cascade_transforms import (
    ApplyRandomBinaryOperatorTransform,
    MoveSegAsOneHotToData,
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from nnunetv2.training.data_augmentation.custom_transforms.deep_supervision_donwsampling import DownsampleSegForDSTransform2
from nnunetv2.training.data_augmentation.custom_transforms.masking import MaskTransform
from nnunetv2.training.data_augmentation.custom_transforms.region_based_training import ConvertSegmentationToRegionsTransform
from nnunetv2.training.data_augmentation.custom_transforms.transforms_for_dummy_2d import Convert2DTo3DTransform, Convert3DTo2DTransform


def labels() -> np.ndarray:
    return np.array([[0, 1], [2, -1]], dtype=np.int16)[None, None]


def test_one_hot_channels_are_appended() -> None:
    seg = np.concatenate((labels(), labels() * 0), axis=1)
    result = MoveSegAsOneHotToData(0, [1, 2])(data=np.ones((1, 1, 2, 2), np.float32), seg=seg)
    assert result["data"][0, 1:].tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 0]]] and result["data"].dtype == np.float32
    assert result["seg"].shape == (1, 1, 2, 2) and not result["seg"].any()


def test_a_small_component_is_removed_and_can_change_the_channel() -> None:
    data = np.zeros((1, 2, 10, 10), np.float32)
    data[0, 0, 1:3, 1:3] = data[0, 0, 7:9, 7:9] = 1
    transform = RemoveRandomConnectedComponentFromOneHotEncodingTransform([0], p_per_sample=1, fill_with_other_class_p=0)
    assert transform(data=data.copy())["data"].sum() == 4
    moving = RemoveRandomConnectedComponentFromOneHotEncodingTransform([0, 1], p_per_sample=1, fill_with_other_class_p=1)
    assert moving(data=data.copy())["data"].sum() == 8
    rare = RemoveRandomConnectedComponentFromOneHotEncodingTransform([0], p_per_sample=1, dont_do_if_covers_more_than_x_percent=0.01)
    assert rare(data=data.copy())["data"].sum() == 8


def test_operators_keep_channels_apart() -> None:
    data = np.zeros((1, 2, 20, 20), np.float32)
    data[0, 0, :, :10], data[0, 1, :, 10:] = 1, 1
    np.random.seed(0)
    result = ApplyRandomBinaryOperatorTransform([0, 1], p_per_sample=1, strel_size=(2, 4))(data=data.copy())["data"]
    assert not np.array_equal(result, data) and result.sum(1).max() == 1


def test_one_target_per_scale() -> None:
    seg = np.random.default_rng(0).integers(0, 3, (2, 1, 8, 6)).astype(np.int16)
    targets = DownsampleSegForDSTransform2([(1, 1), (0.5, 0.5), 0.5])(seg=seg)["seg"]
    assert [target.shape for target in targets] == [(2, 1, 8, 6), (2, 1, 4, 3), (2, 1, 4, 3)] and targets[0] is seg
    with pytest.raises(ValueError, match="3 factors for 2 axes"):
        DownsampleSegForDSTransform2([(0.5, 0.5, 0.5)])(seg=seg)


def test_masked_channels() -> None:
    result = MaskTransform([1], set_outside_to=7)(data=np.ones((1, 2, 2, 2)), seg=labels())
    assert result["data"][0].tolist() == [[[1, 1], [1, 1]], [[1, 1], [1, 7]]]


def test_regions_become_channels() -> None:
    result = ConvertSegmentationToRegionsTransform([(1, 2), 2])(seg=labels())
    assert result["seg"][0].tolist() == [[[0, 1], [1, 0]], [[0, 0], [1, 0]]]


def test_planes_become_channels_and_come_back() -> None:
    data = np.arange(48).reshape(1, 2, 2, 3, 4)
    flat = Convert3DTo2DTransform(("data",))(data=data)
    assert flat["data"].shape == (1, 4, 3, 4)
    back = Convert2DTo3DTransform(("data",))(**{**flat, "data": flat["data"][..., :2]})
    assert np.array_equal(back["data"], data[..., :2]) and set(back) == {"data"}
