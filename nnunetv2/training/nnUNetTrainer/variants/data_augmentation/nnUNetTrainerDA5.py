"""The strong augmentation DA5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2.training.data_augmentation.strong_augmentation import SCALING, strong_training_transforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerDA5(nnUNetTrainer):
    """More transforms than the default, and stronger ones."""

    initial_patch_scale_range = SCALING

    @staticmethod
    def get_training_transforms(
        patch_size: np.ndarray | tuple[int, ...],
        rotation_for_DA: Any,
        deep_supervision_scales: Sequence | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: Sequence[int] | None = None,
        regions: Sequence | None = None,
        ignore_label: int | None = None,
    ) -> Any:
        return strong_training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm,
            is_cascaded=is_cascaded,
            foreground_labels=foreground_labels,
            regions=regions,
            ignore_label=ignore_label,
        )


class nnUNetTrainerDA5ord0(nnUNetTrainerDA5):
    """Rotated and scaled by the nearest voxel, image and labels."""

    @staticmethod
    def get_training_transforms(
        patch_size: np.ndarray | tuple[int, ...],
        rotation_for_DA: Any,
        deep_supervision_scales: Sequence | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: Sequence[int] | None = None,
        regions: Sequence | None = None,
        ignore_label: int | None = None,
    ) -> Any:
        return strong_training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm,
            is_cascaded=is_cascaded,
            foreground_labels=foreground_labels,
            regions=regions,
            ignore_label=ignore_label,
            mode_image="nearest",
            mode_segmentation="nearest",
        )


class nnUNetTrainerDA5Segord0(nnUNetTrainerDA5):
    """Labels are rotated and scaled by the nearest voxel."""

    @staticmethod
    def get_training_transforms(
        patch_size: np.ndarray | tuple[int, ...],
        rotation_for_DA: Any,
        deep_supervision_scales: Sequence | None,
        mirror_axes: tuple[int, ...],
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: list[bool] | None = None,
        is_cascaded: bool = False,
        foreground_labels: Sequence[int] | None = None,
        regions: Sequence | None = None,
        ignore_label: int | None = None,
    ) -> Any:
        return strong_training_transforms(
            patch_size,
            rotation_for_DA,
            deep_supervision_scales,
            mirror_axes,
            do_dummy_2d_data_aug,
            use_mask_for_norm=use_mask_for_norm,
            is_cascaded=is_cascaded,
            foreground_labels=foreground_labels,
            regions=regions,
            ignore_label=ignore_label,
            mode_segmentation="nearest",
        )


class nnUNetTrainerDA5_10epochs(nnUNetTrainerDA5):
    num_epochs = 10
