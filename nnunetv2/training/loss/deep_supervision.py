"""Loss of several outputs at falling resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class DeepSupervisionWrapper(nn.Module):
    """Weighted sum of one loss over corresponding entries of lists.

    Args:
        loss: Called with one entry of every argument.
        weight_factors: One factor per resolution, finest first; 1 for each by default. Where it is 0 the loss is not computed.
    """

    def __init__(self, loss: Callable[..., Tensor], weight_factors: Sequence[float] | None = None) -> None:
        super().__init__()
        if weight_factors is not None and not any(factor != 0 for factor in weight_factors):
            raise ValueError(f"At least one weight must not be 0, got {tuple(weight_factors)}.")
        self.weight_factors = None if weight_factors is None else tuple(float(factor) for factor in weight_factors)
        self.loss = loss

    def forward(self, *args: Sequence[Any]) -> Tensor:
        """Loss of lists or tuples, finest resolution first, e.g. ``(outputs, targets)``."""
        if not all(isinstance(argument, (list, tuple)) for argument in args):
            raise TypeError(
                f"Deep supervision needs a list or tuple per argument, found {', '.join(type(argument).__name__ for argument in args)}. "
                "The network's deep supervision is probably off; call set_deep_supervision_enabled(True)."
            )
        factors = (1,) * len(args[0]) if self.weight_factors is None else self.weight_factors
        return sum(factor * self.loss(*entries) for factor, *entries in zip(factors, *args, strict=False) if factor != 0)


def deep_supervision_weights(n_outputs: int, zero_last: float = 0.0) -> tuple[float, ...]:
    """Weights that halve with every resolution and add up to 1.

    Args:
        n_outputs: Number of outputs, finest first.
        zero_last: Weight of the coarsest output before all are brought to a sum of 1. nnU-Net leaves it out, or keeps it at
            1e-6 where every parameter has to get a gradient (distributed without compilation). A single output keeps its
            weight: leaving it out would leave no loss.
    """
    if n_outputs < 1:
        raise ValueError(f"Expected at least one output, got {n_outputs}.")
    weights = [0.5**i for i in range(n_outputs)]
    if n_outputs > 1:
        weights[-1] = zero_last
    total = sum(weights)
    return tuple(weight / total for weight in weights)
