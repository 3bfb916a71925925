"""The augmentation DA5: more transforms than the default, and stronger ones.

For datasets that are small or differ much from what is to be predicted. It takes longer to compute than the default.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import BrightnessAdditiveTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform
from batchgeneratorsv2.transforms.local.local_gamma import LocalGammaTransform
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.noise.median_filter import MedianFilterTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform

from nnunetv2.training.data_augmentation.default_augmentation import (
    cascade_transforms,
    gamma_transform,
    mask_transforms,
    target_transforms,
)
from nnunetv2.training.data_augmentation.fast_transforms import FastSpatialTransform

SCALING = (0.7, 1.43)  # per axis; patches are read large enough for it
LOCAL_CENTRE = (-0.5, 1.5)  # of local changes, in patch lengths: it may lie outside


def strong_training_transforms(
    patch_size: Sequence[int],
    rotation_for_DA: RandomScalar,
    deep_supervision_scales: Sequence | None,
    mirror_axes: Sequence[int] | None,
    do_dummy_2d_data_aug: bool,
    use_mask_for_norm: Sequence[bool] | None = None,
    is_cascaded: bool = False,
    foreground_labels: Sequence[int] | None = None,
    regions: Sequence | None = None,
    ignore_label: int | None = None,
    *,
    mode_image: str = "bilinear",
    mode_segmentation: str = "bilinear",
) -> BasicTransform:
    """The augmentation DA5. Arguments as for :func:`.default_augmentation.training_transforms`."""
    transforms: list[BasicTransform] = []
    if do_dummy_2d_data_aug:
        transforms.append(Convert3DTo2DTransform())
    transforms.append(
        FastSpatialTransform(
            tuple(patch_size[1:] if do_dummy_2d_data_aug else patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=0.4,
            rotation=rotation_for_DA,
            p_rot_per_axis=0.5,
            p_scaling=0.2,
            scaling=SCALING,
            p_synchronize_scaling_across_axes=0,
            bg_style_seg_sampling=False,
            mode_image=mode_image,
            mode_seg=mode_segmentation,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
    )
    if do_dummy_2d_data_aug:
        transforms.append(Convert2DTo3DTransform())
    transforms += axis_swaps(patch_size)
    transforms += global_intensity_transforms(low_resolution_ignores=(0,) if do_dummy_2d_data_aug else None)
    if mirror_axes is not None and len(mirror_axes) > 0:
        transforms.append(MirrorTransform(allowed_axes=tuple(mirror_axes)))
    transforms += local_intensity_transforms(patch_size)
    transforms += mask_transforms(use_mask_for_norm)
    if is_cascaded:
        transforms += cascade_transforms(foreground_labels, corrupt=True, p_per_label=1)
    transforms += target_transforms(deep_supervision_scales, regions, ignore_label)
    return ComposeTransforms(transforms)


def axis_swaps(patch_size: Sequence[int]) -> list[BasicTransform]:
    """Quarter turns and transpositions among the axes along which the patch is equally long; none if all differ."""
    lengths = Counter(int(n) for n in patch_size)
    axes = {axis for axis, n in enumerate(patch_size) if lengths[int(n)] > 1}
    if not axes:
        return []
    turns = Rot90Transform(num_axis_combinations=1, num_rot_per_combination=(0, 1, 2, 3), allowed_axes=axes)
    return [RandomTransform(turns, 0.5), RandomTransform(TransposeAxesTransform(allowed_axes=set(axes)), 0.5)]


def global_intensity_transforms(low_resolution_ignores: tuple[int, ...] | None = None) -> list[BasicTransform]:
    """Filters, noise, brightness, contrast, low resolution and gamma of the whole patch."""
    median = MedianFilterTransform(filter_size=(2, 8), p_same_for_each_channel=0, p_per_channel=0.5)
    blur = GaussianBlurTransform(blur_sigma=(0.3, 1.5), synchronize_channels=False, synchronize_axes=True, p_per_channel=0.5)
    contrasts = [
        ContrastTransform(contrast_range=BGContrast((0.5, 2)), preserve_range=preserve_range, synchronize_channels=False, p_per_channel=0.5)
        for preserve_range in (True, False)
    ]
    return [
        OneOfTransform([RandomTransform(median, 0.2), RandomTransform(blur, 0.2)]),
        RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        RandomTransform(BrightnessAdditiveTransform(mu=0, sigma=0.5, synchronize_channels=False, p_per_channel=0.5), 0.1),
        OneOfTransform([RandomTransform(contrast, 0.2) for contrast in contrasts]),
        RandomTransform(
            SimulateLowResolutionTransform(
                scale=(0.25, 1),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=low_resolution_ignores,
                allowed_channels=None,
                p_per_channel=0.5,
            ),
            0.15,
        ),
        # Twice the inverted one, though once was surely meant otherwise; trainings of nnU-Net have it like this.
        RandomTransform(gamma_transform(p_invert_image=1), 0.1),
        RandomTransform(gamma_transform(p_invert_image=1), 0.1),
    ]


def local_intensity_transforms(patch_size: Sequence[int]) -> list[BasicTransform]:
    """Rectangles without content, changes of brightness and gamma in a part of the patch, and sharpening."""
    sides = tuple((max(1, n // 10), max(2, n // 3)) for n in map(int, patch_size))
    return [
        RandomTransform(
            BlankRectangleTransform(
                rectangle_size=sides, rectangle_value=torch.mean, num_rectangles=(1, 5), force_square=False, p_per_channel=0.5
            ),
            0.4,
        ),
        RandomTransform(
            BrightnessGradientAdditiveTransform(
                scale=local_width,
                loc=LOCAL_CENTRE,
                max_strength=gradient_strength,
                same_for_all_channels=False,
                mean_centered=False,
                clip_intensities=False,
                p_per_channel=0.5,
            ),
            0.3,
        ),
        RandomTransform(
            LocalGammaTransform(scale=local_width, loc=LOCAL_CENTRE, gamma=local_gamma, same_for_all_channels=False, p_per_channel=0.5),
            0.3,
        ),
        RandomTransform(SharpeningTransform(strength=(0.1, 1), p_same_for_each_channel=0, p_per_channel=0.5, p_clamp_intensities=0), 0.2),
    ]


def local_width(shape: Sequence[int], axis: int) -> float:
    """Width of a local change in voxels: from a sixth of the patch to all of it, small ones as often as large ones."""
    length = int(shape[axis])
    return math.exp(np.random.uniform(math.log(max(1, length // 6)), math.log(length)))


def gradient_strength(*_: object) -> float:
    """Brightness added at the centre of a local change, in standard deviations of a normalised image: -5 to -1 or 1 to 5."""
    return np.random.choice((-1, 1)) * np.random.uniform(1, 5)


def local_gamma(*_: object) -> float:
    """Exponent of a local gamma curve: 0.01 to 0.8, or 1.5 to 4."""
    return np.random.uniform(0.01, 0.8) if np.random.uniform() < 0.5 else np.random.uniform(1.5, 4)
