"""Inputs and calls whose results were recorded from nnU-Net 2.8.1 in ``reference_losses.json``.

Recorded by running this file as a program in an environment with stock nnU-Net 2.8.1:
``python reference_cases.py reference_losses.json``. The inputs are formulas, so no random generator has to agree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss

SHAPE = (6, 7, 8)


def logits(channels: int = 4, batch: int = 2) -> Tensor:
    """Values between -3 and 3."""
    n = batch * channels * 6 * 7 * 8
    return (3 * torch.sin(torch.arange(n, dtype=torch.float64) * 1.37)).float().reshape(batch, channels, *SHAPE)


def label_map(n_labels: int) -> Tensor:
    """int16 ``(2, 1, *SHAPE)``."""
    values = torch.cos(torch.arange(2 * 6 * 7 * 8, dtype=torch.float64) * 2.11).abs() * n_labels
    return values.clamp(max=n_labels - 1).to(torch.int16).reshape(2, 1, *SHAPE)


def regions(with_ignore: bool) -> Tensor:
    """int16 ``(2, 4 or 5, *SHAPE)`` of 0 and 1."""
    channels = 5 if with_ignore else 4
    values = torch.sin(torch.arange(2 * channels * 6 * 7 * 8, dtype=torch.float64) * 0.73)
    return (values > 0.4).to(torch.int16).reshape(2, channels, *SHAPE)


def cases() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Name and loss of the logits."""
    for dice_class in (SoftDiceLoss, MemoryEfficientSoftDiceLoss):
        for batch_dice in (False, True):
            name = f"{dice_class.__name__}, {'batch' if batch_dice else 'sample'} Dice"
            without = {"batch_dice": batch_dice, "do_bg": False, "smooth": 1e-5, "ddp": False}
            with_bg = without | {"do_bg": True}
            yield f"{name} + CE", lambda x, k=without, d=dice_class: DC_and_CE_loss(k, {}, dice_class=d)(x, label_map(4))
            yield (
                f"{name} + CE, ignore",
                lambda x, k=without, d=dice_class: DC_and_CE_loss(k, {}, ignore_label=4, dice_class=d)(x, label_map(5)),
            )
            yield (
                f"{name} + CE, all ignored",
                lambda x, k=without, d=dice_class: DC_and_CE_loss(k, {}, ignore_label=4, dice_class=d)(x, label_map(4) * 0 + 4),
            )
            yield (
                f"{name} + CE, absent label, weights, smooth 0",
                lambda x, k=with_bg, d=dice_class: DC_and_CE_loss(k | {"smooth": 0}, {"label_smoothing": 0.1}, 0.5, 2, dice_class=d)(
                    x, label_map(2)
                ),
            )
            yield f"{name} + BCE", lambda x, k=with_bg, d=dice_class: DC_and_BCE_loss({}, k, 0.7, 1, dice_class=d)(x, regions(False))
            yield (
                f"{name} + BCE, ignore",
                lambda x, k=with_bg, d=dice_class: DC_and_BCE_loss({}, k, use_ignore_label=True, dice_class=d)(x, regions(True)),
            )
            yield (
                f"{name}, mask",
                lambda x, k=with_bg, d=dice_class: d(apply_nonlin=torch.sigmoid, **k)(x, regions(False), loss_mask=label_map(2) == 1),
            )
            if dice_class is SoftDiceLoss:
                yield f"{name} + top k", lambda x, k=without: DC_and_topk_loss(k, {"k": 10})(x, label_map(4))
                yield f"{name} + top k, ignore", lambda x, k=without: DC_and_topk_loss(k, {"k": 10}, ignore_label=4)(x, label_map(5))
    yield "CE", lambda x: RobustCrossEntropyLoss()(x, label_map(4).float())
    yield "top k, smoothing", lambda x: TopKLoss(k=3, label_smoothing=0.1)(x, label_map(4))
    yield (
        "deep supervision",
        lambda x: DeepSupervisionWrapper(RobustCrossEntropyLoss(), (0.6, 0.4, 0.0))(
            [x, x[..., ::2, ::2, ::2], x[..., ::3, ::3, ::3]],
            [label_map(4), label_map(4)[..., ::2, ::2, ::2], label_map(4)[..., ::3, ::3, ::3]],
        ),
    )


def loss_and_gradient(loss: Callable[[Tensor], Tensor]) -> list[float]:
    """The loss, the sum of the gradient's absolute values, and the gradient's product with the logits."""
    x = logits().requires_grad_()
    value = loss(x)
    value.backward()
    return [value.item(), x.grad.abs().sum().item(), (x.grad * x.detach()).sum().item()]


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({name: loss_and_gradient(loss) for name, loss in cases()}, file, indent=1)
