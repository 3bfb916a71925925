"""Plans of all planners, compared with those that nnU-Net v2 2.8.1 made of the same fingerprints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2.experiment_planning.experiment_planners import resencUNet_planner
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.resampling.planners_no_resampling import nnUNetPlannerResEncL_noResampling
from nnunetv2.experiment_planning.experiment_planners.resampling.resample_with_torch import (
    nnUNetPlanner_torchres,
    nnUNetPlannerResEncL_torchres,
    nnUNetPlannerResEncL_torchres_sepz,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
    nnUNetPlannerResEncXS,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

PLANNERS = {
    "D": ExperimentPlanner,
    "R": ResEncUNetPlanner,
    "M": nnUNetPlannerResEncM,
    "L": nnUNetPlannerResEncL,
    "XL": nnUNetPlannerResEncXL,
}
INPUTS: dict[str, dict[str, Any]] = {
    "A": dict(spacings=[(1, 1, 1)], shape=(36, 50, 35), num_training=260, labels=3),
    "B": dict(spacings=[(1, 0.767578125, 0.767578125)], shape=(432, 512, 512), num_training=131, labels=3),
    "C": dict(
        spacings=[(10, 1.5625, 1.5625), (5, 1.5625, 1.5625), (10, 1.4, 1.4)], shape=(9, 256, 216), num_training=200, labels=4
    ),
    "D": dict(spacings=[(1, 1, 1)], shape=(140, 171, 136), num_training=1251, channels=4, labels=4, relative_size=0.4),
    "E": dict(
        spacings=[(999, 1, 1)], shape=(1, 1500, 1500), num_training=100, channels=3, labels=2, file_ending=".png",
        channel_name="rgb_to_0_1",
    ),
    "F": dict(spacings=[(3.6, 0.62, 0.62)], shape=(20, 320, 320), num_training=32, channels=2, labels=3),
    "G": dict(spacings=[(1.2, 1.2, 3.0)], shape=(64, 64, 20), num_training=10, labels=2),
}  # fmt: skip
# input, configuration: patch size, strides (axes written together, stages separated), batch size by planner
RECORDED: dict[tuple[str, str], dict[str, tuple[list[int], str | None, int]]] = {
    ("A", "2d"): {p: ([56, 40], "11 22 22 22", b) for p, b in zip(PLANNERS, (366, 366, 1618, 4554, 6711))},
    ("A", "3d_fullres"): {p: ([40, 56, 40], "111 222 222 222", b) for p, b in zip(PLANNERS, (9, 9, 58, 178, 183))},
    ("B", "2d"): {p: ([512, 512], "11" + " 22" * 7, b) for p, b in zip(PLANNERS, (12, 12, 12, 35, 52))},
    ("B", "3d_fullres"): {
        **{p: ([128, 128, 128], "111" + " 222" * 5, 2) for p in ("D", "R", "M")},
        "L": ([160, 224, 192], "111" + " 222" * 5, 2),
        "XL": ([192, 256, 256], "111 222 222 222 222 222 122", 2),
    },
    ("B", "3d_lowres"): {
        **{p: ([128, 128, 128], "111" + " 222" * 5, 2) for p in ("D", "R", "M")},
        "L": ([160, 224, 192], "111" + " 222" * 5, 2),
        "XL": ([192, 256, 256], "111 222 222 222 222 222 122", 2),
    },
    ("C", "2d"): {p: ([256, 224], "11" + " 22" * 5, b) for p, b in zip(PLANNERS, (56, 57, 57, 161, 238))},
    ("C", "3d_fullres"): {p: ([16, 256, 224], "111 122 222 222 122 122", b) for p, b in zip(PLANNERS, (5, 4, 4, 12, 21))},
    ("D", "2d"): {p: ([192, 160], "11" + " 22" * 5, b) for p, b in zip(PLANNERS, (105, 107, 107, 301, 444))},
    ("D", "3d_fullres"): {
        **{p: ([128, 160, 112], "111 222 222 222 222 221", 2) for p in ("D", "R", "M")},
        "L": ([160, 192, 160], "111" + " 222" * 5, 3),
        "XL": ([160, 192, 160], "111" + " 222" * 5, 5),
    },
    ("E", "2d"): {
        "D": ([1280, 1024], "11" + " 22" * 8, 2),
        "R": ([512, 512], "11" + " 22" * 7, 13),
        "M": ([512, 512], "11" + " 22" * 7, 13),
        "L": ([896, 768], "11" + " 22" * 7, 13),
        "XL": ([1024, 1024], "11" + " 22" * 8, 13),
    },
    ("F", "2d"): {p: ([320, 320], "11" + " 22" * 6, b) for p, b in zip(PLANNERS, (32, 32, 32, 90, 133))},
    ("F", "3d_fullres"): {
        "D": ([20, 320, 256], "111 122 122 222 222 122 122", 2),
        "R": ([20, 256, 256], "111 122 122 222 222 122 122", 2),
        "M": ([20, 256, 256], "111 122 122 222 222 122 122", 2),
        "L": ([20, 320, 320], "111 122 122 222 222 122 122", 5),
        "XL": ([20, 320, 320], "111 122 122 222 222 122 122", 8),
    },
    ("G", "2d"): {p: ([64, 64], "11" + " 22" * 4, b) for p, b in zip(PLANNERS, (10, 10, 200, 200, 200))},
    ("G", "3d_fullres"): {p: ([20, 64, 64], "111 122 222 222 122", b) for p, b in zip(PLANNERS, (2, 2, 10, 10, 10))},
}
LOW_RESOLUTION = {
    "D": ([2.4272624711896627, 1.863113576518627, 1.863113576518627], [178, 211, 211]),
    "L": ([1.6047064390987884, 1.2317375596988744, 1.2317375596988744], [269, 319, 319]),
    "XL": ([1.3439163793441222, 1.03156081461375, 1.03156081461375], [321, 381, 381]),
}
LOW_RESOLUTION |= {"R": LOW_RESOLUTION["D"], "M": LOW_RESOLUTION["D"]}

WriteInputs = Callable[..., str]


def plan(write: WriteInputs, planner_class: type[ExperimentPlanner], inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Plans as they stand in the file."""
    name = write(**inputs)
    planner = planner_class(name, **options)
    planner.plan_experiment()
    return json.loads(Path(planner.preprocessed_dataset_folder, f"{planner.plans_name}.json").read_text())


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("dataset", INPUTS)
def test_patches_strides_and_batches_equal_those_of_nnunet(write_planning_inputs: WriteInputs, dataset: str, planner: str) -> None:
    plans = plan(write_planning_inputs, PLANNERS[planner], INPUTS[dataset])
    recorded = {configuration: by_planner[planner] for (name, configuration), by_planner in RECORDED.items() if name == dataset}
    made = plans["configurations"]
    assert set(made) - {"3d_cascade_fullres"} == set(recorded)
    for configuration, (patch_size, strides, batch_size) in recorded.items():
        arguments = made[configuration]["architecture"]["arch_kwargs"]
        assert made[configuration]["patch_size"] == patch_size
        assert " ".join("".join(map(str, stride)) for stride in arguments["strides"]) == strides
        assert made[configuration]["batch_size"] == batch_size
        assert arguments["n_stages"] == len(arguments["strides"]) == len(arguments["features_per_stage"])


@pytest.mark.parametrize("planner", PLANNERS)
def test_large_images_get_a_low_resolution_and_a_cascade(write_planning_inputs: WriteInputs, planner: str) -> None:
    configurations = plan(write_planning_inputs, PLANNERS[planner], INPUTS["B"])["configurations"]
    assert list(configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    lowres = configurations["3d_lowres"]
    spacing, median_shape = LOW_RESOLUTION[planner]
    assert lowres["spacing"] == spacing
    assert lowres["median_image_size_in_voxels"] == median_shape
    assert lowres["next_stage"] == "3d_cascade_fullres"
    assert configurations["3d_cascade_fullres"] == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert [configurations[name]["batch_dice"] for name in ("2d", "3d_lowres", "3d_fullres")] == [True, False, True]


def test_without_low_resolution_full_resolution_has_no_batch_dice(write_planning_inputs: WriteInputs) -> None:
    configurations = plan(write_planning_inputs, ExperimentPlanner, INPUTS["A"])["configurations"]
    assert list(configurations) == ["2d", "3d_fullres"]
    assert (configurations["2d"]["batch_dice"], configurations["3d_fullres"]["batch_dice"]) == (True, False)


def test_thick_slices_are_not_convolved_until_the_plane_is_as_coarse(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["C"])
    fullres = plans["configurations"]["3d_fullres"]
    assert fullres["spacing"] == [6.0, 1.5625, 1.5625]
    assert fullres["median_image_size_in_voxels"] == [15.0, 256.0, 216.0]
    assert fullres["architecture"]["arch_kwargs"]["kernel_sizes"] == [[1, 3, 3]] + [[3, 3, 3]] * 5


def test_the_coarsest_axis_is_moved_to_the_front(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["G"])
    assert (plans["transpose_forward"], plans["transpose_backward"]) == ([2, 0, 1], [1, 2, 0])
    assert plans["configurations"]["3d_fullres"]["spacing"] == [3, 1.2, 1.2]
    assert plans["original_median_spacing_after_transp"] == [3, 1.2, 1.2]
    assert plans["original_median_shape_after_transp"] == [20, 64, 64]


def test_the_axis_order_can_be_kept(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["G"], suppress_transpose=True)
    assert plans["transpose_forward"] == [0, 1, 2]


def test_cropped_images_are_normalised_inside_the_mask(write_planning_inputs: WriteInputs) -> None:
    configuration = plan(write_planning_inputs, ExperimentPlanner, INPUTS["D"])["configurations"]["2d"]
    assert configuration["use_mask_for_norm"] == [True] * 4
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 4


def test_ct_is_never_normalised_inside_the_mask(write_planning_inputs: WriteInputs) -> None:
    configuration = plan(write_planning_inputs, ExperimentPlanner, INPUTS["D"] | {"channel_name": "CT"})["configurations"]["2d"]
    assert configuration["use_mask_for_norm"] == [False] * 4
    assert configuration["normalization_schemes"] == ["CTNormalization"] * 4


def test_colour_images_are_planned_in_2d_only(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["E"])
    assert list(plans["configurations"]) == ["2d"]
    assert plans["image_reader_writer"] == "NaturalImage2DIO"


def test_the_keys_of_the_file_stand_in_the_known_order(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ResEncUNetPlanner, INPUTS["A"])
    assert list(plans) == [
        "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
        "image_reader_writer", "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
        "label_manager", "foreground_intensity_properties_per_channel",
    ]  # fmt: skip
    assert plans["experiment_planner_used"] == "ResEncUNetPlanner" and plans["label_manager"] == "LabelManager"
    configuration = plans["configurations"]["3d_fullres"]
    assert list(configuration) == [
        "data_identifier", "preprocessor_name", "batch_size", "patch_size", "median_image_size_in_voxels", "spacing",
        "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg", "resampling_fn_data_kwargs",
        "resampling_fn_seg_kwargs", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs", "architecture", "batch_dice",
    ]  # fmt: skip
    assert configuration["architecture"] == {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [32, 64, 128, 256],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 3, 4, 6],
            "n_conv_per_stage_decoder": [1, 1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


@pytest.mark.parametrize(
    ("planner_class", "identifiers"),
    [
        (ExperimentPlanner, ["nnUNetPlans_2d", "nnUNetPlans_3d_lowres", "nnUNetPlans_3d_fullres"]),
        (nnUNetPlannerResEncM, ["nnUNetPlans_2d", "nnUNetResEncUNetMPlans_3d_lowres", "nnUNetPlans_3d_fullres"]),
        (
            nnUNetPlannerResEncL_noResampling,
            [f"nnUNetResEncUNetLPlans_noResampling_{c}" for c in ("2d", "3d_lowres", "3d_fullres")],
        ),
        (nnUNetPlannerResEncL_torchres, [f"nnUNetResEncUNetLPlans_torchres_{c}" for c in ("2d", "3d_lowres", "3d_fullres")]),
    ],
)
def test_residual_presets_share_the_data_of_the_default_plans(write_planning_inputs, planner_class, identifiers) -> None:
    configurations = plan(write_planning_inputs, planner_class, INPUTS["B"])["configurations"]
    assert [configurations[c]["data_identifier"] for c in ("2d", "3d_lowres", "3d_fullres")] == identifiers


@pytest.mark.parametrize(
    ("planner_class", "name", "arguments"),
    [
        (ExperimentPlanner, "resample_data_or_seg_to_shape", {"order": 3, "order_z": 0, "force_separate_z": None}),
        (nnUNetPlanner_torchres, "resample_torch_fornnunet", {"force_separate_z": False, "memefficient_seg_resampling": False}),
        (
            nnUNetPlannerResEncL_torchres_sepz,
            "resample_torch_fornnunet",
            {"force_separate_z": None, "separate_z_anisotropy_threshold": 3, "memefficient_seg_resampling": False},
        ),
    ],
)
def test_planners_choose_the_resampling(write_planning_inputs, planner_class, name, arguments) -> None:
    configuration = plan(write_planning_inputs, planner_class, INPUTS["A"])["configurations"]["3d_fullres"]
    assert configuration["resampling_fn_data"] == configuration["resampling_fn_seg"] == name
    assert configuration["resampling_fn_data_kwargs"] == {"is_seg": False} | arguments
    order = {"order": 1} if "order" in arguments else {}
    assert configuration["resampling_fn_seg_kwargs"] == {"is_seg": True} | arguments | order
    assert configuration["resampling_fn_probabilities_kwargs"] == {"is_seg": False} | arguments | order


def test_no_resampling_has_no_arguments(write_planning_inputs: WriteInputs) -> None:
    configuration = plan(write_planning_inputs, nnUNetPlannerResEncL_noResampling, INPUTS["A"])["configurations"]["3d_fullres"]
    assert configuration["resampling_fn_probabilities"] == "no_resampling_hack"
    assert configuration["resampling_fn_data_kwargs"] == {}


@pytest.mark.parametrize(
    ("inputs", "stages"),
    [
        (dict(spacings=[(3, 1, 1)], shape=(16, 64, 64), num_training=12), 4),
        (dict(spacings=[(10, 1.48, 1.48)], shape=(10, 256, 216), num_training=138, labels=4), 5),
        (dict(spacings=[(1, 1, 1)], shape=(36, 50, 35), num_training=200, labels=3), 4),
    ],
)
def test_the_small_preset_is_small_but_has_stages_enough(write_planning_inputs: WriteInputs, inputs, stages) -> None:
    plans = plan(write_planning_inputs, nnUNetPlannerResEncXS, inputs)
    assert plans["plans_name"] == "nnUNetResEncUNetXSPlans"
    fullres = plans["configurations"]["3d_fullres"]
    arguments = fullres["architecture"]["arch_kwargs"]
    assert arguments["n_stages"] >= stages
    assert arguments["features_per_stage"][0] == 8 and max(arguments["features_per_stage"]) <= 128
    assert fullres["batch_size"] * np.prod(fullres["patch_size"]) <= 200_000
    assert fullres["data_identifier"] == "nnUNetResEncUNetXSPlans_3d_fullres"


def test_more_memory_means_larger_batches_and_a_warning_from_presets(write_planning_inputs: WriteInputs) -> None:
    with pytest.warns(UserWarning, match="overwrite_plans_name"):
        plans = plan(write_planning_inputs, nnUNetPlannerResEncM, INPUTS["C"], gpu_memory_target_in_gb=16)
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 8


def test_a_given_spacing_replaces_the_median(write_planning_inputs: WriteInputs) -> None:
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["A"], overwrite_target_spacing=[2.0, 1.0, 1.0])
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2, 1, 1]
    assert plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] == [18, 50, 35]


@pytest.mark.parametrize("spacing", [[1.0, 1.0], [1.0, 0.0, 1.0], [], [1.0, float("nan"), 1.0]])
def test_a_wrong_spacing_is_refused(write_planning_inputs: WriteInputs, spacing) -> None:
    with pytest.raises(ValueError, match="three positive numbers"):
        plan(write_planning_inputs, ExperimentPlanner, INPUTS["A"], overwrite_target_spacing=spacing)


def test_images_without_room_for_a_network_are_refused(write_planning_inputs: WriteInputs) -> None:
    with pytest.raises(ValueError, match="too few for a U-Net"):
        plan(write_planning_inputs, ExperimentPlanner, dict(spacings=[(1, 1, 1)], shape=(6, 7, 7), num_training=10))


def test_thin_volumes_are_planned_in_3d_where_their_slices_are_too_small(write_planning_inputs: WriteInputs, capsys) -> None:
    thin = dict(spacings=[(1, 1, 1)], shape=(64, 10, 7), num_training=10)
    configurations = plan(write_planning_inputs, ExperimentPlanner, thin)["configurations"]
    # as nnU-Net 2.8.1 plans it, which writes a 2d network of one stage besides
    assert list(configurations) == ["3d_fullres"]
    assert configurations["3d_fullres"]["patch_size"] == [64, 10, 7]
    assert configurations["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 1], [2, 1, 1], [2, 1, 1]]
    assert "2d is left out" in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"train": ["a"], "val": ["b"]}, [{"train": ["a"]}], [{"train": "a", "val": "b"}], [["a"]]])
def test_splits_of_another_form_are_refused(write_planning_inputs: WriteInputs, folders, content) -> None:
    name = write_planning_inputs(**INPUTS["A"])
    (folders["nnUNet_raw"] / name / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not hold folds"):
        ExperimentPlanner(name).plan_experiment()
    assert not (folders["nnUNet_preprocessed"] / name / "splits_final.json").exists()
    assert not (folders["nnUNet_preprocessed"] / name / "nnUNetPlans.json").exists()


def test_a_missing_fingerprint_names_the_command_that_makes_it(write_planning_inputs: WriteInputs, folders) -> None:
    name = write_planning_inputs(**INPUTS["A"])
    (folders["nnUNet_preprocessed"] / name / "dataset_fingerprint.json").unlink()
    with pytest.raises(FileNotFoundError, match="nnUNetv2_extract_fingerprint"):
        ExperimentPlanner(name)


def test_the_documentation_names_the_keys_of_plans(write_planning_inputs: WriteInputs) -> None:
    page = (Path(__file__).parents[2] / "documentation" / "plans.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    plans = plan(write_planning_inputs, ExperimentPlanner, INPUTS["B"])
    assert documented == {*plans, *(key for configuration in plans["configurations"].values() for key in configuration)}
    assert set(plans["configurations"]["2d"]["architecture"]) <= set(re.findall(r"`(\w+)`", page))
    example = json.loads("{" + re.search(r"```json\n(.*?)```", page, re.DOTALL)[1] + "}")
    plans["configurations"] |= example
    for name, changes in example.items():
        configuration = PlansManager(plans).get_configuration(name)
        assert {key: configuration.configuration[key] for key in changes} == changes
        assert configuration.patch_size == plans["configurations"][changes["inherits_from"]]["patch_size"]


def test_planning_again_keeps_configurations_of_ones_own(write_planning_inputs: WriteInputs, folders) -> None:
    name = write_planning_inputs(**INPUTS["A"])
    ExperimentPlanner(name).plan_experiment()
    path = folders["nnUNet_preprocessed"] / name / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 5}
    plans["configurations"]["2d"]["batch_size"] = 7
    path.write_text(json.dumps(plans))
    ExperimentPlanner(name).plan_experiment()
    configurations = json.loads(path.read_text())["configurations"]
    assert configurations["mine"] == {"inherits_from": "3d_fullres", "batch_size": 5}
    assert configurations["2d"]["batch_size"] == 366


def test_the_copy_of_dataset_json_has_every_key(write_planning_inputs: WriteInputs, folders) -> None:
    name = write_planning_inputs(**INPUTS["A"])
    raw = folders["nnUNet_raw"] / name / "dataset.json"
    raw.write_text(json.dumps(json.loads(raw.read_text()) | {"licence": "mine", "unknown": [1]}))
    ExperimentPlanner(name).plan_experiment()
    assert (folders["nnUNet_preprocessed"] / name / "dataset.json").read_text() == raw.read_text()


def test_given_splits_are_copied_and_never_replaced(write_planning_inputs: WriteInputs, folders) -> None:
    name = write_planning_inputs(**INPUTS["A"])
    raw, copy = (folders[root] / name / "splits_final.json" for root in ("nnUNet_raw", "nnUNet_preprocessed"))
    ExperimentPlanner(name).plan_experiment()
    assert not copy.exists()

    splits = [{"train": ["a", "b"], "val": ["c"]}]
    raw.write_text(json.dumps(splits))
    ExperimentPlanner(name).plan_experiment()
    assert json.loads(copy.read_text()) == splits

    # another order and a further fold are the same splits
    copy.write_text(json.dumps([{"train": ["b", "a"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]))
    ExperimentPlanner(name).plan_experiment()

    for other in ([{"train": ["a", "c"], "val": ["b"]}], []):
        copy.write_text(json.dumps(other))
        with pytest.raises(ValueError, match="Fold 0"):
            ExperimentPlanner(name).plan_experiment()


def test_the_older_path_of_the_residual_planner_is_the_same_class() -> None:
    assert resencUNet_planner.ResEncUNetPlanner is ResEncUNetPlanner


def test_a_planner_of_ones_own_can_change_values_and_hooks(write_planning_inputs: WriteInputs) -> None:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    class MyPlanner(ExperimentPlanner):
        def __init__(self, dataset_name_or_id, gpu_memory_target_in_gb=8, preprocessor_name="DefaultPreprocessor",
                     plans_name="mine", overwrite_target_spacing=None, suppress_transpose=False):  # fmt: skip
            super().__init__(dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name,
                             overwrite_target_spacing, suppress_transpose)  # fmt: skip
            self.UNet_base_num_features = 16
            self.UNet_max_features_3d = 64

        def determine_fullres_target_spacing(self):
            return np.array([1.0, 1.0, 1.0])

        def determine_resampling(self, *args, **kwargs):
            return resample_data_or_seg_to_shape, {"order": 1}, resample_data_or_seg_to_shape, {"order": 0}

        def generate_data_identifier(self, configuration_name):
            return f"{self.plans_identifier}_data"

    configuration = plan(write_planning_inputs, MyPlanner, INPUTS["A"])["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 64]
    assert configuration["resampling_fn_data"] == "resample_data_or_seg_to_shape"
    assert configuration["data_identifier"] == "mine_data"


def test_the_memory_of_another_network_is_asked_from_the_network(write_planning_inputs: WriteInputs) -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

    class ResidualUNetPlanner(ResEncUNetPlanner):
        UNet_class = unet.ResidualUNet
        UNet_blocks_per_stage_encoder = (1, 2, 2, 2)
        encoder_blocks_key = "n_blocks_per_stage"

    configuration = plan(write_planning_inputs, ResidualUNetPlanner, INPUTS["A"])["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"].endswith("unet.ResidualUNet")
    assert configuration["patch_size"] == [40, 56, 40]
