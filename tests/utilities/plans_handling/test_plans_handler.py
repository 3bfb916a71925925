"""Plans files: inheritance, older formats, lookups, and what is wrong with edited ones."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2.utilities.plans_handling.plans import ConfigurationPlan
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
FULLRES = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [20, 40, 32],
    "median_image_size_in_voxels": [20.0, 36.0, 32.0],
    "spacing": [1.6, 1.1, 1.0],
    "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
    "use_mask_for_norm": [False, False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": RESAMPLING,
    "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_stages": 2, "strides": [[1, 1, 1], [2, 2, 2]]},
        "_kw_requires_import": ["conv_op"],
    },
    "batch_dice": False,
    "my_own_key": {"kept": True},
}
PLANS = {
    "dataset_name": "Dataset001_A",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.6, 1.1, 1.0],
    "original_median_shape_after_transp": [20, 36, 32],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [1, 0, 2],
    "transpose_backward": [1, 0, 2],
    "configurations": {
        "3d_fullres": FULLRES,
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres", "batch_dice": True},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
}


def plans(**configurations: Any) -> PlansManager:
    content = deepcopy(PLANS)
    content["configurations"].update(configurations)
    return PlansManager(content)


def test_values_of_a_plan_and_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(json.dumps(PLANS))
    manager = PlansManager(str(tmp_path / "plans.json"))
    assert manager.plans == PLANS
    assert (manager.dataset_name, manager.plans_name, manager.transpose_forward) == ("Dataset001_A", "nnUNetPlans", [1, 0, 2])
    assert manager.available_configurations == ["3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    assert manager.experiment_planner_name == "ExperimentPlanner"
    assert manager.foreground_intensity_properties_per_channel == {"0": {"mean": 1.0}}
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.configuration == FULLRES
    assert (configuration.patch_size, configuration.batch_size, configuration.batch_dice) == ([20, 40, 32], 2, False)
    assert configuration.pool_op_kernel_sizes == [[1, 1, 1], [2, 2, 2]]
    assert (configuration.next_stage_names, configuration.previous_stage_name) == (None, None)
    assert manager.get_configuration("3d_fullres") is configuration


def test_a_child_replaces_whole_values_and_keeps_the_name_of_its_parent() -> None:
    manager = plans(child={"inherits_from": "3d_lowres", "architecture": {"network_class_name": "x"}})
    child = manager.get_configuration("child")
    assert child.configuration["architecture"] == {"network_class_name": "x"}
    assert child.configuration["inherits_from"] == "3d_lowres"
    assert (child.batch_dice, child.batch_size, child.next_stage_names) == (True, 2, ["3d_cascade_fullres"])
    assert manager.get_configuration("3d_cascade_fullres").previous_stage_name == "3d_lowres"


def test_changing_a_configuration_does_not_change_its_parent() -> None:
    manager = plans()
    manager.get_configuration("3d_lowres").configuration["patch_size"][0] = 99
    assert manager.get_configuration("3d_fullres").patch_size == [20, 40, 32]


def test_faulty_inheritance_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"3d_nowhere.*3d_fullres, 3d_lowres"):
        plans().get_configuration("3d_nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        plans(a={"inherits_from": "nowhere"}).get_configuration("a")
    with pytest.raises(RuntimeError, match="a -> b -> a"):
        plans(a={"inherits_from": "b"}, b={"inherits_from": "a"}).get_configuration("a")


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset\.json"):
        PlansManager(str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [20, 40]}, r"patch_size \[20, 40\].*expected two entries"),
        ({"spacing": [1.0, 0.0, 1.0]}, r"spacing is \[1.0, 0.0, 1.0\], expected positive"),
        ({"patch_size": [20.5, 40, 32]}, "whole numbers"),
        ({"patch_size": "20"}, "expected a list"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"use_mask_for_norm": [False]}, "normalization_schemes has 2 and use_mask_for_norm has 1"),
    ],
)
def test_contradictions_in_an_edited_plan_are_found_when_it_is_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)nnUNetPlans, configuration mine: .*{message}"):
        plans(mine={"inherits_from": "3d_fullres", **change}).get_configuration("mine")


def test_a_typed_configuration_keeps_unknown_keys() -> None:
    plan = ConfigurationPlan.from_dict(FULLRES)
    assert plan.patch_size == (20, 40, 32)
    assert plan.to_dict() == FULLRES
    assert ConfigurationPlan.from_dict({"patch_size": np.array([8, 8]), "batch_size": np.int64(2)}).to_dict() == {
        "patch_size": [8, 8],
        "batch_size": 2,
    }


def test_plans_of_old_versions_are_converted() -> None:
    old = {key: value for key, value in FULLRES.items() if key != "architecture"} | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
        "unet_max_num_features": 100,
    }
    with pytest.warns(UserWarning, match="2.2 or older"):
        manager = ConfigurationManager(old)
    assert manager.network_arch_class_name == "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    kwargs = manager.network_arch_init_kwargs
    assert list(kwargs) == [
        "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder",
        "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs",
    ]  # fmt: skip
    assert kwargs["features_per_stage"] == [32, 64, 100]
    assert kwargs["conv_op"] == "torch.nn.modules.conv.Conv3d"
    assert manager.pool_op_kernel_sizes == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert list(manager.network_arch_init_kwargs_req_import) == ["conv_op", "norm_op", "dropout_op", "nonlin"]
    assert "UNet_class_name" not in manager.configuration
    with pytest.warns(UserWarning):
        residual = ConfigurationManager({**old, "UNet_class_name": "ResidualEncoderUNet"})
    assert residual.network_arch_init_kwargs["n_blocks_per_stage"] == [2, 2, 2]
    with pytest.raises(RuntimeError, match="SwinUNet"):
        ConfigurationManager({**old, "UNet_class_name": "SwinUNet"})


def test_the_older_name_of_intensity_properties_is_read() -> None:
    content = deepcopy(PLANS)
    content["foreground_intensity_properties_by_modality"] = content.pop("foreground_intensity_properties_per_channel")
    assert PlansManager(content).foreground_intensity_properties_per_channel == {"0": {"mean": 1.0}}


def test_classes_and_functions_of_the_plan_are_found() -> None:
    manager = plans()
    assert manager.image_reader_writer_class.__name__ == "SimpleITKIO"
    assert manager.experiment_planner_class.__name__ == "ExperimentPlanner"
    assert manager.get_label_manager({"labels": {"background": 0, "a": 1}}).num_segmentation_heads == 2
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.preprocessor_class.__name__ == "DefaultPreprocessor"
    image = np.random.default_rng(0).random((1, 4, 4, 4))
    assert configuration.resampling_fn_data(image, (8, 4, 4), (2, 1, 1), (1, 1, 1)).shape == (1, 8, 4, 4)


def test_a_name_that_does_not_exist_is_reported() -> None:
    with pytest.raises(RuntimeError, match="NoSuchPreprocessor"):
        plans(a={**FULLRES, "preprocessor_name": "NoSuchPreprocessor"}).get_configuration("a").preprocessor_class  # noqa: B018
