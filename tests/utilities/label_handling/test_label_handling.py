"""Labels, regions and the ignore label; the rules of nnU-Net 2.8.1."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2.utilities.label_handling.label_handling import (
    LabelManager,
    convert_labelmap_to_one_hot,
    determine_num_input_channels,
    get_labelmanager_class_from_plans,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def regions() -> LabelManager:
    return LabelManager(REGIONS, regions_class_order=[1, 2, 3])


def test_plain_labels() -> None:
    manager = LabelManager(LABELS, None)
    assert (manager.has_regions, manager.has_ignore_label, manager.ignore_label, manager.all_regions) == (False, False, None, None)
    assert list(manager.all_labels) == [0, 1, 2]
    assert list(manager.foreground_labels) == [1, 2]
    assert manager.num_segmentation_heads == 3


def test_regions_and_ignore() -> None:
    manager = regions()
    assert (manager.has_regions, manager.has_ignore_label, manager.ignore_label) == (True, True, 4)
    assert list(manager.all_labels) == [0, 1, 2, 3]
    assert manager.all_regions == manager.foreground_regions == [(1, 2, 3), (2, 3), 3]
    assert manager.num_segmentation_heads == 3


def test_a_list_of_one_value_is_an_ordinary_label() -> None:
    manager = LabelManager({"background": 0, "organ": [1]}, None)
    assert not manager.has_regions
    assert list(manager.all_labels) == [0, 1]


def test_regions_can_be_switched_off() -> None:
    manager = LabelManager(REGIONS, [1, 2, 3], force_use_labels=True)
    assert (manager.has_regions, manager.num_segmentation_heads) == (False, 4)


@pytest.mark.parametrize(
    ("labels", "order", "error"),
    [
        ({"organ": 1}, None, RuntimeError),
        ({"background": [0], "organ": 1}, None, RuntimeError),
        ({"background": 1, "organ": 2}, None, AssertionError),
        ({"background": 0, "organ": 1, "ignore": 3}, None, AssertionError),
        ({"background": 0, "organ": 1, "ignore": [2]}, None, AssertionError),
        ({"background": 0, "whole": [1, 2]}, None, AssertionError),
        ({"background": 0, "whole": [1, 2], "part": 2}, [1], AssertionError),
    ],
)
def test_contradictions_are_errors(labels: dict[str, Any], order: list[int] | None, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"dataset\.json"):
        LabelManager(labels, order)


def test_an_ignore_label_after_the_last_one_is_right() -> None:
    assert LabelManager({"background": 0, "organ": 1, "ignore": 2}, None).num_segmentation_heads == 2


def test_the_first_of_equal_channels_wins() -> None:
    probabilities = np.array([[0.2, 0.4], [0.4, 0.4], [0.4, 0.2]], np.float32)
    manager = LabelManager(LABELS, None)
    assert manager.convert_probabilities_to_segmentation(probabilities).tolist() == [1, 0]
    assert manager.convert_probabilities_to_segmentation(torch.from_numpy(probabilities)).tolist() == [1, 0]


def test_later_regions_overwrite_and_a_half_is_not_enough() -> None:
    probabilities = np.array([[0.9, 0.9, 0.1, 0.5], [0.1, 0.8, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1]], np.float32)
    segmentation = regions().convert_probabilities_to_segmentation(probabilities)
    assert segmentation.tolist() == [1, 2, 3, 0]
    assert segmentation.dtype == np.uint16
    tensor = regions().convert_probabilities_to_segmentation(torch.from_numpy(probabilities))
    assert tensor.tolist() == [1, 2, 3, 0]
    assert tensor.dtype == torch.int16


def test_logits_of_regions_pass_a_sigmoid_and_labels_none() -> None:
    assert regions().convert_logits_to_segmentation(np.array([[0.1], [-0.1], [-9]], np.float32)).tolist() == [1]
    assert LabelManager(LABELS, None).convert_logits_to_segmentation(torch.tensor([[1.0], [3.0], [2.0]])).tolist() == [1]


def test_nonlinearity_returns_float32_tensors() -> None:
    probabilities = LabelManager(LABELS, None).apply_inference_nonlin(np.zeros((3, 2), np.float16))
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities, torch.full((3, 2), 1 / 3))
    assert torch.equal(regions().apply_inference_nonlin(torch.zeros(3, 2)), torch.full((3, 2), 0.5))


def test_too_few_channels_are_an_error() -> None:
    with pytest.raises(AssertionError, match="2 channels.*3"):
        LabelManager(LABELS, None).convert_probabilities_to_segmentation(np.zeros((2, 4)))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_outside_of_the_crop_is_background(make: Any) -> None:
    inside = make(np.full((3, 1, 2), 0.25, np.float32))
    whole = LabelManager(LABELS, None).revert_cropping_on_probabilities(inside, [[1, 2], [0, 2]], (3, 3))
    expected = np.zeros((3, 3, 3), np.float32)
    expected[0] = 1
    expected[:, 1, :2] = 0.25
    assert type(whole) is type(inside)
    np.testing.assert_array_equal(np.asarray(whole), expected)
    assert not np.asarray(regions().revert_cropping_on_probabilities(inside, [[1, 2], [0, 2]], (3, 3)))[:, 0].any()


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_one_hot_goes_by_value_also_with_gaps(make: Any) -> None:
    one_hot = convert_labelmap_to_one_hot(make(np.array([[0, 3], [5, 9]], np.int16)), [0, 3, 5])
    assert np.asarray(one_hot).tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_one_hot_dtypes() -> None:
    assert convert_labelmap_to_one_hot(np.zeros(2, int), [0, 254]).dtype == np.uint8
    assert convert_labelmap_to_one_hot(np.zeros(2, int), [0, 255]).dtype == np.uint16
    assert convert_labelmap_to_one_hot(np.zeros(2, int), [0, 1], bool).dtype == bool


def test_label_managers_travel_between_processes() -> None:
    manager = pickle.loads(pickle.dumps(regions()))
    assert manager.foreground_regions == [(1, 2, 3), (2, 3), 3]


def test_plans_name_the_class() -> None:
    assert get_labelmanager_class_from_plans({}) is LabelManager
    assert get_labelmanager_class_from_plans({"label_manager": "LabelManager"}) is LabelManager
    with pytest.raises(RuntimeError, match="NoSuchManager"):
        get_labelmanager_class_from_plans({"label_manager": "NoSuchManager"})


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_a_cascade_adds_a_channel_for_each_foreground_label(key: str) -> None:
    first = {"architecture": {}, "batch_size": 2}
    plans = PlansManager({"dataset_name": "d", "configurations": {"a": first, "b": {"inherits_from": "a", "previous_stage": "a"}}})
    dataset_json = {key: {"0": "CT", "1": "PET"}, "labels": LABELS}
    assert determine_num_input_channels(plans, "a", dataset_json) == 2
    assert determine_num_input_channels(plans, plans.get_configuration("b"), dataset_json) == 4
