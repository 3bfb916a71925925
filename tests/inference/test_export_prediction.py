from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_models import dataset_json, plans

from nnunetv2.inference import blockwise_export
from nnunetv2.inference.blockwise_export import fill_labels
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
)
from nnunetv2.preprocessing.resampling.blockwise_resampling import BlockwiseResampling, blockwise_resampling
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
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


# --- block by block ---------------------------------------------------------------------------------------------------------------

# Network's grid and image's, larger than a block along some axes; voxel sizes of both; what the plans say about resampling.
GRIDS = {
    "finer, one axis unchanged": ((20, 40, 70), (55, 90, 70), [2.0, 2.0, 1.0], [1.0, 1.0, 1.0], {"order": 1}),
    "coarser": ((60, 50, 40), (33, 20, 51), [1.0, 1.0, 1.0], [1.8, 2.4, 0.8], {"order": 1}),
    "same grid": ((50, 30, 60), (50, 30, 60), [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], {"order": 1}),
    "separate first axis": ((9, 40, 33), (52, 60, 50), [6.0, 1.0, 1.0], [1.0, 0.7, 0.7], {"order": 1, "order_z": 0}),
    "separate last axis, linear": ((30, 22, 9), (60, 30, 50), [1.0, 1.0, 5.0], [0.5, 0.8, 1.0], {"order": 1, "order_z": 1}),
    "nearest": ((20, 20, 20), (50, 31, 17), [1.0, 1.0, 1.0], [0.4, 0.7, 1.2], {"order": 0}),
    "few values": ((6, 7, 8), (9, 10, 12), [1.5, 1.5, 1.5], [1.0, 1.1, 1.0], {"order": 1}),
}


def smooth_logits(heads: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Structures of some voxels, with wide margins inside and none at their borders."""
    noise = np.random.default_rng(1).normal(size=(heads, *shape))
    return (gaussian_filter(noise, (0, 3, 3, 3)) * 400).astype(dtype)


def assert_equal_but_for_rounding(probabilities: np.ndarray, expected: np.ndarray, dtype: type) -> None:
    """Interpolated logits in the middle of two float16 go up or down with the last bit of the float64 sums before."""
    difference = np.abs(probabilities - expected)
    assert (difference > 1e-6).mean() < (1e-3 if dtype is np.float16 else 1e-12)
    assert difference.max() < (16 * np.finfo(np.float16).eps / 4 if dtype is np.float16 else 1e-6)


def plans_with(spacing: list[float], resampling: dict) -> PlansManager:
    content = plans(spacing=tuple(spacing))
    keywords = {"is_seg": False, "order_z": 0, "force_separate_z": None, **resampling}
    content["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"] = keywords
    return PlansManager({**content, "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]})


@pytest.fixture(params=["numpy", "numba"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes labels: machine code takes large images otherwise."""
    if request.param == "numba":
        pytest.importorskip("numba")
        monkeypatch.setattr(blockwise_export, "WORTH_COMPILING", 0)
    return request.param


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "manager", [LabelManager(dataset_json()["labels"], None), LabelManager(REGIONS, [1, 2])], ids=["labels", "regions"]
)
@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_equal_the_whole_image(grid, manager, dtype, tmp_path) -> None:
    shape, new_shape, spacing, new_spacing, resampling = GRIDS[grid]
    heads = manager.num_segmentation_heads
    logits = smooth_logits(heads, shape, dtype)
    whole = resample_data_or_seg_to_shape(logits, new_shape, spacing, new_spacing, **{"order_z": 0, "force_separate_z": None, **resampling})
    expected = np.asarray(manager.convert_logits_to_segmentation(whole))
    expected_probabilities = np.asarray(manager.apply_inference_nonlin(whole))

    plans_manager = plans_with(spacing, resampling)
    configuration = plans_manager.get_configuration("3d_fullres")
    before_cropping = tuple(n + 5 for n in new_shape)
    properties = {
        "spacing": [new_spacing[axis] for axis in plans_manager.transpose_backward],  # axes of the file
        "shape_before_cropping": before_cropping,
        "bbox_used_for_cropping": [[2, 2 + n] for n in new_shape],
        "shape_after_cropping_and_before_resampling": new_shape,
    }
    box = tuple(slice(2, 2 + n) for n in new_shape)
    arguments = (logits, plans_manager, configuration, manager, properties)
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    np.testing.assert_array_equal(labels.transpose(plans_manager.transpose_forward)[box], expected)
    assert labels.sum() == expected.sum()  # nothing outside of the box

    labels_too, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(*arguments, return_probabilities=True)
    forward = [0, *(axis + 1 for axis in plans_manager.transpose_forward)]
    inside = probabilities.transpose(forward)[(slice(None), *box)]
    assert_equal_but_for_rounding(inside, expected_probabilities, dtype)
    np.testing.assert_array_equal(labels_too.transpose(plans_manager.transpose_forward)[box], expected)

    written = {}
    writer = type("Writer", (), {"write_seg": lambda self, seg, file, properties: written.update({"labels": seg})})
    plans_manager.image_reader_writer_class = lambda: writer()
    dataset = dataset_json(manager.label_dict, regions_class_order=manager.regions_class_order)
    file = str(tmp_path / "case")
    export_prediction_from_logits(logits, properties, configuration, plans_manager, dataset, file, True, classification={"t": np.ones(2)})
    np.testing.assert_array_equal(written["labels"], labels_too)
    with np.load(file + ".npz", allow_pickle=False) as content:
        assert_equal_but_for_rounding(content["probabilities"], probabilities, dtype)
        assert content["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(content["classification_t"], [1, 1])


def test_channels_that_cannot_win_are_not_interpolated(monkeypatch) -> None:
    manager = LabelManager({"background": 0, **{f"l{index}": index for index in range(1, 9)}}, None)
    monkeypatch.setattr(blockwise_export, "FEW_VALUES", 0)
    logits = np.full((9, 9, 10, 18), -20, np.float32)
    logits[0] = 0
    logits[3, 5:, 4:] = 5
    interpolated = []
    resample = BlockwiseResampling.resample
    monkeypatch.setattr(BlockwiseResampling, "resample", lambda *arguments: interpolated.append(1) or resample(*arguments))
    _, properties = logits_and_properties(3)
    properties["shape_after_cropping_and_before_resampling"] = (12, 13, 12)
    labels = export(logits, properties, manager)
    assert set(np.unique(labels)) == {0, 3}
    assert len(interpolated) == 2  # one block, two of nine channels


@pytest.mark.parametrize("has_regions", [False, True])
def test_left_out_channels_change_no_label(has_regions, monkeypatch) -> None:
    heads = 10
    labels = {"background": 0, **{f"l{index}": [index, index + 1] if has_regions else index for index in range(1, heads + has_regions)}}
    manager = LabelManager(labels, list(range(1, heads + 1)))
    shape, new_shape, spacing, new_spacing, resampling = GRIDS["finer, one axis unchanged"]
    logits = gaussian_filter(np.random.default_rng(2).normal(size=(heads, *shape)), (0, 9, 9, 9)).astype(np.float32)
    logits *= 3 / logits.std()  # wide structures: most channels are far from the largest, or from zero, in a whole block
    whole = resample_data_or_seg_to_shape(logits, new_shape, spacing, new_spacing, **resampling)
    found = np.empty(new_shape, np.uint8)
    in_blocks = blockwise_resampling(shape, new_shape, spacing, new_spacing, **resampling)
    interpolated = []
    resample = BlockwiseResampling.resample
    monkeypatch.setattr(BlockwiseResampling, "resample", lambda *arguments: interpolated.append(1) or resample(*arguments))
    assert fill_labels(logits, in_blocks, manager, found)
    np.testing.assert_array_equal(found, np.asarray(manager.convert_logits_to_segmentation(whole)))
    blocks = np.prod([len(axis) for axis in in_blocks.blocks])
    assert blocks < len(interpolated) < heads * blocks


@pytest.mark.parametrize("return_probabilities", [False, True])
def test_logits_that_are_no_numbers_go_through_the_library(return_probabilities) -> None:
    manager = LabelManager(dataset_json()["labels"], None)
    logits, properties = logits_and_properties(3)
    logits[2] = -np.inf
    result = export(logits, properties, manager, return_probabilities)
    assert set(np.unique(result[0] if return_probabilities else result)) <= {0, 1, 2}


def test_of_few_values_it_is_not_searched_which_can_win(monkeypatch) -> None:
    shape, new_shape, spacing, new_spacing, resampling = GRIDS["few values"]
    logits = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    in_blocks = blockwise_resampling(shape, new_shape, spacing, new_spacing, **resampling)
    found, searched = (np.empty(new_shape, np.uint8) for _ in range(2))
    manager = LabelManager(dataset_json()["labels"], None)
    with monkeypatch.context() as patch:
        patch.setattr(blockwise_export, "FEW_VALUES", 0)
        assert fill_labels(logits, in_blocks, manager, searched)
    monkeypatch.setattr(blockwise_export, "_ranges", lambda *arguments: pytest.fail("searched"))
    assert fill_labels(logits, in_blocks, manager, found)
    np.testing.assert_array_equal(found, searched)


@pytest.mark.parametrize("return_probabilities", [False, True])
@pytest.mark.parametrize("manager", [LabelManager(dataset_json()["labels"], None), LabelManager(REGIONS, [1, 2])], ids=["labels", "regions"])
def test_views_and_arrays_that_must_not_be_written_on_the_same_grid(manager, return_probabilities) -> None:
    logits, properties = logits_and_properties(manager.num_segmentation_heads)
    properties["shape_after_cropping_and_before_resampling"] = logits.shape[1:]
    properties["bbox_used_for_cropping"] = [[0, n] for n in logits.shape[1:]]
    properties["shape_before_cropping"] = logits.shape[1:]
    expected = export(logits, properties, manager, return_probabilities)
    frozen = logits.copy()
    frozen.flags.writeable = False
    for given in (frozen, logits[:, ::-1].copy()[:, ::-1]):
        result = export(given, properties, manager, return_probabilities)
        for one, other in zip(result, expected, strict=True) if return_probabilities else [(result, expected)]:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("grid", ["coarser", "few values"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_rows_with_logits_that_are_no_finite_numbers_are_left_to_others(number: float, grid: str) -> None:
    shape, new_shape, spacing, new_spacing, resampling = GRIDS[grid]
    logits = np.zeros((3, *shape), np.float32)
    in_blocks = blockwise_resampling(shape, new_shape, spacing, new_spacing, **resampling)
    manager, labels = LabelManager(dataset_json()["labels"], None), np.empty(new_shape, np.uint8)
    assert fill_labels(logits, in_blocks, manager, labels)
    logits[1, 5, 2, 7] = number
    assert not fill_labels(logits, in_blocks, manager, labels)


@pytest.mark.parametrize("resampling", [{"order": 3}, {"order": 1, "force_separate_z": True, "order_z": 3}])
def test_cubic_splines_still_go_channel_by_channel(resampling) -> None:
    manager = LabelManager(dataset_json()["labels"], None)
    logits, properties = logits_and_properties(3)
    spacing = [2.0, 1.0, 1.5]
    plans_manager = plans_with(spacing, resampling)
    keywords = {"order_z": 0, "force_separate_z": None, **resampling}
    new_shape = properties["shape_after_cropping_and_before_resampling"]
    whole = resample_data_or_seg_to_shape(logits, new_shape, spacing, [1.5, 2.0, 1.0], **keywords)
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans_manager, plans_manager.get_configuration("3d_fullres"), manager, properties
    )
    box = tuple(slice(*limits) for limits in properties["bbox_used_for_cropping"])
    np.testing.assert_array_equal(labels.transpose(plans_manager.transpose_forward)[box], whole.argmax(0))
