"""Gathering tensors over the processes of a distributed training, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def print_if_rank0(*args: Any) -> None:
    """Print in the first process only."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0:
        print(*args)


class AllGatherGrad(torch.autograd.Function):
    """Stack a tensor of equal shape over all processes, ``(...)`` to ``(world_size, ...)``; gradients flow back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any = None) -> torch.Tensor:
        ctx.group = group
        gathered = [torch.zeros_like(tensor) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(gathered, tensor.contiguous(), group=group)
        return torch.stack(gathered, dim=0)

    @staticmethod
    def backward(ctx: Any, *grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = grad_output[0].contiguous()
        distributed.all_reduce(gradient, op=distributed.ReduceOp.SUM, group=ctx.group)
        return gradient[distributed.get_rank(ctx.group)], None
