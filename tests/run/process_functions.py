"""What the processes of ``test_processes.py`` do; here, because started processes import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from nnunetv2.run import peer_watch
from nnunetv2.run.processes import process_group, run_on_this_machine
from nnunetv2.training.distributed import of_all_processes, of_first_process, process_rank, wait_for_all_processes

CPU = torch.device("cpu")


def write_what_all_say(folder: str) -> None:
    with process_group(CPU):
        said = of_all_processes({"rank": process_rank()}), of_first_process(f"from {process_rank()}")
        Path(folder, f"{process_rank()}.txt").write_text(str(said))


def second_fails(folder: str, how: str, first_is_busy: bool) -> None:
    """The second of two processes fails in some way; the first waits for it, or is busy with something else."""
    peer_watch.GRACE_SECONDS = 1.0
    with process_group(CPU):
        wait_for_all_processes()
        Path(folder, f"{process_rank()}.pid").write_text(str(os.getpid()))
        if process_rank() == 1:
            fail(how)
        while first_is_busy:
            time.sleep(0.1)
        wait_for_all_processes()


def fail(how: str) -> None:
    if how == "raise":
        raise KeyError("case_007 has no label")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_on_this_machine(2, second_fails, {"folder": sys.argv[1], "how": "not at all", "first_is_busy": True})
