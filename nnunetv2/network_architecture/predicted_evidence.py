"""Where a segmentation network predicts the structures that show a classification task's class.

The heads with evidence pooling and the weights of tiles at prediction ask the same question of the segmentation logits.
Always the network's own prediction: the annotation is not there when the model is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_IGNORE = "ignore"  # reserved label name, has no channel


@dataclass(frozen=True, kw_only=True)
class PredictedEvidence:
    """The channels of the segmentation logits that stand for a task's evidence; none means the whole image."""

    channels: tuple[int, ...] = ()
    has_regions: bool = False  # regions overlap (sigmoid per channel), labels exclude each other (softmax)

    def __bool__(self) -> bool:
        return bool(self.channels)

    def probability(self, logits: Tensor) -> Tensor:
        """Probability of every voxel to belong to the evidence: ``(B, C, *spatial)`` to float32 ``(B, 1, *spatial)``.

        Without evidence channels it is 1 everywhere.
        """
        if not self.channels:
            return torch.ones_like(logits[:, :1], dtype=torch.float32)
        if max(self.channels) >= logits.shape[1]:
            raise ValueError(
                f"Evidence channels {self.channels} do not exist in segmentation logits with {logits.shape[1]} channels. "
                "The labels of dataset.json and the network do not belong together."
            )
        channels = list(self.channels)
        if self.has_regions:
            return torch.sigmoid(logits[:, channels].float()).amax(dim=1, keepdim=True)
        return torch.softmax(logits.float(), dim=1)[:, channels].sum(dim=1, keepdim=True)

    @classmethod
    def from_labels(cls, names: Sequence[str], labels: Mapping[str, Any]) -> PredictedEvidence:
        """Find the channels of named structures.

        Args:
            names: Names out of ``labels``, such as a task's ``evidence``.
            labels: ``dataset.json``'s ``labels``: name to value, or to the values of a region. Channels follow nnU-Net:
                ascending label values without regions, else the foreground entries in the order in which they are declared.

        Raises:
            ValueError: If a name is no label.
        """
        unknown = [name for name in names if name not in labels or name == _IGNORE]
        if unknown:
            raise ValueError(f"{unknown} is not among the labels {[name for name in labels if name != _IGNORE]} of dataset.json.")
        values = {name: _as_values(value) for name, value in labels.items() if name != _IGNORE}
        has_regions = any(len(value) > 1 for value in values.values())
        if has_regions:
            order = [name for name, value in values.items() if set(value) != {0}]
            return cls(channels=tuple(order.index(name) for name in names if name in order), has_regions=True)
        all_labels = sorted({label for value in values.values() for label in value})
        return cls(channels=tuple(sorted({all_labels.index(values[name][0]) for name in names})))


def _as_values(value: int | Sequence[int]) -> tuple[int, ...]:
    """The label values behind an entry of ``labels``."""
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
