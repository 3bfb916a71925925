from __future__ import annotations

import pytest
import torch

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import (
    CosineAnnealingLR_offset,
    Lin_incr_LRScheduler,
    Lin_incr_offset_LRScheduler,
    PolyLRScheduler_offset,
)


def optimizer(groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=0.3)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: list[int | None]) -> list[float]:
    found = []
    for step in steps:
        scheduler.step(step)
        found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


def test_poly_of_given_epochs_equals_the_reference() -> None:
    assert rates(PolyLRScheduler(optimizer(), 0.01, 2), [0, 1]) == pytest.approx([0.01, 0.005358867312681466])


def test_poly_counts_without_a_step() -> None:
    # recorded from nnU-Net 2.8.1: creating the scheduler is the first step
    assert rates(PolyLRScheduler(optimizer(), 0.01, 10), [None, None]) == pytest.approx([0.009095, 0.008181], abs=1e-6)


def test_poly_is_zero_at_the_end_and_after_it() -> None:
    assert rates(PolyLRScheduler(optimizer(), 0.01, 10), [10, 12]) == [0, 0]


def test_poly_can_start_later() -> None:
    scheduler = PolyLRScheduler(optimizer(), 0.01, 10, current_step=3)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.007254, abs=1e-6)


def test_all_parameter_groups_get_the_rate() -> None:
    scheduler = PolyLRScheduler(optimizer(groups=2), 0.01, 10)
    scheduler.step(5)
    assert scheduler.get_last_lr() == [group["lr"] for group in scheduler.optimizer.param_groups]
    assert len(set(scheduler.get_last_lr())) == 1


def test_warm_up_increases_linearly() -> None:
    assert rates(Lin_incr_LRScheduler(optimizer(), 0.01, 5), [0, 1, 4]) == pytest.approx([0.002, 0.004, 0.01])


def test_warm_up_that_starts_later_is_never_negative() -> None:
    assert rates(Lin_incr_offset_LRScheduler(optimizer(), 0.01, 8, 3), [0, 3, 8]) == pytest.approx([0, 0.00125, 0.0075])


def test_poly_after_warm_up_equals_the_reference() -> None:
    found = rates(PolyLRScheduler_offset(optimizer(), 0.01, 10, 4), [0, 4, 5, 9])
    assert found == pytest.approx([0.01, 0.01, 0.008487, 0.001994], abs=1e-6)


def test_cosine_after_warm_up_falls_from_start_to_minimum() -> None:
    found = rates(CosineAnnealingLR_offset(optimizer(), 10, eta_min=0.01, offset=4), [0, 4, 7, 10])
    assert found == pytest.approx([0.3, 0.3, 0.155, 0.01])
