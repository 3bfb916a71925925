"""ExperimentPlanner: from the fingerprint of a dataset to its plans file.

The arithmetic lives in `target_spacing`, `network_topology` and `patch_and_batch_size`; the methods here are the places
where a planner of one's own changes a decision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.experiment_planning.experiment_planners.network_topology import SINGLE_AXIS_MIN_MULTIPLE, Topology
from nnunetv2.experiment_planning.experiment_planners.patch_and_batch_size import (
    batch_size_for,
    largest_fitting_patch,
    unet_feature_map_size,
)
from nnunetv2.experiment_planning.experiment_planners.target_spacing import (
    axis_order,
    coarser_spacing,
    fullres_target_spacing,
    median_resampled_shape,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import load_raw_dataset_json
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.crossval_split import check_splits
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import copy_file, load_json, save_json
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.classification_labels import copy_label_tables
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

# Below this share of voxels left after cropping, z-score normalization looks at the uncropped voxels only.
MASKED_NORMALIZATION_MAX_RELATIVE_SIZE = 0.75
# Low resolution is planned only where the full-resolution image has at least this many times its voxels.
LOWRES_MIN_VOXEL_RATIO = 2
FINGERPRINT_KEYS = (
    "spacings",
    "shapes_after_crop",
    "median_relative_size_after_cropping",
    "foreground_intensity_properties_per_channel",
)


class ImagesTooSmall(ValueError):
    """No network of two stages or more fits the images of a configuration."""


class ExperimentPlanner:
    """Plans of nnU-Net's default U-Net.

    Args:
        dataset_name_or_id: Dataset below nnUNet_raw; its fingerprint must exist.
        gpu_memory_target_in_gb: Memory that a training step may take.
        preprocessor_name: Class below `nnunetv2.preprocessing`.
        plans_name: Name of the plans file, without ending.
        overwrite_target_spacing: Voxel size in mm of 3d_fullres, three axes as the reader returns them; None decides.
        suppress_transpose: Keep the reader's axis order.

    Raises:
        FileNotFoundError: If the dataset, its dataset.json or its fingerprint is missing.
        ValueError: If dataset.json cannot be used, or the target spacing is not three positive numbers.
    """

    UNet_base_num_features: int = 32
    UNet_class: str | type = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    encoder_blocks_key: str = "n_conv_per_stage"  # the network's argument for UNet_blocks_per_stage_encoder
    # Memory estimates at which 12 or 2 samples fill 8 GB, measured by the authors of nnU-Net; the same for every preset.
    UNet_reference_val_3d: float = 560_000_000
    UNet_reference_val_2d: float = 85_000_000
    UNet_reference_com_nfeatures: int = 32
    UNet_reference_val_corresp_GB: float = 8
    UNet_reference_val_corresp_bs_2d: int = 12
    UNet_reference_val_corresp_bs_3d: int = 2
    UNet_featuremap_min_edge_length: int = 4
    UNet_blocks_per_stage_encoder: Sequence[int] = (2,) * 14
    UNet_blocks_per_stage_decoder: Sequence[int] = (2,) * 13
    UNet_min_batch_size: int = 2
    UNet_max_features_2d: int = 512
    UNet_max_features_3d: int = 320
    max_dataset_covered: float = 0.05  # share of all voxels that one batch may hold
    lowres_creation_threshold: float = 0.25  # of the median image that a full-resolution patch covers
    anisotropy_threshold: float = ANISO_THRESHOLD

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        self.dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        self.raw_dataset_folder = os.path.join(nnUNet_raw, self.dataset_name)
        self.preprocessed_dataset_folder = os.path.join(nnUNet_preprocessed, self.dataset_name)
        self.dataset_json = load_raw_dataset_json(self.raw_dataset_folder)
        self.dataset = get_filenames_of_train_images_and_targets(self.raw_dataset_folder, self.dataset_json)
        self.dataset_fingerprint = load_fingerprint(self.preprocessed_dataset_folder)

        if not gpu_memory_target_in_gb > 0:
            raise ValueError(f"gpu_memory_target_in_gb is {gpu_memory_target_in_gb}, expected a positive number.")
        self.UNet_vram_target_GB = gpu_memory_target_in_gb
        self.preprocessor_name = preprocessor_name
        self.plans_identifier = plans_name
        self.overwrite_target_spacing = checked_target_spacing(overwrite_target_spacing)
        self.suppress_transpose = suppress_transpose
        self.plans: dict[str, Any] | None = None

    @property
    def plans_name(self) -> str:
        return self.plans_identifier

    @property
    def gpu_memory_target_in_gb(self) -> float:
        return self.UNet_vram_target_GB

    @property
    def channel_names(self) -> list[str]:
        return list((self.dataset_json.get("channel_names") or self.dataset_json["modality"]).values())

    # What a planner of one's own may decide differently.

    def determine_reader_writer(self) -> type:
        """Class that reads this dataset's images and labels, tried on the first image."""
        example_image = next(iter(self.dataset.values()))["images"][0]
        return determine_reader_writer_from_dataset_json(self.dataset_json, example_image)

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: Mapping[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> int:
        """Number of values in the feature maps of one sample, see `patch_and_batch_size`.

        For the networks of the planners here it is computed; any other network is built once and asked.
        """
        network_name = arch_class_name.rsplit(".", 1)[-1]
        encoder_key = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}.get(network_name)
        if encoder_key in arch_kwargs:
            return unet_feature_map_size(
                patch_size,
                arch_kwargs["features_per_stage"],
                arch_kwargs["strides"],
                arch_kwargs[encoder_key],
                arch_kwargs["n_conv_per_stage_decoder"],
                output_channels,
                residual=network_name == "ResidualEncoderUNet",
            )
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # torch

        network = get_network_from_plans(
            arch_class_name, dict(arch_kwargs), arch_kwargs_req_import, input_channels, output_channels,
            allow_init=False, deep_supervision=False,
        )  # fmt: skip
        return int(network.compute_conv_feature_map_size(tuple(int(n) for n in patch_size)))

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[Callable | str, dict, Callable | str, dict]:
        """Functions (or their names) below `nnunetv2.preprocessing.resampling` and their arguments, for images, then labels."""
        name = "resample_data_or_seg_to_shape"
        for_data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        for_labels = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
        return name, for_data, name, for_labels

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[Callable | str, dict]:
        """Function (or its name) that brings predicted logits back to the original voxels, and its arguments."""
        return "resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """Target voxel size in mm, in the reader's axis order."""
        if self.overwrite_target_spacing is not None:
            return np.array(self.overwrite_target_spacing, dtype=float)
        return fullres_target_spacing(
            self.dataset_fingerprint["spacings"], self.dataset_fingerprint["shapes_after_crop"], self.anisotropy_threshold
        )

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Class name for every channel, and whether it looks only at voxels inside the non-zero mask."""
        schemes = [get_normalization_scheme(name) for name in self.channel_names]
        much_was_cropped = (
            self.dataset_fingerprint["median_relative_size_after_cropping"] < MASKED_NORMALIZATION_MAX_RELATIVE_SIZE
        )
        use_mask = [
            much_was_cropped and scheme.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true for scheme in schemes
        ]
        return [scheme.__name__ for scheme in schemes], use_mask

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """`transpose_forward` and `transpose_backward`."""
        if self.suppress_transpose:
            return [0, 1, 2], [0, 1, 2]
        return axis_order(self.determine_fullres_target_spacing())

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Folder of the preprocessed cases. Configurations with equal preprocessing may share one."""
        return f"{self.plans_identifier}_{configuration_name}"

    def exceeds_memory(self, estimate: float, reference: float, reference_batch_size: int) -> bool:
        """Whether the patch is still too large; here until a batch of two fits."""
        return estimate / reference_batch_size * 2 > reference

    # Planning.

    def architecture(self, topology: Topology) -> dict[str, Any]:
        """Entry `architecture` of a configuration."""
        n_axes, n_stages = len(topology.patch_size), topology.n_stages
        max_features = self.UNet_max_features_2d if n_axes == 2 else self.UNet_max_features_3d
        class_name = self.UNet_class
        if isinstance(class_name, type):
            class_name = f"{class_name.__module__}.{class_name.__name__}"
        return {
            "network_class_name": class_name,
            "arch_kwargs": {
                "n_stages": n_stages,
                "features_per_stage": [min(max_features, self.UNet_base_num_features * 2**i) for i in range(n_stages)],
                "conv_op": f"torch.nn.modules.conv.Conv{n_axes}d",
                "kernel_sizes": topology.kernel_sizes,
                "strides": topology.strides,
                self.encoder_blocks_key: list(self.UNet_blocks_per_stage_encoder[:n_stages]),
                "n_conv_per_stage_decoder": list(self.UNet_blocks_per_stage_decoder[: n_stages - 1]),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n_axes}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, int],
    ) -> dict[str, Any]:
        """One configuration of the plans, without what depends on the others (batch_dice, next_stage).

        Args:
            spacing: Voxel size in mm after transposing; two entries for 2d.
            median_shape: Voxels of the median image at this spacing, same axes.
            data_identifier: Folder of the preprocessed cases.
            approximate_n_voxels_dataset: Voxels of all cases together.
            _cache: Memory estimates by patch size and strides, filled here.

        Raises:
            ImagesTooSmall: If the images have too few voxels for two stages.
            ValueError: If a spacing is not positive or no patch fits into the memory.
        """
        if not all(s > 0 for s in spacing):
            raise ValueError(f"Dataset {self.dataset_name}: spacing {list(spacing)} has entries that are not positive.")
        median_shape = np.asarray(median_shape)[: len(spacing)]
        is_2d = len(spacing) == 2
        reference = (self.UNet_reference_val_2d if is_2d else self.UNet_reference_val_3d) * (
            self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        )
        reference_batch_size = self.UNet_reference_val_corresp_bs_2d if is_2d else self.UNet_reference_val_corresp_bs_3d

        def estimate(topology: Topology) -> int:
            key = f"{topology.patch_size}_{topology.strides}"
            if key not in _cache:
                architecture = self.architecture(topology)
                _cache[key] = self.static_estimate_VRAM_usage(
                    topology.patch_size,
                    len(self.channel_names),
                    len(self.dataset_json["labels"]),
                    architecture["network_class_name"],
                    architecture["arch_kwargs"],
                    architecture["_kw_requires_import"],
                )
            return _cache[key]

        topology, size_estimate = largest_fitting_patch(
            spacing,
            median_shape,
            self.UNet_featuremap_min_edge_length,
            estimate,
            lambda size: self.exceeds_memory(size, reference, reference_batch_size),
        )
        if topology.n_stages < 2:
            smallest = self.UNet_featuremap_min_edge_length
            raise ImagesTooSmall(
                f"Dataset {self.dataset_name}: the median image has {median_shape.tolist()} voxels at spacing "
                f"{[float(s) for s in spacing]}, too few for a U-Net, which needs {2 * smallest} or more along two axes of similar "
                f"spacing, or {SINGLE_AXIS_MIN_MULTIPLE * smallest} along one. "
                "Use images with a larger field of view, or a finer -overwrite_target_spacing."
            )
        batch_size = batch_size_for(
            size_estimate,
            reference,
            reference_batch_size,
            approximate_n_voxels_dataset * self.max_dataset_covered,
            topology.patch_size,
            self.UNet_min_batch_size,
        )

        schemes, use_mask = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        data_function, data_arguments, seg_function, seg_arguments = self.determine_resampling()
        probabilities_function, probabilities_arguments = self.determine_segmentation_softmax_export_fn()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": batch_size,
            "patch_size": topology.patch_size,
            "median_image_size_in_voxels": median_shape,
            "spacing": np.asarray(spacing),
            "normalization_schemes": schemes,
            "use_mask_for_norm": use_mask,
            "resampling_fn_data": function_name(data_function),
            "resampling_fn_seg": function_name(seg_function),
            "resampling_fn_data_kwargs": data_arguments,
            "resampling_fn_seg_kwargs": seg_arguments,
            "resampling_fn_probabilities": function_name(probabilities_function),
            "resampling_fn_probabilities_kwargs": probabilities_arguments,
            "architecture": self.architecture(topology),
        }

    def plan_experiment(self) -> dict[str, Any]:
        """Plan all configurations and write the plans file, beside copies of dataset.json, splits and label tables.

        Returns:
            The plans, also kept as attribute `plans`.
        """
        cache: dict[str, int] = {}
        fingerprint = self.dataset_fingerprint
        transpose_forward, transpose_backward = self.determine_transpose()
        untransposed_spacing = self.determine_fullres_target_spacing()
        fullres_spacing = untransposed_spacing[transpose_forward]
        fullres_median = median_resampled_shape(fingerprint["spacings"], fingerprint["shapes_after_crop"], untransposed_spacing)
        fullres_median = fullres_median[transpose_forward]
        n_training = self.dataset_json["numTraining"]
        # 2d is given the voxels of the whole volumes too, as in nnU-Net.
        n_voxels = float(np.prod(fullres_median, dtype=np.float64) * n_training)

        configurations: dict[str, dict[str, Any]] = {}
        has_3d = fullres_median[0] != 1
        try:
            configurations["2d"] = self.get_plans_for_configuration(
                fullres_spacing[1:], fullres_median[1:], self.generate_data_identifier("2d"), n_voxels, cache
            ) | {"batch_dice": True}
        except ImagesTooSmall as error:  # slices of a thin volume, which 3D networks can halve along its length
            if not has_3d:
                raise
            print(f"WARNING: 2d is left out of the plans. {error}")
        if has_3d:
            fullres = self.get_plans_for_configuration(
                fullres_spacing, fullres_median, self.generate_data_identifier("3d_fullres"), n_voxels, cache
            )
            lowres = self.plan_low_resolution(fullres, fullres_spacing, fullres_median, cache)
            fullres["batch_dice"] = lowres is not None
            if lowres is not None:
                configurations["3d_lowres"] = lowres | {"batch_dice": False, "next_stage": "3d_cascade_fullres"}
            configurations["3d_fullres"] = fullres
            if lowres is not None:
                configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

        self.copy_dataset_files()
        self.plans = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": np.median(fingerprint["spacings"], 0)[transpose_forward],
            "original_median_shape_after_transp": [
                round(n) for n in np.median(fingerprint["shapes_after_crop"], 0)[transpose_forward]
            ],
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": transpose_forward,
            "transpose_backward": transpose_backward,
            "configurations": configurations,
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": fingerprint["foreground_intensity_properties_per_channel"],
        }
        self.save_plans(self.plans)
        return self.plans

    def plan_low_resolution(
        self, fullres: Mapping[str, Any], fullres_spacing: np.ndarray, fullres_median: np.ndarray, cache: dict[str, int]
    ) -> dict[str, Any] | None:
        """Coarsest configuration whose patch covers enough of the image; None where full resolution already does."""
        lowres = None
        spacing = np.array(fullres_spacing, dtype=float)
        fullres_voxels = image_voxels = np.prod(fullres_median, dtype=np.float64)
        patch_voxels = np.prod(fullres["patch_size"], dtype=np.int64)
        while patch_voxels / image_voxels < self.lowres_creation_threshold:
            spacing = coarser_spacing(spacing)
            median_shape = fullres_spacing / spacing * fullres_median
            image_voxels = np.prod(median_shape, dtype=np.float64)
            lowres = self.get_plans_for_configuration(
                spacing,
                [round(n) for n in median_shape],
                self.generate_data_identifier("3d_lowres"),
                float(image_voxels * self.dataset_json["numTraining"]),
                cache,
            )
            patch_voxels = np.prod(lowres["patch_size"], dtype=np.int64)
        return None if fullres_voxels / image_voxels < LOWRES_MIN_VOXEL_RATIO else lowres

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans file; configurations of an existing one that these plans lack are kept."""
        recursive_fix_for_json_export(plans)
        plans_file = os.path.join(self.preprocessed_dataset_folder, self.plans_identifier + ".json")
        if os.path.isfile(plans_file):
            for name, configuration in load_json(plans_file).get("configurations", {}).items():
                plans["configurations"].setdefault(name, configuration)
        save_json(plans, plans_file, sort_keys=False)
        print(f"Plans were saved to {plans_file}")

    def load_plans(self, fname: str) -> None:
        """Set the attribute `plans` from a file."""
        self.plans = load_json(fname)

    def copy_dataset_files(self) -> None:
        """dataset.json, the user's splits and the label tables into the preprocessed folder; training reads only that one."""
        os.makedirs(self.preprocessed_dataset_folder, exist_ok=True)
        copy_user_splits(self.raw_dataset_folder, self.preprocessed_dataset_folder)
        copy_file(
            os.path.join(self.raw_dataset_folder, "dataset.json"), os.path.join(self.preprocessed_dataset_folder, "dataset.json")
        )
        copy_label_tables(self.raw_dataset_folder, self.preprocessed_dataset_folder, self.dataset_json, list(self.dataset))


def load_fingerprint(preprocessed_dataset_folder: str) -> dict[str, Any]:
    """dataset_fingerprint.json of a preprocessed dataset folder."""
    path = os.path.join(preprocessed_dataset_folder, "dataset_fingerprint.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist. Run nnUNetv2_extract_fingerprint before planning.")
    fingerprint = load_json(path)
    missing = [key for key in FINGERPRINT_KEYS if key not in fingerprint]
    if missing:
        raise ValueError(f"{path} lacks {missing}. Run nnUNetv2_extract_fingerprint --clean to compute it again.")
    return fingerprint


def checked_target_spacing(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    """The user's target spacing as three positive floats."""
    if spacing is None:
        return None
    values = tuple(float(s) for s in spacing)
    if len(values) != 3 or not all(s > 0 for s in values):
        raise ValueError(
            f"overwrite_target_spacing is {list(spacing)}, expected three positive numbers: the voxel size in mm along the axes "
            "as the reader returns them (z y x for NIfTI); for 2D images the first is ignored, give 999."
        )
    return values


def function_name(function: Callable | str) -> str:
    """Name under which plans refer to a function."""
    return function if isinstance(function, str) else function.__name__


def copy_user_splits(raw_dataset_folder: str, preprocessed_dataset_folder: str) -> None:
    """splits_final.json from the raw to the preprocessed folder, where one exists.

    Raises:
        ValueError: If the file holds no folds, or the preprocessed folder already has folds that differ; further folds are fine.
    """
    source = os.path.join(raw_dataset_folder, "splits_final.json")
    target = os.path.join(preprocessed_dataset_folder, "splits_final.json")
    if not os.path.isfile(source):
        return
    given = load_json(source)
    check_splits(given, source)
    if not os.path.isfile(target):
        copy_file(source, target)
        return
    present = load_json(target)
    for fold, split in enumerate(given):
        same = fold < len(present) and all(set(split[part]) == set(present[fold][part]) for part in ("train", "val"))
        if not same:
            raise ValueError(
                f"Fold {fold} of {source} is not the one in {target}, which trained models may have used. "
                "Delete the latter to use the given folds, or remove the former to keep the present ones."
            )
