"""Cross-entropy that takes nnU-Net's targets: a channel axis of length one and any number type."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
