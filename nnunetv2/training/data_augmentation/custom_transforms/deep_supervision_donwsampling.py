"""Targets of deep supervision on batches of numpy arrays. (The module's misspelled name is that of nnU-Net v2.)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from batchgenerators.augmentations.utils import resize_segmentation
from batchgenerators.transforms.abstract_transforms import AbstractTransform


class DownsampleSegForDSTransform2(AbstractTransform):
    """Replaces segmentations ``(B, C, *spatial)`` by a list with one resized copy per scale.

    Args:
        ds_scales: Per target one factor, or one factor per axis.
        order: Spline order of the resizing.
        input_key: Where the segmentations are.
        output_key: Where the list goes.
        axes: Axes that are resized; None: all spatial ones.
    """

    def __init__(
        self, ds_scales: Sequence, order: int = 0, input_key: str = "seg", output_key: str = "seg", axes: Sequence[int] | None = None
    ) -> None:
        self.ds_scales = ds_scales
        self.order = order
        self.input_key = input_key
        self.output_key = output_key
        self.axes = axes

    def __call__(self, **data_dict) -> dict:
        segmentation = data_dict[self.input_key]
        data_dict[self.output_key] = [self._resized(segmentation, scale) for scale in self.ds_scales]
        return data_dict

    def _resized(self, segmentation: np.ndarray, scale: float | Sequence[float]) -> np.ndarray:
        axes = list(range(2, segmentation.ndim)) if self.axes is None else list(self.axes)
        factors = list(scale) if isinstance(scale, Sequence) else [scale] * len(axes)
        if len(factors) != len(axes):
            raise ValueError(f"Deep supervision scale {scale} has {len(factors)} factors for {len(axes)} axes.")
        if all(factor == 1 for factor in factors):
            return segmentation
        shape = list(segmentation.shape)
        for axis, factor in zip(axes, factors):
            shape[axis] = round(shape[axis] * factor)
        resized = np.zeros(shape, dtype=segmentation.dtype)
        for sample in range(shape[0]):
            for channel in range(shape[1]):
                resized[sample, channel] = resize_segmentation(segmentation[sample, channel], shape[2:], self.order)
        return resized
