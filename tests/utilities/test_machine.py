"""Limits of memory and CPUs are found where the kernel and SLURM keep them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nnunetv2.utilities.machine import UsableMemory, cause_of_death, control_group_cpus, count_of_memory_kills, usable_memory

GB = 1000**3


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def meminfo(tmp_path: Path, kilobytes: int = 8 * 10**6) -> Path:
    write(tmp_path, meminfo=f"MemTotal:       16000000 kB\nMemAvailable:    {kilobytes} kB")
    return tmp_path / "meminfo"


def member(tmp_path: Path, lines: str) -> Path:
    write(tmp_path, membership=lines)
    return tmp_path / "membership"


def test_without_limits_what_is_free_in_the_machine_counts(tmp_path: Path) -> None:
    free = usable_memory(tmp_path / "none", tmp_path / "none", meminfo(tmp_path))
    assert free == UsableMemory(8 * 10**6 * 1024, "this machine")


def test_version_2_counts_the_tightest_group_around_the_process_without_cached_files(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    write(groups / "job", memory__max=str(4 * GB), memory__current=str(3 * GB), memory__stat=f"anon 1\ninactive_file {GB}")
    write(groups / "job" / "step", memory__max="max", memory__current=str(1 * GB))
    membership = member(tmp_path, "0::/job/step")
    free = usable_memory(groups, membership, meminfo(tmp_path))
    assert free.bytes == 2 * GB and "4.0 GB" in free.limited_by


def test_version_1_and_its_way_to_say_unlimited(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    unlimited = {"memory__limit_in_bytes": str(2**63 - 4096), "memory__usage_in_bytes": "5"}
    write(groups / "memory", **unlimited)
    membership = member(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job")
    assert usable_memory(groups, membership, meminfo(tmp_path)).limited_by == "this machine"
    write(groups / "memory" / "job", memory__limit_in_bytes=str(2 * GB), memory__usage_in_bytes=str(GB))
    assert usable_memory(groups, membership, meminfo(tmp_path)).bytes == GB


def test_names_of_the_host_do_not_hide_the_limit_of_the_container(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    write(groups, memory__max=str(GB), memory__current="0")
    membership = member(tmp_path, "0::/../../docker/abcdef")
    assert usable_memory(groups, membership, meminfo(tmp_path)).bytes == GB


def test_slurm_says_what_the_job_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert usable_memory(tmp_path, tmp_path / "none", meminfo(tmp_path)) == UsableMemory(3000 << 20, "the SLURM job")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "500")
    assert usable_memory(tmp_path, tmp_path / "none", meminfo(tmp_path)).bytes == 500 << 20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # the whole node
    assert usable_memory(tmp_path, tmp_path / "none", meminfo(tmp_path)).bytes == 3000 << 20


def test_the_quota_of_cpus_is_read_in_both_versions(tmp_path: Path) -> None:
    membership = member(tmp_path, "3:cpu,cpuacct:/job\n0::/job/step")
    groups = tmp_path / "cgroup"
    assert control_group_cpus(groups, membership) is None
    write(groups / "cpu" / "job", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    assert control_group_cpus(groups, membership) == 1.5
    write(groups / "job", cpu__max="100000 100000")
    write(groups / "job" / "step", cpu__max="max 100000")
    assert control_group_cpus(groups, membership) == 1
    write(groups / "cpu" / "job", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(groups / "job", cpu__max="max 100000")
    assert control_group_cpus(groups, membership) is None


def test_processes_killed_for_memory_are_counted_in_the_own_group_first(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    membership = member(tmp_path, "4:memory:/job\n0::/job")
    counters = tmp_path / "vmstat"
    assert count_of_memory_kills(groups, membership, counters) is None
    counters.write_text("pgfault 12\noom_kill 7\n")
    assert count_of_memory_kills(groups, membership, counters) == 7
    write(groups / "memory" / "job", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    assert count_of_memory_kills(groups, membership, counters) == 3
    write(groups / "job", memory__events="low 0\noom 2\noom_kill 1")
    assert count_of_memory_kills(groups, membership, counters) == 1


def test_the_cause_of_death_is_said_also_where_signals_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cause_of_death(-9, None) == "killed by signal 9, SIGKILL: most likely memory ran out"
    assert cause_of_death(-35, None) == "killed by signal 35"
    for name in ("SIGKILL", "SIGBUS"):  # as on Windows
        monkeypatch.delattr(signal, name)
    assert cause_of_death(1, None) == "ended with exit code 1"
    assert cause_of_death(0, None) == "ended with exit code 0"
    assert cause_of_death(None, None) == "killed by the system: most likely memory ran out"
    assert cause_of_death(-11, None) == "killed by signal 11, SIGSEGV: a library crashed"
