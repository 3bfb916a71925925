"""Label maps as one channel per region, on batches of numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from batchgenerators.transforms.abstract_transforms import AbstractTransform


class ConvertSegmentationToRegionsTransform(AbstractTransform):
    """Turns a segmentation channel into channels that are 1 inside a region (a set of labels)."""

    def __init__(self, regions: Sequence[int | Sequence[int]], seg_key: str = "seg", output_key: str = "seg", seg_channel: int = 0) -> None:
        self.regions = regions
        self.seg_key = seg_key
        self.output_key = output_key
        self.seg_channel = seg_channel

    def __call__(self, **data_dict) -> dict:
        segmentation = data_dict.get(self.seg_key)
        if segmentation is not None:
            labels = segmentation[:, self.seg_channel]
            channels = [np.isin(labels, list(region) if isinstance(region, Sequence) else [region]) for region in self.regions]
            data_dict[self.output_key] = np.stack(channels, axis=1).astype(segmentation.dtype)
        return data_dict
