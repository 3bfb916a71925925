"""Workers are chosen by CPUs, memory and cases; a number that was asked for is obeyed."""

from __future__ import annotations

from nnunetv2.utilities.machine import UsableMemory
from nnunetv2.utilities.worker_numbers import USABLE_SHARE, WORKER_BYTES, choose_workers

GB = 1000**3
CASES = {"small": GB, "large": 4 * GB, "middle": 2 * GB}


def memory_for(*cases: int) -> UsableMemory:
    """Just enough for these cases, each in a worker."""
    return UsableMemory(int((sum(cases) + len(cases) * WORKER_BYTES) / USABLE_SHARE) + 1, "this machine")


def test_cpus_are_the_limit_where_memory_suffices() -> None:
    chosen = choose_workers("preprocessing", CASES, cpus=2, memory=memory_for(20 * GB))
    assert chosen.workers == 2
    assert "2 processes, because 2 CPUs may be used" in chosen.message and "large" in chosen.message


def test_never_more_workers_than_cases() -> None:
    chosen = choose_workers("preprocessing", CASES, cpus=64, memory=memory_for(20 * GB))
    assert chosen.workers == 3 and "there are 3 cases" in chosen.message


def test_memory_is_the_limit_for_the_largest_cases_together() -> None:
    assert choose_workers("p", CASES, cpus=8, memory=memory_for(4 * GB, 2 * GB)).workers == 2
    slightly_less = UsableMemory(memory_for(4 * GB, 2 * GB).bytes - 10, "the SLURM job")
    chosen = choose_workers("p", CASES, cpus=8, memory=slightly_less)
    assert chosen.workers == 1
    assert "because the largest case (large) takes about 4.0 GB" in chosen.message and "the SLURM job" in chosen.message


def test_one_worker_is_tried_where_not_even_that_may_fit() -> None:
    chosen = choose_workers("p", CASES, cpus=8, memory=UsableMemory(GB, "this machine"))
    assert chosen.workers == 1 and "may not be enough" in chosen.message


def test_a_number_asked_for_is_obeyed_with_a_warning_where_it_may_not_fit() -> None:
    assert choose_workers("p", CASES, 8, cpus=1, memory=memory_for(20 * GB)).message == ""
    chosen = choose_workers("p", CASES, 8, cpus=1, memory=memory_for(4 * GB, 2 * GB), option="-np")
    assert chosen.workers == 8
    assert chosen.message.startswith("WARNING") and "2 at a time would fit (-np)" in chosen.message
    assert "not even one" in choose_workers("p", CASES, 1, cpus=1, memory=UsableMemory(GB, "this machine")).message


def test_a_warning_about_fewer_processes_than_asked_for_says_not_that_they_were_asked_for() -> None:
    too_little = UsableMemory(GB, "this machine")
    assert "3 processes, as asked for, may run out" in choose_workers("p", CASES, 3, cpus=1, memory=too_little).message
    assert "3 processes may run out" in choose_workers("p", CASES, 4, cpus=1, memory=too_little).message
