"""Planner that leaves every case on its own voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import nnUNetPlannerResEncL

NO_RESAMPLING = "no_resampling_hack"


class nnUNetPlannerResEncL_noResampling(nnUNetPlannerResEncL):
    """nnUNetPlannerResEncL; the planned spacing decides the network, the data stay as they are."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetResEncUNetLPlans_noResampling",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, preprocessor_name, plans_name, overwrite_target_spacing, suppress_transpose
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Never shared with the default planner: the data differ."""
        return f"{self.plans_identifier}_{configuration_name}"

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[str, dict, str, dict]:
        return NO_RESAMPLING, {}, NO_RESAMPLING, {}

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple[str, dict]:
        return NO_RESAMPLING, {}
