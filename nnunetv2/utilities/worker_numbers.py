"""How many worker processes work at the same time: as many as CPUs and memory carry, said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnunetv2.utilities.default_n_proc_DA import usable_cpus
from nnunetv2.utilities.machine import UsableMemory, as_gigabytes, usable_memory

# Resident memory of a worker process before its first case: Python, numpy, scipy, SimpleITK.
WORKER_BYTES = 180 * 1000**2
# Of what is free now; other programs grow too, and estimates are estimates.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class WorkerNumber:
    """How many workers, and the line that tells the user."""

    workers: int
    message: str  # empty if there is nothing to say


def choose_workers(
    task: str,
    bytes_by_case: Mapping[str, int],
    asked: int | None = None,
    *,
    option: str = "-np",
    cpus: int | None = None,
    memory: UsableMemory | None = None,
) -> WorkerNumber:
    """Number of workers for a list of cases.

    A number that the user asked for is obeyed, with a warning where memory will likely not suffice.

    Args:
        task: What is done, to begin the message with: "preprocessing".
        bytes_by_case: Memory that each case takes while it is worked on.
        asked: The user's number; None: choose.
        option: How the user gives the number.
        cpus: That may be used; None: look.
        memory: That is free; None: look.
    """
    sizes = sorted(bytes_by_case.values(), reverse=True)
    cpus = usable_cpus() if cpus is None else cpus
    memory = usable_memory() if memory is None else memory
    most = len(sizes) if asked is None else min(asked, len(sizes))
    fitting = len(sizes) if memory is None else _number_that_fits(sizes, memory.bytes * USABLE_SHARE)
    largest = max(bytes_by_case, key=bytes_by_case.__getitem__, default="")
    per_case = f"the largest case ({largest}) takes about {as_gigabytes(bytes_by_case.get(largest, 0))}"
    if not sizes:
        return WorkerNumber(asked or 1, "")
    if asked is not None:
        if memory is None or fitting >= max(most, 1):
            return WorkerNumber(asked, "")
        advice = f"{fitting} at a time would fit ({option})" if fitting else "not even one at a time is sure to fit"
        message = (
            f"WARNING: {task}: {_counted(max(most, 1))}{', as asked for,' if most == asked else ''} may run out of memory: {per_case}, and "
            f"{as_gigabytes(memory.bytes)} are free in {memory.limited_by}; {advice}."
        )
        return WorkerNumber(asked, message)
    most = min(cpus, len(sizes))
    workers = max(1, min(most, fitting))
    if fitting < most:
        reason, rest = per_case, ""
    else:
        reason = f"{cpus} CPUs may be used" if cpus <= len(sizes) else f"there are {len(sizes)} cases"
        rest = f", {per_case}"
    free = "" if memory is None else f"; {as_gigabytes(memory.bytes)} of memory are free in {memory.limited_by}"
    doubt = "" if fitting else ", which may not be enough"
    return WorkerNumber(workers, f"{task}: {_counted(workers)}, because {reason}{rest}{free}{doubt} (another number: {option}).")


def _number_that_fits(sizes: list[int], free: float) -> int:
    """How many of the largest cases fit together, each in a worker of its own; `sizes` in descending order."""
    total, number = 0, 0
    for size in sizes:
        total += size + WORKER_BYTES
        if total > free:
            break
        number += 1
    return number


def _counted(workers: int) -> str:
    return "1 process" if workers == 1 else f"{workers} processes"
