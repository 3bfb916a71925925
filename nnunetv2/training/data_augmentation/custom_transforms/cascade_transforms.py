"""A cascade's previous segmentation as image channels, and its corruption, on batches ``(B, C, *spatial)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from batchgenerators.transforms.abstract_transforms import AbstractTransform
from scipy.ndimage import binary_closing, binary_dilation, binary_erosion, binary_opening, label
from skimage.morphology import ball, disk


class MoveSegAsOneHotToData(AbstractTransform):
    """Appends a one-hot channel for each label of a segmentation channel to the data."""

    def __init__(
        self,
        index_in_origin: int,
        all_labels: Sequence[int],
        key_origin: str = "seg",
        key_target: str = "data",
        remove_from_origin: bool = True,
    ) -> None:
        self.index_in_origin = index_in_origin
        self.all_labels = all_labels
        self.key_origin = key_origin
        self.key_target = key_target
        self.remove_from_origin = remove_from_origin

    def __call__(self, **data_dict) -> dict:
        origin, target = data_dict[self.key_origin], data_dict[self.key_target]
        labels = origin[:, self.index_in_origin]
        one_hot = np.stack([labels == value for value in self.all_labels], axis=1).astype(target.dtype)
        data_dict[self.key_target] = np.concatenate((target, one_hot), axis=1)
        if self.remove_from_origin:
            data_dict[self.key_origin] = np.delete(origin, self.index_in_origin, axis=1)
        return data_dict


class RemoveRandomConnectedComponentFromOneHotEncodingTransform(AbstractTransform):
    """Deletes a random small component of one-hot channels, or gives it to another channel."""

    def __init__(
        self,
        channel_idx: int | Sequence[int],
        key: str = "data",
        p_per_sample: float = 0.2,
        fill_with_other_class_p: float = 0.25,
        dont_do_if_covers_more_than_x_percent: float = 0.25,
        p_per_label: float = 1,
    ) -> None:
        self.channel_idx = _as_list(channel_idx)
        self.key = key
        self.p_per_sample = p_per_sample
        self.fill_with_other_class_p = fill_with_other_class_p
        self.dont_do_if_covers_more_than_x_percent = dont_do_if_covers_more_than_x_percent
        self.p_per_label = p_per_label

    def __call__(self, **data_dict) -> dict:
        for sample in data_dict[self.key]:
            if np.random.uniform() >= self.p_per_sample:
                continue
            for channel in np.random.permutation(self.channel_idx):
                if np.random.uniform() < self.p_per_label:
                    self._remove_component(sample, channel)
        return data_dict

    def _remove_component(self, sample: np.ndarray, channel: int) -> None:
        components, _ = label(sample[channel] > 0, structure=np.ones((3,) * (sample.ndim - 1)))
        sizes = np.bincount(components.ravel())
        small = np.flatnonzero((sizes > 0) & (sizes < components.size * self.dont_do_if_covers_more_than_x_percent))
        small = small[small > 0]
        if small.size == 0:
            return
        chosen = components == np.random.choice(small)
        sample[channel][chosen] = 0
        others = [other for other in self.channel_idx if other != channel]
        if others and np.random.uniform() < self.fill_with_other_class_p:
            sample[np.random.choice(others)][chosen] = 1


class ApplyRandomBinaryOperatorTransform(AbstractTransform):
    """Grows, shrinks, closes or opens one-hot channels; a voxel that is gained is lost by the other channels."""

    def __init__(
        self,
        channel_idx: int | Sequence[int],
        p_per_sample: float = 0.3,
        any_of_these: tuple[Callable, ...] = (binary_dilation, binary_erosion, binary_closing, binary_opening),
        key: str = "data",
        strel_size: tuple[int, int] = (1, 10),
        p_per_label: float = 1,
    ) -> None:
        self.channel_idx = _as_list(channel_idx)
        self.p_per_sample = p_per_sample
        self.any_of_these = any_of_these
        self.key = key
        self.strel_size = strel_size
        self.p_per_label = p_per_label

    def __call__(self, **data_dict) -> dict:
        for sample in data_dict[self.key]:
            if np.random.uniform() >= self.p_per_sample:
                continue
            for channel in np.random.permutation(self.channel_idx):
                if np.random.uniform() < self.p_per_label:
                    self._apply_operator(sample, channel)
        return data_dict

    def _apply_operator(self, sample: np.ndarray, channel: int) -> None:
        operator = self.any_of_these[np.random.randint(len(self.any_of_these))]
        radius = np.random.uniform(*self.strel_size)
        element = disk(radius) if sample.ndim == 3 else ball(radius)
        before = sample[channel] > 0
        after = operator(before, element)
        for other in self.channel_idx:
            if other != channel:
                sample[other][after & ~before] = 0
        sample[channel] = after.astype(sample.dtype)


def _as_list(channels: int | Sequence[int]) -> list[int]:
    return list(channels) if isinstance(channels, Sequence) else [channels]
