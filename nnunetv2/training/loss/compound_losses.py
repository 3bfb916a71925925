"""Sums of a Dice loss and a voxel loss.

All are called as ``loss(net_output, target)`` with logits ``(B, C, *spatial)``. The attributes ``dc`` and ``ce`` hold the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss


class DC_and_CE_loss(nn.Module):
    """Dice of the softmax plus cross-entropy, for labels that exclude each other.

    Args:
        soft_dice_kwargs: For ``dice_class``, without ``apply_nonlin``.
        ce_kwargs: For the cross-entropy, without ``ignore_index``.
        weight_ce: Factor of the cross-entropy; 0 skips it.
        weight_dice: Factor of the Dice; 0 skips it.
        ignore_label: Voxels with this label count nowhere.
        dice_class: Class of the Dice loss.
    """

    voxel_loss_class: type[RobustCrossEntropyLoss] = RobustCrossEntropyLoss

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type[nn.Module] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        ignore_kwargs = {} if ignore_label is None else {"ignore_index": ignore_label}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        self.ce = self.voxel_loss_class(**{**ce_kwargs, **ignore_kwargs})
        self.dc = dice_class(apply_nonlin=_softmax, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Loss against a label map ``(B, 1, *spatial)``."""
        mask, dice_target = None, target
        if self.ignore_label is not None:
            if target.ndim != net_output.ndim or target.shape[1] != 1:
                raise ValueError(f"The ignore label needs a label map (B, 1, *spatial), found the shape {tuple(target.shape)}.")
            mask = target != self.ignore_label
            # The ignore label is no channel of the output; masked voxels may hold any label.
            dice_target = torch.where(mask, target, 0)
        terms = []
        if self.weight_dice != 0:
            terms.append(self.weight_dice * self.dc(net_output, dice_target, loss_mask=mask))
        # The mean over no annotated voxel is NaN.
        if self.weight_ce != 0 and (mask is None or mask.any()):
            terms.append(self.weight_ce * self.ce(net_output, target))
        return sum(terms) if terms else net_output.sum() * 0


class DC_and_topk_loss(DC_and_CE_loss):
    """Dice of the softmax plus the cross-entropy of the hardest voxels. Arguments as for :class:`DC_and_CE_loss`."""

    voxel_loss_class = TopKLoss

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(soft_dice_kwargs, ce_kwargs, weight_ce, weight_dice, ignore_label, dice_class=SoftDiceLoss)


class DC_and_BCE_loss(nn.Module):
    """Dice of the sigmoid plus binary cross-entropy, for regions that overlap.

    Args:
        bce_kwargs: For the binary cross-entropy.
        soft_dice_kwargs: For ``dice_class``, without ``apply_nonlin``.
        weight_ce: Factor of the binary cross-entropy; 0 skips it.
        weight_dice: Factor of the Dice; 0 skips it.
        use_ignore_label: The target's last channel says which voxels count nowhere.
        dice_class: Class of the Dice loss.
    """

    def __init__(
        self,
        bce_kwargs: Mapping[str, Any],
        soft_dice_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type[nn.Module] = MemoryEfficientSoftDiceLoss,
    ) -> None:
        super().__init__()
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.use_ignore_label = use_ignore_label
        self.ce = nn.BCEWithLogitsLoss(**{**bce_kwargs, **({"reduction": "none"} if use_ignore_label else {})})
        self.dc = dice_class(apply_nonlin=torch.sigmoid, **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Loss against one channel per region, ``(B, C, *spatial)``, and one more for the ignore label if it is used."""
        regions, mask = target, None
        if self.use_ignore_label:
            regions, mask = target[:, :-1], ~target[:, -1:].bool()
        terms = []
        if self.weight_ce != 0:
            voxel_loss = self.ce(net_output, regions.float())
            if mask is not None:
                # The mask has one channel, so this is the mean over voxels and the sum over regions: kept for equal results.
                voxel_loss = (voxel_loss * mask).sum() / mask.sum().clamp(min=1e-8)
            terms.append(self.weight_ce * voxel_loss)
        if self.weight_dice != 0:
            terms.append(self.weight_dice * self.dc(net_output, regions, loss_mask=mask))
        return sum(terms) if terms else net_output.sum() * 0


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities over the channel axis."""
    return torch.softmax(logits, dim=1)
