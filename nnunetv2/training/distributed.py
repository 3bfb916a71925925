"""How a batch is divided over the processes of a distributed training (contract 7.9 of nnU-Net's trainers)."""

from __future__ import annotations


def is_distributed() -> bool:
    """Whether this process belongs to an initialised process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def process_rank() -> int:
    """Rank of this process, 0 outside a process group."""
    from torch import distributed

    return distributed.get_rank() if is_distributed() else 0


def sample_range_of_rank(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one past the last sample of the global batch that a rank draws.

    Raises:
        ValueError: If there are more processes than samples.
    """
    if global_batch_size < world_size:
        raise ValueError(
            f"The batch size is {global_batch_size}, but there are {world_size} processes and each needs one sample at least. "
            f"Use {global_batch_size} or fewer processes, or plan a larger batch size."
        )
    share, rest = divmod(global_batch_size, world_size)
    first = rank * share + min(rank, rest)
    return first, first + share + (1 if rank < rest else 0)


def batch_share_of_rank(global_batch_size: int, oversample_foreground_percent: float, rank: int, world_size: int) -> tuple[int, float]:
    """Batch size of a rank, and the share of its samples that are forced to hold foreground.

    In the global batch the last samples are forced. A rank forces those of its own samples that lie among them.
    """
    first, end = sample_range_of_rank(global_batch_size, rank, world_size)
    unforced_share = 1 - oversample_foreground_percent
    if end / global_batch_size < unforced_share:
        oversampling = 0.0
    elif first / global_batch_size > unforced_share:
        oversampling = 1.0
    else:
        first_forced = round(global_batch_size * unforced_share)
        oversampling = max(0, end - max(first, first_forced)) / (end - first)
    return end - first, oversampling
