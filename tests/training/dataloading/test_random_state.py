"""Random states derived from positions."""

from __future__ import annotations

import numpy as np
import torch

from nnunetv2.training.dataloading.random_state import random_seed, restored_random_state, seed_sample


def drawn(*position: int) -> tuple[float, float]:
    with restored_random_state():
        seed_sample(*position)
        return np.random.rand(), torch.rand(1).item()


def test_every_number_of_the_position_counts() -> None:
    positions = [(s, e, i, j) for s in (0, 1, 2**62) for e in (0, 1) for i in (0, 1) for j in (0, 1)]
    both = [drawn(*position) for position in positions]
    assert len({one for one, _ in both}) == len({other for _, other in both}) == len(positions)
    assert drawn(5, 1, 2, 3) == drawn(5, 1, 2, 3)


def test_random_seeds_differ_and_can_be_used() -> None:
    assert random_seed() != random_seed()
    drawn(random_seed(), 0, 0, 0)
