"""The augmentation of images on the training's device, where the processor cannot keep up with it.

Loading processes read patches, draw every random number as always, and augment the labels, which takes little and has to be exact. What is to be
done with the image they only write down. The device does it, from the same numbers: images are those of the usual way up to rounding, everything
else is the same. Nothing here makes the processor wait for the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch.nn.functional import grid_sample

from nnunetv2.training.data_augmentation.affine_warp import AffineGrid
from nnunetv2.training.data_augmentation.cascade_corruption import RandomBinaryOperatorTransform, RemoveRandomComponentTransform
from nnunetv2.training.data_augmentation.fast_transforms import FastSpatialTransform, first_spatial_transform
from nnunetv2.training.data_augmentation.intensity_transforms import (
    FastBrightnessTransform,
    FastContrastTransform,
    FastGammaTransform,
    FastGaussianBlurTransform,
    FastGaussianNoiseTransform,
    FastLowResolutionTransform,
)

VARIABLE = "nnUNet_augmentation_device"
PLACES = ("cpu", "cuda", "auto")
GREY_VALUES = (
    FastGaussianNoiseTransform,
    FastGaussianBlurTransform,
    FastBrightnessTransform,
    FastContrastTransform,
    FastLowResolutionTransform,
    FastGammaTransform,
)
LABELS = (
    RemoveLabelTansform,
    MoveSegAsOneHotToDataTransform,
    RandomBinaryOperatorTransform,
    RemoveRandomComponentTransform,
    ConvertSegmentationToRegionsTransform,
    DownsampleSegForDSTransform,
)


@dataclass
class ImageWork:
    """What is left to do with the image of a sample. A class of its own: its numbers stay with the processor when the batch moves."""

    steps: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # position in the pipeline, parameters


class ImageLater(ComposeTransforms):
    """A pipeline that leaves the image as it was read, with a note of what is to be done with it.

    Args:
        transforms: Steps of a pipeline for which :func:`reason_to_stay` is None; further ones may look at labels only.
    """

    def apply(self, data_dict: dict, **params) -> dict:
        """From ``image`` and ``segmentation`` to what the pipeline makes of the latter, and

        - ``image``: the part of it that is needed
        - ``image_work``: :class:`ImageWork`
        - ``large``: by position of a step, tensors that it needs on the device
        - ``more_channels``: channels that follow those of the image (previous stage of a cascade), or None
        """
        image, labels = data_dict["image"], data_dict["segmentation"]
        work, large = ImageWork(), {}
        spatial, in_planes = first_spatial_transform(self)
        image, labels = self._space(spatial, in_planes, image, labels, work)
        shape = (image.shape[0], *labels.shape[1:])
        sample = {"image": torch.empty((0, *labels.shape[1:])), "segmentation": labels}
        for position, step in enumerate(self.transforms):
            if isinstance(step, (Convert3DTo2DTransform, FastSpatialTransform, Convert2DTo3DTransform)):
                continue
            drawn_from = {"image": torch.empty(()).expand(shape), "segmentation": sample["segmentation"]}
            transform = step
            if isinstance(step, RandomTransform) and isinstance(step.transform, GREY_VALUES):
                if not step.get_parameters(**drawn_from)["apply_transform"]:
                    continue
                transform = step.transform
            if isinstance(transform, GREY_VALUES):
                parameters = transform.get_parameters(**drawn_from)
                if parameters.get("noise") is not None:
                    large[position] = parameters.pop("noise")
                work.steps.append((position, parameters))
            elif isinstance(transform, MirrorTransform):
                parameters = transform.get_parameters(**drawn_from)
                work.steps.append((position, parameters))
                sample["segmentation"] = transform._apply_to_segmentation(sample["segmentation"], **parameters)
            elif isinstance(transform, MaskImageTransform):
                large[position] = sample["segmentation"][transform.channel_idx_in_seg] < 0
                work.steps.append((position, {}))
            else:
                sample = transform(**sample)
        more_channels = sample["image"] if len(sample["image"]) else None
        return {**sample, "image": image, "image_work": work, "large": large, "more_channels": more_channels}

    def _space(
        self, spatial: FastSpatialTransform, in_planes: bool, image: torch.Tensor, labels: torch.Tensor, work: ImageWork
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels rotated and scaled, and the part of the image from which the device can do the same."""
        planes = image.shape[1:2] if in_planes else ()
        image, labels = (tensor.flatten(0, 1) if in_planes else tensor for tensor in (image, labels))
        params = spatial.get_parameters(image=image, segmentation=labels)
        part = params.get("part")
        warped = spatial.labels_alone(labels, params)
        if params["affine"] is None:
            if part is None:
                image = spatial._apply_to_image(image, **params)
        else:
            grid = spatial.grid_of(params, image.shape[1:])
            if part is None:
                part = grid.sampled_box()
                image = image[(slice(None), *part)]
            work.steps.append((int(in_planes), {"affine": grid.affine, "shape": grid.shape, "part": part, "in_planes": in_planes}))
        return (tensor.unflatten(0, (-1, *planes)).contiguous() if in_planes else tensor.contiguous() for tensor in (image, warped))

    def finish(self, sample: dict) -> torch.Tensor:
        """The image that :meth:`apply` left, augmented on the device where it is now, ``(C, *patch)``."""
        image = sample["image"]
        for position, parameters in sample["image_work"].steps:
            step = self.transforms[position]
            transform = step.transform if isinstance(step, RandomTransform) else step
            large = sample["large"].get(position)
            if isinstance(transform, FastSpatialTransform):
                image = warp_image(image, transform.patch_size, **parameters)
            elif isinstance(transform, MaskImageTransform):
                for channel in transform.apply_to_channels:
                    image[channel].masked_fill_(large, transform.set_outside_to)
            elif isinstance(transform, FastGaussianNoiseTransform):
                image = transform._apply_to_image(image, noise=large, **parameters)
            else:
                image = transform._apply_to_image(image, **parameters)
        return image if sample["more_channels"] is None else torch.cat((image, sample["more_channels"]))


class StreamAround:
    """An iterator around a stream of batches; what it does not do itself is the stream's.

    Args:
        stream: What the batches come from: ``current``, which subclasses may change.
    """

    def __init__(self, stream: Any) -> None:
        self.current = stream

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "current":  # while it is copied it has no stream yet
            raise AttributeError(name)
        return getattr(self.current, name)

    def __enter__(self) -> StreamAround:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> StreamAround:
        return self


class DeviceAugmentedStream(StreamAround):
    """A stream of batches whose images are finished on a device; all else is the stream's.

    Args:
        stream: Endless iterator over batches of a loader that leaves images for later.
        transforms: The pipeline of that loader.
        device: Where to finish; the batches are there.
    """

    def __init__(self, stream: Any, transforms: ImageLater, device: torch.device) -> None:
        super().__init__(stream)
        self._transforms = transforms
        self._device = device

    def __next__(self) -> Any:
        batch = next(self.current).to(self._device, non_blocking=True)
        with torch.no_grad():
            batch["data"] = torch.stack([self._transforms.finish(sample) for sample in batch.pop("image_later")])
        return batch


def warp_image(
    image: torch.Tensor, patch_size: Sequence[int], affine: Any, shape: Sequence[int], part: Sequence[slice], in_planes: bool
) -> torch.Tensor:
    """Image at the points of an :class:`AffineGrid`, on any device.

    Args:
        image: The part of the volume, ``(C, *part)``; with ``in_planes`` ``(C, planes, *part)``.
        patch_size: Of the grid.
        affine: Of the grid.
        shape: Of the grid.
        part: Which part of the volume this is.
        in_planes: Sample every plane alike.
    """
    values = image.flatten(0, 1) if in_planes else image
    points = []
    for terms, along, n in zip(AffineGrid(affine, patch_size, shape).terms(), part, shape):
        size = along.stop - along.start
        # From voxels off the volume's middle to -1 ... 1 along the part.
        tables = [torch.from_numpy(term[:length] * (2 / size)) for term, length in zip(terms, patch_size)]
        tables[0] += (n - 2 * along.start) / size - 1
        tables = [table.to(image.device, non_blocking=True) for table in tables]
        views = [table.reshape(-1, *[1] * (len(tables) - 1 - other)) for other, table in enumerate(tables)]
        points.append(sum(views[1:], views[0]).expand(*patch_size))
    grid = torch.stack(points[::-1], -1)
    sampled = grid_sample(values[None], grid[None], mode="bilinear", align_corners=False)[0]
    return sampled.unflatten(0, image.shape[:2]) if in_planes else sampled


def reason_to_stay(transforms: BasicTransform | None) -> str | None:
    """Why a pipeline cannot leave its images to a device; None if it can."""
    spatial, in_planes = first_spatial_transform(transforms)
    if spatial is None or not spatial.is_affine():
        return "it does not begin with nnU-Net's own rotation and scaling"
    one_hot_seen = False
    for step in transforms.transforms[1 + 2 * in_planes :]:
        inner = step.transform if type(step) is RandomTransform else step
        one_hot_seen |= isinstance(inner, MoveSegAsOneHotToDataTransform)
        is_image_step = type(inner) in (*GREY_VALUES, MirrorTransform, MaskImageTransform)
        is_random_mirror = step is not inner and not isinstance(inner, (*GREY_VALUES, *LABELS))
        if type(inner) not in LABELS and (not is_image_step or one_hot_seen or is_random_mirror):
            return f"{type(inner).__name__} is done by the processor"
    return None


def wanted_place(device: torch.device) -> str:
    """Where images are augmented, by the environment variable ``nnUNet_augmentation_device``.

    Args:
        device: Of the training.

    Returns:
        ``cpu``: by the loading processes; ``cuda``: by the training's GPU; ``auto``: there where the training would wait for data.

    Raises:
        ValueError: If the variable holds something else, or asks for a GPU that is not used.
    """
    wanted = os.environ.get(VARIABLE, "auto").strip().lower()
    if wanted not in PLACES:
        raise ValueError(f"{VARIABLE} is {wanted!r}; expected cpu, cuda or auto.")
    if device.type == "cuda":
        return wanted
    if wanted == "cuda":
        raise ValueError(f"{VARIABLE} is cuda, but this training runs on {device.type}. Set it to auto or cpu, or train with -device cuda.")
    return "cpu"
