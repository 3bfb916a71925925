"""Less mirroring, for structures that a mirrored image would make another structure (left, right)."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDAOrd0 import nnUNetTrainer_DASegOrd0


class nnUNetTrainerNoMirroring(nnUNetTrainer):
    """No mirroring, neither in training nor at prediction."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Sequence[int], None]:
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, None


class nnUNetTrainer_onlyMirror01(nnUNetTrainer):
    """Mirrors all axes of the patch but the last."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Sequence[int], tuple[int, ...]]:
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        last_axis = len(self.configuration_manager.patch_size) - 1
        mirror_axes = tuple(axis for axis in mirror_axes if axis != last_axis)
        self.inference_allowed_mirroring_axes = mirror_axes
        return rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, mirror_axes


class nnUNetTrainer_onlyMirror01_1500ep(nnUNetTrainer_onlyMirror01):
    num_epochs = 1500


class nnUNetTrainer_onlyMirror01_DASegOrd0(nnUNetTrainer_onlyMirror01, nnUNetTrainer_DASegOrd0):
    """Fewer mirrored axes, and labels of the nearest voxel."""


class nnUNetTrainer_onlyMirror01_DA5(nnUNetTrainer_onlyMirror01, nnUNetTrainerDA5):
    """Fewer mirrored axes, and the strong augmentation."""
