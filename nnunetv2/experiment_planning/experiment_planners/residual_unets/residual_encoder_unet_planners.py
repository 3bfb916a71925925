"""Planners of U-Nets with residual encoders: M, L and XL for 8, 24 and 40 GB, XS for laptops."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

# Configurations whose preprocessing equals the default planner's share its folders.
SHARED_DATA_IDENTIFIERS = {"2d": "nnUNetPlans_2d", "3d_fullres": "nnUNetPlans_3d_fullres"}


class ResEncUNetPlanner(ExperimentPlanner):
    """The default planner with a residual encoder, its patches shrunk until the reference batch size fits."""

    UNet_class = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    encoder_blocks_key = "n_blocks_per_stage"
    UNet_reference_val_3d = 680_000_000
    UNet_reference_val_2d = 135_000_000
    UNet_blocks_per_stage_encoder = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
    UNet_blocks_per_stage_decoder = (1,) * 12

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        return SHARED_DATA_IDENTIFIERS.get(configuration_name) or super().generate_data_identifier(configuration_name)

    def exceeds_memory(self, estimate: float, reference: float, reference_batch_size: int) -> bool:
        return estimate > reference


class ResEncPreset(ResEncUNetPlanner):
    """A residual encoder for one memory size. Other sizes scale the batch, but another preset may suit them better."""

    max_dataset_covered = 1

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float,
        preprocessor_name: str,
        plans_name: str,
        overwrite_target_spacing: Sequence[float] | None,
        suppress_transpose: bool,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )
        if gpu_memory_target_in_gb != self.UNet_reference_val_corresp_GB:
            warnings.warn(
                f"{type(self).__name__} is made for {self.UNet_reference_val_corresp_GB} GB, -gpu_memory_target is "
                f"{gpu_memory_target_in_gb}. Results are no longer comparable with the preset; give the plans a name of their own "
                "with -overwrite_plans_name.",
                stacklevel=3,
            )


class nnUNetPlannerResEncM(ResEncPreset):
    """8 GB."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetMPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )


class nnUNetPlannerResEncL(ResEncPreset):
    """24 GB."""

    UNet_reference_val_corresp_GB = 24
    UNet_reference_val_3d = 2_100_000_000
    UNet_reference_val_2d = 380_000_000

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetLPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )


class nnUNetPlannerResEncXL(ResEncPreset):
    """40 GB."""

    UNet_reference_val_corresp_GB = 40
    UNet_reference_val_3d = 3_600_000_000
    UNet_reference_val_2d = 560_000_000

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 40,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetXLPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )


class nnUNetPlannerResEncXS(ResEncPreset):
    """A small network with small patches, for trying things out on a laptop without a GPU; not for results to report.

    A quarter of the usual features and few blocks. A training step (forward, backward, SGD; float32, deep supervision) took
    0.24 s with two patches of 16 x 64 x 64 voxels and 0.15 s with four of 192 x 192 pixels, on two cores of a server.
    """

    UNet_base_num_features = 8
    UNet_max_features_2d = 128
    UNet_max_features_3d = 128
    UNet_blocks_per_stage_encoder = (1,) + (2,) * 12
    max_dataset_covered = 0.05  # large batches of small images would keep two cores loading
    UNet_reference_val_corresp_GB = 1
    # What the patches above need, rounded up.
    UNet_reference_val_3d = 6_000_000
    UNet_reference_val_2d = 4_000_000
    UNet_reference_val_corresp_bs_2d = 4

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 1,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetXSPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        return f"{self.plans_identifier}_{configuration_name}"
