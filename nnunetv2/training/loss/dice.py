"""Soft Dice losses. Both are the negative mean of Dice coefficients, so the best possible value is -1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnunetv2.utilities.compilation import exclude_named_methods

_SMALLEST_DENOMINATOR = 1e-8


class _SumsOverProcesses(nn.Module):
    """Sums over all processes of a distributed training, with gradient."""

    not_compiled = ("_gathered_sum",)  # the compiler would have to trace the communication and its gradient

    def __init__(self) -> None:
        super().__init__()
        if _is_distributed():  # whoever compiles this loss then
            exclude_named_methods(self)

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        """The sum; the value itself with one process."""
        return self._gathered_sum(value) if _is_distributed() else value

    def _gathered_sum(self, value: Tensor) -> Tensor:
        from nnunetv2.utilities.ddp_allgather import AllGatherGrad

        return AllGatherGrad.apply(value).sum(0)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class SoftDiceLoss(_SumsOverProcesses):
    """Dice from soft true positives, false positives and false negatives.

    Args:
        apply_nonlin: Makes probabilities of the network's output; ``None`` if they already are.
        batch_dice: One coefficient per class over the whole batch, instead of one per sample and class.
        do_bg: Count channel 0.
        smooth: Added to numerator and denominator.
        ddp: With ``batch_dice``, add up over all processes first; without a process group it makes no difference.
        clip_tp: Smallest value of the true positives.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp
        self.clip_tp = clip_tp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Loss of outputs ``(B, C, *spatial)`` against a label map or a one-hot target; ``loss_mask`` ``(B, 1, *spatial)``."""
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        spatial = list(range(2, x.ndim))
        tp, fp, fn, _ = get_tp_fp_fn_tn(x, y, [0, *spatial] if self.batch_dice else spatial, loss_mask)
        if self.batch_dice and self.ddp:
            tp, fp, fn = (self._sum_over_processes(value) for value in (tp, fp, fn))
        if self.clip_tp is not None:
            tp = tp.clamp(min=self.clip_tp)
        dice = (2 * tp + self.smooth) / (2 * tp + fp + fn + self.smooth).clamp(min=_SMALLEST_DENOMINATOR)
        return -(dice if self.do_bg else dice[..., 1:]).mean()


class MemoryEfficientSoftDiceLoss(_SumsOverProcesses):
    """Dice from intersection and volumes, which keeps fewer intermediate images for the backward pass.

    Arguments as for :class:`SoftDiceLoss`.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Loss of outputs ``(B, C, *spatial)`` against a label map or a one-hot target; ``loss_mask`` ``(B, 1, *spatial)``."""
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        axes = tuple(range(2, x.ndim))
        with torch.no_grad():
            target = _one_hot(y, x)
            target = target if self.do_bg else target[:, 1:]
            masked_target = target if loss_mask is None else target * loss_mask
            target_sum = masked_target.sum(axes, dtype=torch.float32)
        x = x if self.do_bg else x[:, 1:]
        intersection = (x * masked_target).sum(axes, dtype=torch.float32)
        prediction_sum = (x if loss_mask is None else x * loss_mask).sum(axes, dtype=torch.float32)
        if self.batch_dice:
            sums = [value.sum(0) for value in (intersection, prediction_sum, target_sum)]
            intersection, prediction_sum, target_sum = [self._sum_over_processes(value) for value in sums] if self.ddp else sums
        denominator = (target_sum + prediction_sum + self.smooth).clamp(min=_SMALLEST_DENOMINATOR)
        return -((2 * intersection + self.smooth) / denominator).mean()


def get_tp_fp_fn_tn(
    net_output: Tensor, gt: Tensor, axes: Sequence[int] | int | None = None, mask: Tensor | None = None, square: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Soft true positives, false positives, false negatives and true negatives.

    Args:
        net_output: Probabilities ``(B, C, *spatial)``.
        gt: Label map ``(B, 1, *spatial)`` or ``(B, *spatial)``, or one-hot of the shape of ``net_output``.
        axes: Axes to sum over; all spatial ones by default, none for an empty sequence.
        mask: ``(B, 1, *spatial)``; 0 where a voxel does not count.
        square: Square each voxel's value before summing.

    Returns:
        Four tensors of the axes that are left.
    """
    if axes is None:
        axes = range(2, net_output.ndim)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    with torch.no_grad():
        target = _one_hot(gt, net_output).to(net_output.dtype)
    counts = [net_output * target, net_output * (1 - target), (1 - net_output) * target, (1 - net_output) * (1 - target)]
    if mask is not None:
        counts = [count * mask for count in counts]
    if square:
        counts = [count**2 for count in counts]
    if axes:
        # half-precision sums over millions of voxels would overflow
        counts = [count.sum(axes, dtype=torch.promote_types(count.dtype, torch.float32)) for count in counts]
    return tuple(counts)


def _one_hot(target: Tensor, output: Tensor) -> Tensor:
    """The target in the shape of the output: as it is if it already has that shape, else from a label map."""
    if target.shape == output.shape:
        return target
    if target.ndim != output.ndim:
        target = target.unsqueeze(1)
    classes = torch.arange(output.shape[1], device=target.device).view(1, -1, *(1,) * (output.ndim - 2))
    return target.long() == classes
