"""The augmentation of a training sample, as a list of transforms.

Transforms are those of batchgeneratorsv2, some with faster arithmetic, and act on one sample, ``{"image": float32 (C, *spatial), "segmentation": int16
(1 or 2, *spatial)}``; the second segmentation channel is the previous stage of a cascade. They draw from the global
random states of numpy and torch; ``training.dataloading`` seeds both for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunetv2.training.data_augmentation.cascade_corruption import (
    RandomBinaryOperatorTransform,
    RemoveRandomComponentTransform,
)
from nnunetv2.training.data_augmentation.fast_transforms import FastSpatialTransform
from nnunetv2.training.data_augmentation.intensity_transforms import (
    FastBrightnessTransform,
    FastContrastTransform,
    FastGammaTransform,
    FastGaussianBlurTransform,
    FastGaussianNoiseTransform,
    FastLowResolutionTransform,
)

SCALING = (0.7, 1.4)  # patches are read large enough for less (patch_geometry)


def training_transforms(
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
    cascade_p_per_label: float = 0.5,
) -> BasicTransform:
    """nnU-Net's default augmentation.

    Args:
        patch_size: Voxels per axis that the network sees, two or three axes.
        rotation_for_DA: Range of the rotation angles in radians.
        deep_supervision_scales: Factor per axis for each target, or None for one target at full resolution.
        mirror_axes: Patch axes that may be mirrored.
        do_dummy_2d_data_aug: Rotate and scale only within the planes across axis 0.
        use_mask_for_norm: Per channel, whether voxels outside the nonzero mask (segmentation -1) are set to 0.
        is_cascaded: The second segmentation channel becomes one-hot image channels.
        foreground_labels: Labels of those channels.
        regions: Labels of each region for region-based training.
        ignore_label: Appended as last region channel.
        mode_image: Interpolation of the image, a mode of ``torch.nn.functional.grid_sample``.
        mode_segmentation: Interpolation of the labels; ``nearest`` is faster and coarser than the default vote.
        cascade_p_per_label: Probability that a label of the previous stage is spoilt, in a sample whose labels are.
    """
    transforms: list[BasicTransform] = []
    if do_dummy_2d_data_aug:
        transforms.append(Convert3DTo2DTransform())
    transforms.append(
        FastSpatialTransform(
            tuple(patch_size[1:] if do_dummy_2d_data_aug else patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=0.2,
            rotation=rotation_for_DA,
            p_scaling=0.2,
            scaling=SCALING,
            p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
            mode_image=mode_image,
            mode_seg=mode_segmentation,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
    )
    if do_dummy_2d_data_aug:
        transforms.append(Convert2DTo3DTransform())
    transforms += intensity_transforms(low_resolution_ignores=(0,) if do_dummy_2d_data_aug else None)
    if mirror_axes is not None and len(mirror_axes) > 0:
        transforms.append(MirrorTransform(allowed_axes=tuple(mirror_axes)))
    transforms += mask_transforms(use_mask_for_norm)
    if is_cascaded:
        transforms += cascade_transforms(foreground_labels, corrupt=True, p_per_label=cascade_p_per_label)
    transforms += target_transforms(deep_supervision_scales, regions, ignore_label)
    return ComposeTransforms(transforms)


def validation_transforms(
    deep_supervision_scales: Sequence | None,
    is_cascaded: bool = False,
    foreground_labels: Sequence[int] | None = None,
    regions: Sequence | None = None,
    ignore_label: int | None = None,
) -> BasicTransform:
    """What is left of :func:`training_transforms` when nothing is augmented: the target and the cascade's input."""
    transforms: list[BasicTransform] = [RemoveLabelTansform(-1, 0)]
    if is_cascaded:
        transforms += cascade_transforms(foreground_labels, corrupt=False)
    transforms += target_transforms(deep_supervision_scales, regions, ignore_label)
    return ComposeTransforms(transforms)


def intensity_transforms(low_resolution_ignores: tuple[int, ...] | None = None) -> list[BasicTransform]:
    """Noise, blur, brightness, contrast, simulated low resolution and gamma, each with its probability."""
    return [
        # The range is called a variance but acts as a standard deviation; nnU-Net is tuned to that.
        RandomTransform(FastGaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        RandomTransform(
            FastGaussianBlurTransform(blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5),
            0.2,
        ),
        RandomTransform(
            FastBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1),
            0.15,
        ),
        RandomTransform(
            FastContrastTransform(
                contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False, p_per_channel=1
            ),
            0.15,
        ),
        RandomTransform(
            FastLowResolutionTransform(
                scale=(0.5, 1),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=low_resolution_ignores,
                allowed_channels=None,
                p_per_channel=0.5,
            ),
            0.25,
        ),
        RandomTransform(gamma_transform(p_invert_image=1), 0.1),
        RandomTransform(gamma_transform(p_invert_image=0), 0.3),
    ]


def mask_transforms(use_mask_for_norm: Sequence[bool] | None) -> list[BasicTransform]:
    """Zeros outside of the nonzero mask (segmentation -1) in the channels that are normalised within it, then the mask's end."""
    masked_channels = [channel for channel, use in enumerate(use_mask_for_norm or ()) if use]
    mask = MaskImageTransform(apply_to_channels=masked_channels, channel_idx_in_seg=0, set_outside_to=0)
    return [*([mask] if masked_channels else []), RemoveLabelTansform(-1, 0)]


def cascade_transforms(foreground_labels: Sequence[int] | None, *, corrupt: bool, p_per_label: float = 0.5) -> list[BasicTransform]:
    """The previous stage's segmentation as one-hot image channels, spoilt at random so that it is not trusted blindly."""
    if foreground_labels is None:
        raise ValueError("A cascade needs foreground_labels: each becomes an image channel of the second stage.")
    transforms: list[BasicTransform] = [
        MoveSegAsOneHotToDataTransform(source_channel_idx=1, all_labels=foreground_labels, remove_channel_from_source=True)
    ]
    if corrupt:
        channels = list(range(-len(foreground_labels), 0))
        transforms.append(
            RandomTransform(RandomBinaryOperatorTransform(channel_idx=list(channels), strel_size=(1, 8), p_per_label=p_per_label), 0.4)
        )
        transforms.append(
            RandomTransform(
                RemoveRandomComponentTransform(
                    channel_idx=list(channels),
                    fill_with_other_class_p=0,
                    dont_do_if_covers_more_than_x_percent=0.15,
                    p_per_label=p_per_label,
                ),
                0.2,
            )
        )
    return transforms


def target_transforms(deep_supervision_scales: Sequence | None, regions: Sequence | None, ignore_label: int | None) -> list[BasicTransform]:
    """From the label map to what the loss sees: regions as channels, and one target per deep-supervision scale."""
    transforms: list[BasicTransform] = []
    if regions is not None:
        channels = list(regions) + ([ignore_label] if ignore_label is not None else [])
        transforms.append(ConvertSegmentationToRegionsTransform(regions=channels, channel_in_seg=0))
    if deep_supervision_scales is not None:
        transforms.append(DownsampleSegForDSTransform(ds_scales=deep_supervision_scales))
    return transforms


def restrict_axis_swaps(transforms: BasicTransform, blocked_axes: Sequence[int]) -> bool:
    """Takes blocked axes from the quarter turns and transpositions of a pipeline, since both can mirror them.

    Changes the transforms in place; steps that have fewer than two axes left are taken out.

    Returns:
        Whether anything is left of a step.
    """
    if isinstance(transforms, (Rot90Transform, TransposeAxesTransform)):
        transforms.allowed_axes = set(transforms.allowed_axes).difference(blocked_axes)
        return len(transforms.allowed_axes) > 1
    if hasattr(transforms, "transform"):
        return restrict_axis_swaps(transforms.transform, blocked_axes)
    for name in ("transforms", "list_of_transforms"):
        if hasattr(transforms, name):
            steps = [step for step in getattr(transforms, name) if restrict_axis_swaps(step, blocked_axes)]
            setattr(transforms, name, steps)
            return len(steps) > 0
    return True


def gamma_transform(p_invert_image: float) -> FastGammaTransform:
    """A gamma curve for each channel; inverted, it acts on the negative of the image."""
    return FastGammaTransform(
        gamma=BGContrast((0.7, 1.5)), p_invert_image=p_invert_image, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
