from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import dataset_json, plans

from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


class WholeAtOnce(LabelManager):
    """A user's own label manager: what it overrides must be called with all channels."""

    def convert_logits_to_segmentation(self, predicted_logits):
        assert predicted_logits.shape[0] == self.num_segmentation_heads
        return super().convert_logits_to_segmentation(predicted_logits)


def logits_and_properties(heads: int, dtype=np.float32) -> tuple[np.ndarray, dict]:
    properties = {
        "spacing": [2.0, 1.0, 1.5],  # axes of the file
        "shape_before_cropping": (14, 17, 12),
        "bbox_used_for_cropping": [[1, 13], [2, 15], [0, 12]],
        "shape_after_cropping_and_before_resampling": (12, 13, 12),
    }
    return np.random.default_rng(0).normal(size=(heads, 9, 10, 18)).astype(dtype), properties


def transposed_plans() -> PlansManager:
    return PlansManager({**plans(), "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]})


def export(logits, properties, manager: LabelManager, return_probabilities: bool = False):
    plans_manager = transposed_plans()
    configuration = plans_manager.get_configuration("3d_fullres")
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans_manager, configuration, manager, properties, return_probabilities
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("labels", "order"), [(dataset_json()["labels"], None), (REGIONS, [1, 2])])
def test_labels_by_channel_equal_those_of_all_channels_at_once(labels, order, dtype) -> None:
    manager = LabelManager(labels, order)
    logits, properties = logits_and_properties(manager.num_segmentation_heads, dtype)
    by_channel = export(logits, properties, manager)
    at_once = export(logits, properties, WholeAtOnce(labels, order))
    np.testing.assert_array_equal(by_channel, at_once)
    assert by_channel.shape == (17, 14, 12)  # the file's axis order
    assert by_channel.dtype == np.uint8
    assert len(np.unique(by_channel)) > 1


def test_outside_of_the_crop_box_is_background() -> None:
    manager = LabelManager(dataset_json()["labels"], None)
    logits, properties = logits_and_properties(3)
    logits[2] += 100
    segmentation, probabilities = export(logits, properties, manager, return_probabilities=True)
    inside = np.zeros((14, 17, 12), dtype=bool)
    inside[1:13, 2:15] = True
    inside = inside.transpose(1, 0, 2)
    assert (segmentation[inside] == 2).all()
    assert (segmentation[~inside] == 0).all()
    assert probabilities.shape == (3, 17, 14, 12)
    assert (probabilities[0][~inside] == 1).all()
    assert (probabilities[0][inside] < 0.01).all()


def test_tensors_and_arrays_give_the_same() -> None:
    manager = LabelManager(dataset_json()["labels"], None)
    logits, properties = logits_and_properties(3)
    np.testing.assert_array_equal(export(torch.from_numpy(logits), properties, manager), export(logits, properties, manager))


def test_of_equal_logits_the_first_class_wins() -> None:
    manager = LabelManager(dataset_json()["labels"], None)
    _, properties = logits_and_properties(3)
    assert not export(np.ones((3, 12, 13, 12), np.float32), properties, manager).any()


def test_many_labels_need_uint16() -> None:
    labels = {"background": 0, **{f"l{i}": i for i in range(1, 257)}}
    manager = LabelManager(labels, None)
    logits = np.zeros((257, 12, 13, 12), np.float32)
    logits[256] = 1
    segmentation = export(logits, logits_and_properties(3)[1], manager)
    assert segmentation.dtype == np.uint16
    assert segmentation.max() == 256


def test_logits_of_another_number_of_classes_are_refused() -> None:
    logits, properties = logits_and_properties(4)
    with pytest.raises(ValueError, match="4 outputs, but the labels need 3"):
        export(logits, properties, LabelManager(dataset_json()["labels"], None))
