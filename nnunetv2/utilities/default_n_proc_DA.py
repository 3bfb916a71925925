"""How many worker processes may prepare batches."""

from __future__ import annotations

import math
import os

from nnunetv2.utilities.machine import control_group_cpus

# A GPU is kept busy by about this many workers; more cost memory without helping.
_USUAL_NUM_WORKERS = 12


def get_allowed_n_proc_DA() -> int:
    """Number of batch workers per GPU: ``nnUNet_n_proc_DA`` or 12, never more than the CPUs this process may use.

    Without ``nnUNet_n_proc_DA`` the processes of a training on one machine share its CPUs.

    0 means that batches are made in the training process itself.

    Raises:
        ValueError: If ``nnUNet_n_proc_DA`` is not a whole number, 0 or more.
    """
    text = os.environ.get("nnUNet_n_proc_DA", "").strip()
    if not text:
        return min(_USUAL_NUM_WORKERS, cpus_of_process())
    try:
        wanted = int(text)
    except ValueError:
        wanted = -1
    if wanted < 0:
        raise ValueError(f"The environment variable nnUNet_n_proc_DA is {text!r}; expected a whole number, 0 or more. Correct or unset it.")
    return min(wanted, usable_cpus())


def cpus_of_process() -> int:
    """Share of this process in the usable CPUs, where a training has several processes on this machine (``LOCAL_WORLD_SIZE``)."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, usable_cpus() // max(1, int(processes) if processes.isdecimal() else 1))


def usable_cpus() -> int:
    """CPUs that this process may use: the smallest of the machine's, the affinity mask, the control groups' quotas and SLURM's share."""
    limits = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        limits.append(len(os.sched_getaffinity(0)))
    quota = control_group_cpus()
    if quota is not None:
        limits.append(max(1, math.ceil(quota)))
    allocated = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if allocated.isdecimal() and int(allocated):
        limits.append(int(allocated))
    return max(1, min(limits))
