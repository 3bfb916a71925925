"""Learning rates of trainings that warm up: linear increase first, then a decay that starts at a later step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from nnunetv2.training.lr_scheduler.polylr import StepLRScheduler


class Lin_incr_LRScheduler(StepLRScheduler):
    """Linear increase: ``max_lr * (1 + step) / max_steps``."""

    def __init__(self, optimizer: Optimizer, max_lr: float, max_steps: int, current_step: int | None = None) -> None:
        self.max_lr = max_lr
        self.max_steps = max_steps
        super().__init__(optimizer, current_step)

    def learning_rate(self, step: int) -> float:
        return self.max_lr / self.max_steps * (1 + step)


class Lin_incr_offset_LRScheduler(StepLRScheduler):
    """Linear increase that begins at ``start_step``: ``max_lr * (1 + step - start_step) / max_steps``; 0 before."""

    def __init__(self, optimizer: Optimizer, max_lr: float, max_steps: int, start_step: int, current_step: int | None = None) -> None:
        self.max_lr = max_lr
        self.max_steps = max_steps
        self.start_step = start_step
        super().__init__(optimizer, current_step)

    def learning_rate(self, step: int) -> float:
        return max(0.0, self.max_lr / self.max_steps * (1 + step - self.start_step))


class PolyLRScheduler_offset(StepLRScheduler):
    """Polynomial decay from ``start_step`` to ``max_steps``; ``initial_lr`` before."""

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        max_steps: int,
        start_step: int,
        exponent: float = 0.9,
        current_step: int | None = None,
    ) -> None:
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.start_step = start_step
        self.exponent = exponent
        super().__init__(optimizer, current_step)

    def learning_rate(self, step: int) -> float:
        progress = max(0, step - self.start_step) / max(1, self.max_steps - self.start_step)
        return self.initial_lr * max(0.0, 1 - progress) ** self.exponent


class CosineAnnealingLR_offset(CosineAnnealingLR):
    """Cosine decay from step ``offset`` to ``T_max``; the initial learning rate before. ``verbose`` is not used."""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0, last_epoch: int = -1, verbose: object = "deprecated", offset: int = 0
    ) -> None:
        self.offset = offset
        super().__init__(optimizer, T_max, eta_min, last_epoch)

    def _get_closed_form_lr(self) -> list[float]:
        progress = min(1.0, max(0, self.last_epoch - self.offset) / max(1, self.T_max - self.offset))
        return [self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2 for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of an epoch; of the next one if none is given."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._last_lr = self._get_closed_form_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
