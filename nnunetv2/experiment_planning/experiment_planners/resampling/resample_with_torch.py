"""Planners that resample with torch: faster, with small numerical differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import nnUNetPlannerResEncL

TORCH_RESAMPLING = "resample_torch_fornnunet"


class TorchResampling:
    """Mixin: all axes are interpolated together."""

    def torch_arguments(self, is_seg: bool) -> dict[str, Any]:
        return {"is_seg": is_seg, "force_separate_z": False, "memefficient_seg_resampling": False}

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[str, dict, str, dict]:
        return TORCH_RESAMPLING, self.torch_arguments(False), TORCH_RESAMPLING, self.torch_arguments(True)

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[str, dict]:
        return TORCH_RESAMPLING, self.torch_arguments(False)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Never shared with the default planner: the data differ."""
        return f"{self.plans_identifier}_{configuration_name}"


class nnUNetPlannerResEncL_torchres(TorchResampling, nnUNetPlannerResEncL):
    """nnUNetPlannerResEncL, resampled with torch."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetLPlans_torchres",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )


class nnUNetPlannerResEncL_torchres_sepz(TorchResampling, nnUNetPlannerResEncL):
    """nnUNetPlannerResEncL, resampled with torch, thick slices one by one."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetLPlans_torchres_sepz",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )

    def torch_arguments(self, is_seg: bool) -> dict[str, Any]:
        return super().torch_arguments(is_seg) | {"force_separate_z": None, "separate_z_anisotropy_threshold": 3}


class nnUNetPlanner_torchres(TorchResampling, ExperimentPlanner):
    """ExperimentPlanner, resampled with torch."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetPlans_torchres",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )
