"""Faster resampling of the labels in the augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_DASegOrd0(nnUNetTrainer):
    """Rotated and scaled labels are those of the nearest voxel; in a cascade every label of the previous stage is spoilt."""

    get_training_transforms = staticmethod(partial(training_transforms, mode_segmentation="nearest", cascade_p_per_label=1))


class nnUNetTrainer_DASegOrd0_NoMirroring(nnUNetTrainer_DASegOrd0):
    """The same without mirroring, neither in training nor at prediction."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Sequence[int], None]:
        rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation_for_DA, do_dummy_2d_data_aug, initial_patch_size, None
