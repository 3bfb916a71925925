"""The strong augmentation DA5."""

from __future__ import annotations

from functools import partial

from nnunetv2.training.data_augmentation.strong_augmentation import SCALING, strong_training_transforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerDA5(nnUNetTrainer):
    """More transforms than the default, and stronger ones."""

    initial_patch_scale_range = SCALING
    get_training_transforms = staticmethod(strong_training_transforms)


class nnUNetTrainerDA5ord0(nnUNetTrainerDA5):
    """Rotated and scaled by the nearest voxel, image and labels."""

    get_training_transforms = staticmethod(partial(strong_training_transforms, mode_image="nearest", mode_segmentation="nearest"))


class nnUNetTrainerDA5Segord0(nnUNetTrainerDA5):
    """Labels are rotated and scaled by the nearest voxel."""

    get_training_transforms = staticmethod(partial(strong_training_transforms, mode_segmentation="nearest"))


class nnUNetTrainerDA5_10epochs(nnUNetTrainerDA5):
    num_epochs = 10
