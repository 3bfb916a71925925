"""How a batch is divided over processes."""

from __future__ import annotations

import pytest

from nnunetv2.training.distributed import batch_share_of_rank, sample_range_of_rank


@pytest.mark.parametrize(
    ("world_size", "batch_size", "expected"),
    [(2, 2, [(1, 0.0), (1, 1.0)]), (4, 9, [(3, 0.0), (2, 0.0), (2, 0.5), (2, 1.0)])],
)
def test_shares_are_nnunets(world_size: int, batch_size: int, expected: list[tuple[int, float]]) -> None:
    assert [batch_share_of_rank(batch_size, 0.33, rank, world_size) for rank in range(world_size)] == expected


def test_one_process_draws_the_whole_batch() -> None:
    assert sample_range_of_rank(5, 0, 1) == (0, 5)


def test_more_processes_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="batch size is 2, but there are 3 processes"):
        sample_range_of_rank(2, 0, 3)
