"""What this process may use of its machine: memory and CPUs, with the limits that containers and batch systems set.

Limits are read where the kernel keeps them: control groups of both versions, of this process' group and all groups around it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY_INFORMATION = Path("/proc/meminfo")
KERNEL_COUNTERS = Path("/proc/vmstat")
SMALLEST_IN_GIGABYTES = 10**8
NO_LIMIT_BYTES = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


@dataclass(frozen=True)
class UsableMemory:
    """Memory that can be taken now."""

    bytes: int
    limited_by: str  # who says so, to be read after "of memory are free in"


def usable_memory(
    control_groups: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP, memory_information: Path = MEMORY_INFORMATION
) -> UsableMemory | None:
    """The smallest of what is free in the machine, in the container or job that this process runs in, and in SLURM's allocation.

    None if the system does not say.
    """
    found = []
    free = _free_memory_of_machine(memory_information)
    if free is not None:
        found.append(UsableMemory(free, "this machine"))
    for limit, used in _memory_of_control_groups(control_groups, membership):
        found.append(UsableMemory(max(0, limit - used), f"the container or job, which may use {as_gigabytes(limit)}"))
    allocated = _memory_of_slurm()
    if allocated is not None:
        found.append(UsableMemory(allocated, "the SLURM job"))
    return min(found, key=lambda memory: memory.bytes, default=None)


def control_group_cpus(control_groups: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """CPU quota of the container or job, the smallest of all groups around this process; None without one."""
    quotas = []
    for folder in _folders(control_groups, "", membership):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            quotas += [] if quota == "max" else [int(quota) / int(period)]
        except (OSError, ValueError):
            pass
    for folder in _folders(control_groups, "cpu", membership):
        try:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            quotas += [quota / period] if quota > 0 and period > 0 else []
        except (OSError, ValueError):
            pass
    return min(quotas, default=None)


def count_of_memory_kills(
    control_groups: Path = CONTROL_GROUPS, membership: Path = MEMBERSHIP, kernel_counters: Path = KERNEL_COUNTERS
) -> int | None:
    """How many processes the kernel has killed so far for want of memory, in this process' group where it counts, else in the machine."""
    files = [folder / "memory.events" for folder in _folders(control_groups, "", membership)]
    files += [folder / "memory.oom_control" for folder in _folders(control_groups, "memory", membership)]
    for file in [*files, kernel_counters]:
        for name, number in _pairs(file):
            if name == "oom_kill":
                return number
    return None


def cause_of_death(exit_code: int | None, memory_kills_before: int | None) -> str:
    """How a process of ours ended and why, in words.

    Args:
        exit_code: As of ``multiprocessing.Process``: negative for a signal; None if it is not known.
        memory_kills_before: :func:`count_of_memory_kills` when the process was started.
    """
    if exit_code is None:
        how = "killed by the system"
    elif exit_code < 0:
        name = signal_name(-exit_code)
        how = f"killed by {name}" if str(-exit_code) in name else f"killed by signal {-exit_code}, {name}"
    else:
        how = f"ended with exit code {exit_code}"
    kills = count_of_memory_kills()
    if kills is not None and memory_kills_before is not None and kills > memory_kills_before:
        return f"{how}: the kernel killed a process because memory ran out"
    if exit_code is None or is_ended_by(exit_code, "SIGKILL"):
        return f"{how}: most likely memory ran out"
    if is_ended_by(exit_code, "SIGBUS"):
        return f"{how}: a file that was read became shorter, or a disk or /dev/shm is full"
    if is_ended_by(exit_code, "SIGSEGV", "SIGABRT"):
        return f"{how}: a library crashed"
    return how


def is_ended_by(exit_code: int | None, *names: str) -> bool:
    """Whether a process with this exit code was ended by one of the signals; Windows does not have all of them."""
    return exit_code is not None and -exit_code in {getattr(signal, name, None) for name in names}


def signal_name(number: int) -> str:
    """``SIGTERM``, or ``signal 35``: not all have names."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def as_gigabytes(number: float) -> str:
    """Bytes for messages."""
    return f"{number / 1e9:.1f} GB" if number >= SMALLEST_IN_GIGABYTES else f"{number / 1e6:.0f} MB"


def _free_memory_of_machine(memory_information: Path) -> int | None:
    """Bytes that can be taken without swapping; of systems other than Linux all that there are."""
    for name, kilobytes in _pairs(memory_information):
        if name == "MemAvailable":
            return kilobytes * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else None
    except (AttributeError, OSError, ValueError):
        return None


def _memory_of_control_groups(control_groups: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every group that has a limit. Cached files do not count as used: they give way."""
    versions = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_file, use_file, cached in versions:
        for folder in _folders(control_groups, controller, membership):
            try:
                limit, used = int((folder / limit_file).read_text()), int((folder / use_file).read_text())
            except (OSError, ValueError):  # "max", or no such file
                continue
            if limit < NO_LIMIT_BYTES:
                yield limit, max(0, used - dict(_pairs(folder / "memory.stat")).get(cached, 0))


def _memory_of_slurm() -> int | None:
    """What SLURM gave to the job on this node; its variables hold megabytes, 0 means everything."""
    per_node, per_cpu, cpus = (os.environ.get(f"SLURM_{name}", "") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    if per_node.isdecimal() and int(per_node):
        return int(per_node) << 20
    if per_cpu.isdecimal() and int(per_cpu) and cpus.isdecimal():
        return int(per_cpu) * int(cpus) << 20
    return None


def _folders(control_groups: Path, controller: str, membership: Path) -> list[Path]:
    """Folders of this process' group and the groups around it, innermost first; `controller` is empty for version 2.

    In a container the names may be those of the host. What does not exist is left out; the outermost folder is then the container's.
    """
    outermost = control_groups / controller
    path = ""
    try:
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == controller or (controller and controller in controllers.split(",")):
                path = name.strip("/")
    except (OSError, ValueError):
        pass
    parts = [part for part in path.split("/") if part not in ("", "..")]
    candidates = [outermost.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]
    return [folder for folder in candidates if folder.is_dir()]


def _pairs(file: Path) -> Iterator[tuple[str, int]]:
    """Names and numbers of a file of the kernel, one pair per line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[1].isdecimal():
            yield words[0].rstrip(":"), int(words[1])
