"""Cross-entropy that takes nnU-Net's targets: a channel axis of length one and any number type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager


class RobustCrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross-entropy for label maps ``(B, 1, *spatial)`` or ``(B, *spatial)`` of any type."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``(B, C, *spatial)``."""
        if target.ndim == input.ndim:
            if target.shape[1] != 1:
                raise ValueError(f"Expected a label map with one channel, found the shape {tuple(target.shape)}.")
            target = target[:, 0]
        return super().forward(input, target.long())


class TopKLoss(RobustCrossEntropyLoss):
    """Cross-entropy of the voxels with the highest loss.

    Args:
        k: Percentage of all voxels that is averaged; voxels with the ignore label count towards all.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = -100, k: float = 10, label_smoothing: float = 0) -> None:
        super().__init__(weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing)
        self.k = k

    def forward(self, inp: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``(B, C, *spatial)``."""
        voxel_losses = super().forward(inp, target).flatten()
        n_kept = max(1, int(voxel_losses.numel() * self.k / 100))  # never the mean of nothing
        return torch.topk(voxel_losses, n_kept, sorted=False).values.mean()


def label_map_arguments(label_manager: LabelManager) -> dict[str, int]:
    """Arguments of a cross-entropy for the labels of a dataset: which label is ignored, if one is.

    Raises:
        ValueError: If the dataset has regions, which overlap and have no label map.
    """
    if label_manager.has_regions:
        raise ValueError(
            "This trainer's loss needs labels that exclude each other, but dataset.json declares regions. Use one with binary cross-entropy, "
            "such as nnUNetTrainer or nnUNetTrainerDiceLoss."
        )
    return {} if label_manager.ignore_label is None else {"ignore_index": label_manager.ignore_label}
