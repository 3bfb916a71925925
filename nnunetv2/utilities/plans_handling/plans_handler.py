"""Plans and configurations as objects: what trainers, predictors and preprocessors hold."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import nnunetv2
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans import ConfigurationPlan

if TYPE_CHECKING:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

LEGACY_ARCHITECTURES = {
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet", "n_blocks_per_stage"),
}
LEGACY_KEYS = (
    "UNet_class_name",
    "UNet_base_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
    "unet_max_num_features",
)


class ConfigurationManager:
    """One configuration of a plan, such as ``3d_fullres``, with inheritance resolved."""

    def __init__(self, configuration_dict: dict[str, Any]) -> None:
        self.configuration = configuration_dict
        if "architecture" not in self.configuration:
            self._convert_legacy_architecture()

    def __repr__(self) -> str:
        return repr(self.configuration)

    def _convert_legacy_architecture(self) -> None:
        """Plans of nnU-Net 2.2 and older describe the network by other keys."""
        old = self.configuration
        if "UNet_class_name" not in old:
            raise ValueError("The configuration has no `architecture`, nor the keys of older plans. Plan the experiment again.")
        if old["UNet_class_name"] not in LEGACY_ARCHITECTURES:
            raise RuntimeError(
                f"The plans name the network {old['UNet_class_name']!r}; plans of this age can be read for "
                f"{', '.join(LEGACY_ARCHITECTURES)}. "
                "Plan the experiment again."
            )
        warnings.warn(
            "These plans were made by nnU-Net 2.2 or older and are converted while reading. Plan again to update the file.", stacklevel=4
        )
        class_path, blocks_key = LEGACY_ARCHITECTURES[old["UNet_class_name"]]
        dimensions = len(old["patch_size"])
        n_stages = len(old["n_conv_per_stage_encoder"])
        imports = {
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "dropout_op": None,
            "nonlin": "torch.nn.LeakyReLU",
        }
        features = [min(old["UNet_base_num_features"] * 2**i, old["unet_max_num_features"]) for i in range(n_stages)]
        architecture = {
            "network_class_name": class_path,
            "arch_kwargs": {
                "n_stages": n_stages,
                "features_per_stage": features,
                "conv_op": imports["conv_op"],
                "kernel_sizes": deepcopy(old["conv_kernel_sizes"]),
                "strides": deepcopy(old["pool_op_kernel_sizes"]),
                blocks_key: deepcopy(old["n_conv_per_stage_encoder"]),
                "n_conv_per_stage_decoder": deepcopy(old["n_conv_per_stage_decoder"]),
                "conv_bias": True,
                "norm_op": imports["norm_op"],
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": imports["nonlin"],
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": list(imports),
        }
        self.configuration = {key: value for key, value in old.items() if key not in LEGACY_KEYS} | {"architecture": architecture}

    @property
    def data_identifier(self) -> str:
        """Folder of the preprocessed cases."""
        return self.configuration["data_identifier"]

    @property
    def preprocessor_name(self) -> str:
        return self.configuration["preprocessor_name"]

    @cached_property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        return _find("preprocessing", self.preprocessor_name, "preprocessor")

    @property
    def batch_size(self) -> int:
        """Samples per step over all GPUs."""
        return self.configuration["batch_size"]

    @property
    def patch_size(self) -> list[int]:
        """Voxels per axis after transposing; two entries for 2d."""
        return self.configuration["patch_size"]

    @property
    def median_image_size_in_voxels(self) -> list[float]:
        return self.configuration["median_image_size_in_voxels"]

    @property
    def spacing(self) -> list[float]:
        """Target voxel size in mm, in the axis order of ``patch_size``."""
        return self.configuration["spacing"]

    @property
    def normalization_schemes(self) -> list[str]:
        """Class name of each channel's normalization."""
        return self.configuration["normalization_schemes"]

    @property
    def use_mask_for_norm(self) -> list[bool]:
        """By channel: whether only the non-zero region counts for normalization."""
        return self.configuration["use_mask_for_norm"]

    @property
    def network_arch_class_name(self) -> str:
        return self.configuration["architecture"]["network_class_name"]

    @property
    def network_arch_init_kwargs(self) -> dict[str, Any]:
        return self.configuration["architecture"]["arch_kwargs"]

    @property
    def network_arch_init_kwargs_req_import(self) -> list[str]:
        """Arguments that are dotted paths."""
        return self.configuration["architecture"]["_kw_requires_import"]

    @property
    def pool_op_kernel_sizes(self) -> list[list[int]]:
        """Strides of every stage."""
        return self.configuration["architecture"]["arch_kwargs"]["strides"]

    @cached_property
    def resampling_fn_data(self) -> Callable:
        """``f(array, new_shape, current_spacing, new_spacing)`` for images."""
        return self._resampling_function("resampling_fn_data")

    @cached_property
    def resampling_fn_seg(self) -> Callable:
        """The same for segmentations."""
        return self._resampling_function("resampling_fn_seg")

    @cached_property
    def resampling_fn_probabilities(self) -> Callable:
        """The same for logits and probabilities."""
        return self._resampling_function("resampling_fn_probabilities")

    def _resampling_function(self, key: str) -> Callable:
        """A resampling function with its keyword arguments bound."""
        function = _find("preprocessing.resampling", self.configuration[key], "resampling function")
        return partial(function, **self.configuration[f"{key}_kwargs"])

    @property
    def batch_dice(self) -> bool:
        """Whether the Dice loss sums over the samples of a batch first."""
        return self.configuration["batch_dice"]

    @property
    def next_stage_names(self) -> list[str] | None:
        """Configurations that continue this one in a cascade."""
        names = self.configuration.get("next_stage")
        return [names] if isinstance(names, str) else names

    @property
    def previous_stage_name(self) -> str | None:
        """Configuration that this one continues."""
        return self.configuration.get("previous_stage")


class PlansManager:
    """A plans file.

    Args:
        plans_file_or_dict: Path, or content; the content is not modified.
    """

    def __init__(self, plans_file_or_dict: str | dict[str, Any]) -> None:
        self.plans: dict[str, Any] = plans_file_or_dict if isinstance(plans_file_or_dict, dict) else load_json(plans_file_or_dict)
        if "configurations" not in self.plans:
            source = "The plans" if isinstance(plans_file_or_dict, dict) else str(plans_file_or_dict)
            raise ValueError(f"{source}: no `configurations` found, so this is no plans file. Run nnUNetv2_plan_experiment.")
        self._configurations: dict[str, ConfigurationManager] = {}

    def __repr__(self) -> str:
        return repr(self.plans)

    def get_configuration(self, configuration_name: str) -> ConfigurationManager:
        """A configuration by name; the same object every time.

        Raises:
            RuntimeError: If there is none of that name.
            ValueError: If its values contradict each other.
        """
        if configuration_name not in self._configurations:
            if configuration_name not in self.plans["configurations"]:
                raise RuntimeError(
                    f"The plans {self.plans_name} have no configuration {configuration_name!r}; "
                    f"they have {', '.join(self.available_configurations)}."
                )
            content = self._internal_resolve_configuration_inheritance(configuration_name)
            try:
                ConfigurationPlan.from_dict(content)
            except ValueError as error:
                raise ValueError(f"Plans {self.plans_name}, configuration {configuration_name}: {error}. Correct the plans file.") from None
            self._configurations[configuration_name] = ConfigurationManager(content)
        return self._configurations[configuration_name]

    def _internal_resolve_configuration_inheritance(self, configuration_name: str, visited: tuple[str, ...] = ()) -> dict[str, Any]:
        """A configuration over the one it inherits from; a key of the child replaces the parent's whole value."""
        visited = visited or ()
        if configuration_name not in self.plans["configurations"]:
            raise ValueError(f"The configuration {configuration_name!r} does not exist in these plans, but another one inherits from it.")
        if configuration_name in visited:
            raise RuntimeError(f"Configurations inherit from each other in a circle: {' -> '.join((*visited, configuration_name))}.")
        configuration = deepcopy(self.plans["configurations"][configuration_name])
        parent = configuration.get("inherits_from")
        if parent is None:
            return configuration
        return self._internal_resolve_configuration_inheritance(parent, (*visited, configuration_name)) | configuration

    @property
    def dataset_name(self) -> str:
        return self.plans["dataset_name"]

    @property
    def plans_name(self) -> str:
        return self.plans.get("plans_name", "(unnamed)")

    @property
    def original_median_spacing_after_transp(self) -> list[float]:
        """Median voxel size in mm of the raw cases."""
        return self.plans["original_median_spacing_after_transp"]

    @property
    def original_median_shape_after_transp(self) -> list[int]:
        """Median shape of the cropped raw cases."""
        return self.plans["original_median_shape_after_transp"]

    @cached_property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        return _find("imageio", self.plans["image_reader_writer"], "reader/writer")

    @property
    def transpose_forward(self) -> list[int]:
        """Axis order of the network: entry i is the reader's axis that becomes axis i."""
        return self.plans["transpose_forward"]

    @property
    def transpose_backward(self) -> list[int]:
        """The inverse of ``transpose_forward``."""
        return self.plans["transpose_backward"]

    @property
    def available_configurations(self) -> list[str]:
        return list(self.plans["configurations"])

    @property
    def experiment_planner_name(self) -> str:
        return self.plans["experiment_planner_used"]

    @cached_property
    def experiment_planner_class(self) -> type[ExperimentPlanner]:
        return _find("experiment_planning", self.experiment_planner_name, "experiment planner")

    @cached_property
    def label_manager_class(self) -> type[LabelManager]:
        from nnunetv2.utilities.label_handling.label_handling import get_labelmanager_class_from_plans

        return get_labelmanager_class_from_plans(self.plans)

    def get_label_manager(self, dataset_json: Mapping[str, Any], **kwargs: Any) -> LabelManager:
        """The label manager of a dataset."""
        return self.label_manager_class(
            label_dict=dataset_json["labels"], regions_class_order=dataset_json.get("regions_class_order"), **kwargs
        )

    @property
    def foreground_intensity_properties_per_channel(self) -> dict[str, dict[str, float]]:
        """Intensity statistics inside the foreground, by channel index."""
        for key in ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"):
            if key in self.plans:
                return self.plans[key]
        raise RuntimeError(f"The plans {self.plans_name} lack `foreground_intensity_properties_per_channel`. Plan the experiment again.")


def _find(package: str, name: str, kind: str) -> Any:
    """A class or function by name in a package of ours."""
    folder = os.path.join(os.path.dirname(nnunetv2.__file__), *package.split("."))
    found = recursive_find_python_class(folder, name, f"nnunetv2.{package}")
    if found is None:
        raise RuntimeError(
            f"The plans name the {kind} {name!r}, which does not exist in nnunetv2.{package}. Check the spelling in the plans."
        )
    return found


def check_plans_fit(
    plans_manager: PlansManager, dataset_name: str, dataset_json: Mapping[str, Any], configurations: Iterable[str]
) -> None:
    """Raise ValueError where plans were made for another dataset, or these configurations for other channels."""
    if plans_manager.dataset_name != dataset_name:
        raise ValueError(
            f"Plans {plans_manager.plans_name} in the folder of {dataset_name} were made for {plans_manager.dataset_name}. "
            "Transfer plans with nnUNetv2_move_plans_between_datasets, which adapts them."
        )
    n_channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    for name in configurations:
        schemes = plans_manager.get_configuration(name).normalization_schemes
        if len(schemes) != n_channels:
            raise ValueError(
                f"Plans {plans_manager.plans_name} normalise {len(schemes)} {'channel' if len(schemes) == 1 else 'channels'} in configuration "
                f"{name}, dataset.json of {dataset_name} names {n_channels}. Plan again after changing channels: "
                "nnUNetv2_plan_and_preprocess --clean."
            )
