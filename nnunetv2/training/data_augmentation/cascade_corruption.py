"""Corruption of the previous stage's segmentation, as in batchgeneratorsv2 but without memory of earlier samples.

The library's transforms shuffle their list of channels in place, so that a sample depends on those augmented before it
in the same process. Here every sample starts from the same order and is a function of the random state alone.
"""

from __future__ import annotations

from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)


class RandomBinaryOperatorTransform(ApplyRandomBinaryOperatorTransform):
    """Dilation, erosion, closing or opening of one-hot channels."""

    def get_parameters(self, **data_dict) -> dict:
        self.channel_idx = sorted(self.channel_idx)
        return super().get_parameters(**data_dict)


class RemoveRandomComponentTransform(RemoveRandomConnectedComponentFromOneHotEncodingTransform):
    """Deletion of one small connected component of one-hot channels."""

    def get_parameters(self, **data_dict) -> dict:
        self.channel_idx = sorted(self.channel_idx)
        return super().get_parameters(**data_dict)
