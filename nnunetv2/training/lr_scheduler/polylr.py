"""Polynomial decay of the learning rate, and the base of schedulers that compute it from a step."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch.optim import Optimizer
from torch.optim.lr_scheduler import _LRScheduler


class StepLRScheduler(_LRScheduler, ABC):
    """One learning rate for all parameter groups, a function of the step.

    The step is given to :meth:`step`, which nnU-Net calls with the epoch, or counted from ``current_step``.
    """

    def __init__(self, optimizer: Optimizer, current_step: int | None = None) -> None:
        self.optimizer = optimizer
        self.ctr = 0 if current_step is None or current_step < 0 else current_step
        super().__init__(optimizer)

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of a step; of the next one if none is given."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        lr = self.learning_rate(current_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._last_lr = [lr for _ in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Learning rate of every parameter group."""
        return self._last_lr


class PolyLRScheduler(StepLRScheduler):
    """``initial_lr * (1 - step / max_steps) ** exponent``; 0 from ``max_steps`` on.

    Args:
        optimizer: Its parameter groups get the learning rate.
        initial_lr: At step 0.
        max_steps: Step at which the learning rate is 0.
        exponent: 1 is a straight line.
        current_step: Step to start counting from.
    """

    def __init__(
        self, optimizer: Optimizer, initial_lr: float, max_steps: int, exponent: float = 0.9, current_step: int | None = None
    ) -> None:
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.exponent = exponent
        super().__init__(optimizer, current_step)

    def learning_rate(self, step: int) -> float:
        # Clamped: a negative base has no real power.
        return self.initial_lr * max(0.0, 1 - step / self.max_steps) ** self.exponent
