"""Plans build networks, and import nothing beyond them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunetv2.utilities.get_network_from_plans import build_trainers_network, get_network_from_plans

CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
REQUIRED = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }


def test_the_architecture_section_builds_a_network() -> None:
    given = arguments()
    network = get_network_from_plans(CLASS, given, REQUIRED, 2, 3, deep_supervision=True)
    outputs = network(torch.zeros(1, 2, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 16, 16), (1, 3, 8, 8)]
    assert given == arguments()


def test_initialisation_can_be_left_out() -> None:
    weights = []
    for allow_init in (True, False):
        torch.manual_seed(0)
        network = get_network_from_plans(CLASS, arguments(), REQUIRED, 1, 2, allow_init=allow_init, deep_supervision=False)
        weights.append(next(p for name, p in network.named_parameters() if name.endswith("conv.bias")).detach())
    assert (weights[0] == 0).all()
    assert (weights[1] != 0).any()


def test_the_old_path_of_a_class_is_found_by_its_last_part() -> None:
    old = arguments(n_blocks_per_stage=[1, 1, 1])
    del old["n_conv_per_stage"]
    with pytest.warns(UserWarning, match="residual_unet"):
        network = get_network_from_plans(
            "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet", old, REQUIRED, 1, 2, deep_supervision=False
        )
    assert type(network).__name__ == "ResidualEncoderUNet"


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "torch.nnx.Conv2d",
        "torch.nn.modules.module.warnings.sys.modules.get",
        "torch.nn.modules.module.functools.partial",
        "nnunetv2.utilities.file_io.os.mkdir",
        "torch.nn.modules",
    ],
)
def test_a_plan_cannot_import_other_things(path: str) -> None:
    with pytest.raises(ImportError) as error:
        get_network_from_plans(path, {}, [], 1, 2)
    assert path in str(error.value)
    with pytest.raises(ImportError):
        get_network_from_plans(CLASS, arguments(nonlin=path), REQUIRED, 1, 2)


def test_a_package_of_the_user_is_allowed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match="nnUNet_allowed_imports=collections"):
        get_network_from_plans("collections.OrderedDict", {}, [], 1, 2)
    monkeypatch.setenv("nnUNet_allowed_imports", "something, collections")
    assert get_network_from_plans("collections.OrderedDict", {"a": 3}, [], 1, 2) == {"input_channels": 1, "num_classes": 2, "a": 3}


def test_a_class_that_does_not_exist_is_named() -> None:
    with pytest.warns(UserWarning), pytest.raises(ImportError, match="NoSuchNet"):
        get_network_from_plans("dynamic_network_architectures.architectures.unet.NoSuchNet", {}, [], 1, 2)


class Managers:
    """What a configuration says about its architecture."""

    network_arch_class_name, network_arch_init_kwargs, network_arch_init_kwargs_req_import = "a.Net", {"n": 1}, ("op",)


def current(plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True):
    return plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision


def another_order(configuration_manager, num_input_channels, num_output_channels, plans_manager, enable_deep_supervision=True, extra=3):
    return plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision


def names_of_its_own(plans, configuration, inputs, outputs, deep):
    return plans, configuration, inputs, outputs, deep


def partly_with_names_of_its_own(plans_manager, configuration, num_input_channels, num_output_channels, deep, *, extra=3):
    return plans_manager, configuration, num_input_channels, num_output_channels, deep


def passing_on(*args, **kwargs):
    return current(*args, **kwargs)


def passing_the_rest_on(plans_manager, *args, **kwargs):
    return current(plans_manager, *args, **kwargs)


def by_place(plans, configuration, inputs, outputs, deep, /):
    return plans, configuration, inputs, outputs, deep


def of_version_2_5(
    architecture_class_name,
    arch_init_kwargs,
    arch_init_kwargs_req_import,
    num_input_channels,
    num_output_channels,
    enable_deep_supervision=True,
):
    return (
        architecture_class_name,
        arch_init_kwargs,
        arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision,
    )


def of_version_2_5_with_names_of_its_own(name, kwargs, imports, inputs, outputs, deep):
    return name, kwargs, imports, inputs, outputs, deep


def of_version_2_5_passing_the_rest_on(architecture_class_name, *args, **kwargs):
    return of_version_2_5(architecture_class_name, *args, **kwargs)


def of_version_2_5_partly_with_names_of_its_own(arch, kwargs, imports, num_input_channels, num_output_channels, deep=True, extra=3):
    return arch, kwargs, imports, num_input_channels, num_output_channels, deep


def of_version_2_0(plans_manager, dataset_json, configuration_manager, num_input_channels, enable_deep_supervision=True):
    return plans_manager, dataset_json, configuration_manager, num_input_channels, enable_deep_supervision


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (current, ("plans", Managers, 2, 3, False)),
        (another_order, ("plans", Managers, 2, 3, False)),
        (names_of_its_own, ("plans", Managers, 2, 3, False)),
        (partly_with_names_of_its_own, ("plans", Managers, 2, 3, False)),
        (passing_on, ("plans", Managers, 2, 3, False)),
        (passing_the_rest_on, ("plans", Managers, 2, 3, False)),
        (by_place, ("plans", Managers, 2, 3, False)),
        (of_version_2_5, ("a.Net", {"n": 1}, ("op",), 2, 3, False)),
        (of_version_2_5_with_names_of_its_own, ("a.Net", {"n": 1}, ("op",), 2, 3, False)),
        (of_version_2_5_partly_with_names_of_its_own, ("a.Net", {"n": 1}, ("op",), 2, 3, False)),
        (of_version_2_5_passing_the_rest_on, ("a.Net", {"n": 1}, ("op",), 2, 3, False)),
        (of_version_2_0, ("plans", {"labels": {}}, Managers, 2, False)),
    ],
)
def test_networks_of_trainers_are_built_by_every_signature(build, expected, recwarn) -> None:
    assert build_trainers_network(build, "plans", Managers, {"labels": {}}, 2, 3, False) == expected
    warned = [warning for warning in recwarn if warning.category is DeprecationWarning]
    assert len(warned) == (build not in (current, partly_with_names_of_its_own, passing_on, passing_the_rest_on))


def test_a_network_that_needs_a_trainer_cannot_be_predicted_with() -> None:
    def build(self, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True):
        raise AssertionError

    with pytest.raises(TypeError, match="must be a @staticmethod"):
        build_trainers_network(build, "plans", Managers, {}, 1, 2, False)
