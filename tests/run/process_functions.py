"""What the processes of ``test_processes.py`` do; here, because started processes import it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

from nnunetv2.run import peer_watch, processes
from nnunetv2.run.processes import process_group, run_on_this_machine
from nnunetv2.training.distributed import (
    average_gradients,
    distributed_network,
    of_all_processes,
    of_first_process,
    process_rank,
    wait_for_all_processes,
)

CPU = torch.device("cpu")
BUSY_SECONDS = 120.0  # long after a process must have been ended, on the slowest machine


def write_what_all_say(folder: str) -> None:
    with process_group(CPU):
        said = of_all_processes({"rank": process_rank()}), of_first_process(f"from {process_rank()}")
        Path(folder, f"{process_rank()}.txt").write_text(str(said))


def write_averaged_gradients(folder: str) -> None:
    with process_group(CPU):
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.tensor([1.0, 10.0]) * (process_rank() + 1 + number)
        average_gradients(parameters)
        Path(folder, f"{process_rank()}.txt").write_text(str([parameter.grad.tolist() for parameter in parameters]))


def write_initial_weights(folder: str) -> None:
    with process_group(CPU):
        torch.manual_seed(process_rank())
        network = distributed_network(nn.Linear(3, 1), CPU, False)
        Path(folder, f"{process_rank()}.txt").write_text(str(network.module.weight.tolist()))


class TrainerInCycle:
    """Nothing but the garbage collection ends it, as trainers whose hooks refer to them."""

    def __init__(self) -> None:
        self.network = distributed_network(nn.Linear(2, 1), CPU, False)
        self.itself = self


def write_threads_that_are_left(folder: str) -> None:
    with process_group(CPU):
        TrainerInCycle().network(torch.ones(1, 2)).sum().backward()
        inside = names_of_threads()
    Path(folder, f"{os.environ['RANK']}.txt").write_text(f"{[name for name in inside if 'gloo' in name]} {names_of_threads()}")


def names_of_threads() -> list[str]:
    """Of this process: those of C++ by what the system calls them, those of Python by their own names."""
    of_system = [(path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
    return sorted(name for name in of_system if "gloo" in name) + [thread.name for thread in threading.enumerate()]


def write_what_is_left_after_an_error(folder: str) -> None:
    """The second of two processes raises; what both have of the group afterwards, with their errors still in use."""
    try:
        with process_group(CPU):
            train_until_second_raises()
    except Exception as error:
        left = f"{torch.distributed.is_initialized()} {names_of_threads()} {type(error).__name__}"
        Path(folder, f"{os.environ['RANK']}.txt").write_text(left)
        raise


def train_until_second_raises() -> None:
    trainer = TrainerInCycle()
    trainer.network(torch.ones(1, 2)).sum().backward()
    if process_rank() == 1:
        fail("raise")
    wait_for_all_processes()


def write_seconds_until_left(folder: str) -> None:
    """The first process fails while it waits for something that the second one, busy with something else, does not join."""
    processes.LEAVE_SECONDS, peer_watch.GRACE_SECONDS = 0.5, 10.0
    try:
        with process_group(CPU):
            wait_for_all_processes()
            while process_rank() == 1:
                time.sleep(0.1)
            torch.distributed.all_reduce(torch.zeros(1), async_op=True)
            start = time.monotonic()
            fail("raise")
    except KeyError:
        Path(folder, "seconds.txt").write_text(str(time.monotonic() - start))
        raise


def write_error_of_a_lost_connection(folder: str) -> None:
    """The second process is killed; what the first one's error says while it waits for it."""
    with process_group(CPU):
        wait_for_all_processes()
        if process_rank() == 1:
            fail("kill")
        try:
            wait_for_all_processes()
        except RuntimeError as error:
            Path(folder, "lost.txt").write_text(f"{peer_watch.is_lost_connection(error)} {error}")
            raise


def second_fails(folder: str, how: str, others_are_busy: bool) -> None:
    """The second of some processes fails in some way; the others wait for it, or are busy with something else."""
    peer_watch.GRACE_SECONDS = 1.0
    with process_group(CPU):
        wait_for_all_processes()
        Path(folder, f"{process_rank()}.pid").write_text(str(os.getpid()))
        if process_rank() == 1:
            fail(how)
        if others_are_busy:
            time.sleep(BUSY_SECONDS)
            Path(folder, f"{process_rank()}.not_ended").touch()
        wait_for_all_processes()


def fail(how: str) -> None:
    if how == "raise":
        raise KeyError("case_007 has no label")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_on_this_machine(2, second_fails, {"folder": sys.argv[1], "how": "not at all", "others_are_busy": True})
