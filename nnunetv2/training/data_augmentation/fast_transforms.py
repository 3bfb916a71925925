"""The transform that takes most of the augmentation's time, with the library's results in less of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform

from nnunetv2.training.data_augmentation.affine_warp import AffineGrid, warp


class FastSpatialTransform(SpatialTransform):
    """Rotation and scaling that look at less, with the library's results bit by bit.

    Image and labels are sampled together (:mod:`affine_warp`), where the settings are those of nnU-Net; other settings are left to the library.

    Reading: a loader may ask before it reads a patch which part of it will be looked at (:meth:`draw_ahead`). Mostly
    nothing is rotated or scaled, and then that is the middle.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._drawn: dict | None = None

    def draw_ahead(self, shape: Sequence[int]) -> tuple[slice, ...] | None:
        """Draws the parameters of the next sample, which must be the next one that this transform gets.

        Args:
            shape: Spatial shape of the sample.

        Returns:
            The part of the sample that will be looked at: the next sample must be just this part. None, and nothing drawn,
            if that cannot be told.
        """
        self._drawn = None
        is_known = self.is_affine() and not (callable(self.rotation) or callable(self.scaling))
        if not is_known or any(size > n for size, n in zip(self.patch_size, shape)):
            return None
        drawn = self._draw(torch.empty((1, *shape), device="meta"))
        if drawn["affine"] is None:
            starts = [n // 2 - size // 2 for n, size in zip(shape, self.patch_size)]
            part = tuple(slice(start, start + size) for start, size in zip(starts, self.patch_size))
        else:
            part = AffineGrid(drawn["affine"], self.patch_size, shape).sampled_box()
        self._drawn = {**drawn, "part": part, "shape": tuple(shape)}
        return part

    def forget_drawn(self) -> None:
        """Takes :meth:`draw_ahead` back, in case that its sample never came."""
        self._drawn = None

    def get_parameters(self, **data_dict) -> dict:
        parameters, self._drawn = self._drawn, None
        if parameters is not None:
            return parameters
        if self.is_affine() and _is_warpable(data_dict):
            return self._draw(data_dict["image"])
        return super().get_parameters(**data_dict)

    def apply(self, data_dict: dict, **params) -> dict:
        part = params.get("part")
        if params["affine"] is None and part is not None:
            return data_dict
        if params["affine"] is None or params["grid"] is not None:
            data_dict = super().apply(data_dict, **params)
            # A view into what was read would be summed up in another order, and give other last digits, than the part alone.
            data_dict["image"] = data_dict["image"].contiguous()
            return data_dict
        image, labels = data_dict["image"], data_dict.get("segmentation")
        grid = self.grid_of(params, image.shape[1:])
        data_dict["image"], warped = warp(image, labels, grid, self._label_outside(grid), part)
        if labels is not None:
            data_dict["segmentation"] = warped
        return data_dict

    def labels_alone(self, labels: torch.Tensor, params: dict) -> torch.Tensor:
        """What :meth:`apply` makes of the labels ``(K, *spatial)``, without the image."""
        if params["affine"] is None:
            return labels if params.get("part") is not None else super()._apply_to_segmentation(labels, **params)
        grid = self.grid_of(params, labels.shape[1:])
        return warp(None, labels, grid, self._label_outside(grid), params.get("part"))[1]

    def grid_of(self, params: dict, shape: Sequence[int]) -> AffineGrid:
        """Sample points of drawn parameters; ``shape`` is that of the sample, should it be no part of a larger one."""
        return AffineGrid(params["affine"], self.patch_size, params.get("shape", shape))

    def is_affine(self) -> bool:
        """Whether the settings are those that :func:`affine_warp.warp` knows."""
        is_vote = self.mode_seg == "bilinear" and self.seg_tiebreak == "nearest" and self.border_mode_seg in ("zeros", "constant")
        is_linear = self.mode_image == "bilinear" and self.padding_mode_image == "zeros" and not self.align_corners
        return is_vote and is_linear and not (self.random_crop or self.p_elastic_deform or self.bg_style_seg_sampling)

    def _label_outside(self, grid: AffineGrid) -> int | None:
        """The label beyond the border; None if no sample point reaches there."""
        pad_label = int(self.padding_value_seg) if self.border_mode_seg == "constant" else 0
        return pad_label if self._may_reach_outside(grid.corners(), grid.shape) else None

    def _draw(self, image: torch.Tensor) -> dict:
        """Parameters as the library draws them, without its grid of all sample points."""
        patch_size, self.patch_size = self.patch_size, (1,) * len(self.patch_size)  # nothing that is drawn depends on it
        try:
            return {**super().get_parameters(image=image), "grid": None}
        finally:
            self.patch_size = patch_size


def _is_warpable(data_dict: dict) -> bool:
    """Whether a sample is what :func:`affine_warp.warp` knows: a float32 image, perhaps labels, on the CPU."""
    image, labels = data_dict.get("image"), data_dict.get("segmentation")
    tensors = [image, *([] if labels is None else [labels])]
    return (
        set(data_dict) <= {"image", "segmentation"}
        and all(isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" for tensor in tensors)
        and image.dtype == torch.float32
        and (labels is None or not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool))
    )


def first_spatial_transform(transforms: BasicTransform | None) -> tuple[FastSpatialTransform | None, bool]:
    """The spatial transform with which a pipeline begins, if it does, and whether it acts on planes (dummy 2D)."""
    steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else []
    in_planes = len(steps) > 0 and isinstance(steps[0], Convert3DTo2DTransform)
    first = steps[in_planes] if len(steps) > in_planes else None
    return (first if isinstance(first, FastSpatialTransform) else None), in_planes
