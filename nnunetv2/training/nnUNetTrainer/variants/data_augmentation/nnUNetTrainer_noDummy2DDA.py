"""Anisotropic 3D patches rotated and scaled in 3D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.data_augmentation.patch_geometry import INITIAL_PATCH_SCALE_RANGE
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

ROTATION_3D = np.deg2rad(30.0)  # what nnU-Net uses for patches that are not anisotropic


class nnUNetTrainer_noDummy2DDA(nnUNetTrainer):
    """Never augments in 2D within the slices of a 3D patch."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Sequence[int], tuple[int, ...]]:
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if do_dummy_2d_data_aug:
            rotation_for_DA = (-ROTATION_3D, ROTATION_3D)
            initial_patch_size = get_patch_size(
                self.configuration_manager.patch_size, *(rotation_for_DA,) * 3, INITIAL_PATCH_SCALE_RANGE
            )
        return rotation_for_DA, False, initial_patch_size, mirror_axes
