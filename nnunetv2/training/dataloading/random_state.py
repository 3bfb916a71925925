"""One random state per sample, so that a batch depends on the seed and its position alone.

Augmentation draws from the global random states of numpy and torch. Forked workers inherit torch's state, so without a
seed of their own they would all make the same decisions.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import numpy as np
import torch


def random_seed() -> int:
    """A fresh base seed from the operating system."""
    return secrets.randbits(63)


def seed_sample(*position: int) -> None:
    """Seeds the global random states of numpy and torch (CPU) from non-negative numbers.

    Args:
        position: Seed, epoch, iteration, sample. Different positions give independent states.
    """
    words = np.random.SeedSequence(position).generate_state(6, np.uint32)
    np.random.seed(words[:4])
    # torch.manual_seed would seed the GPU as well, from which the network's dropout draws.
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))


@contextlib.contextmanager
def restored_random_state() -> Iterator[None]:
    """Leaves the global random states of numpy and torch (CPU) as they were."""
    numpy_state, torch_state = np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


@contextlib.contextmanager
def single_torch_thread() -> Iterator[None]:
    """One thread for torch: sums over voxels depend on how they are split, and workers use one thread each."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
