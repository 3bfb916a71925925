"""How many processes load and augment training patches."""

from __future__ import annotations

import os

DEFAULT_NUMBER_OF_WORKERS = 12


def get_allowed_n_proc_DA() -> int:
    """``nnUNet_n_proc_DA``, else 12; never more than the cores this process may use.

    Raises:
        ValueError: If the variable is no whole number.
    """
    text = os.environ.get("nnUNet_n_proc_DA") or str(DEFAULT_NUMBER_OF_WORKERS)
    try:
        wanted = int(text)
    except ValueError:
        raise ValueError(f"nnUNet_n_proc_DA is {text!r}, expected a whole number such as 8 (0: no extra processes).") from None
    return max(0, min(wanted, usable_cores()))


def usable_cores() -> int:
    """Cores that the scheduler and the container's CPU limit leave to this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: no limit to respect
    return cores
