"""The number of batch workers respects the request and the CPUs there are."""

from __future__ import annotations

import os

import pytest

from nnunetv2.utilities import default_n_proc_DA


def test_zero_workers_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert default_n_proc_DA.get_allowed_n_proc_DA() == 0


def test_never_more_workers_than_cpus_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "100000")
    assert 1 <= default_n_proc_DA.get_allowed_n_proc_DA() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["many", "-1", "2.5"])
def test_other_values_name_the_variable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", text)
    with pytest.raises(ValueError, match="nnUNet_n_proc_DA is"):
        default_n_proc_DA.get_allowed_n_proc_DA()


def test_the_share_of_a_slurm_job_limits_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(default_n_proc_DA, "control_group_cpus", lambda: 3.5)
    assert default_n_proc_DA.usable_cpus() == 4
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert default_n_proc_DA.usable_cpus() == 2


@pytest.mark.parametrize(("processes", "workers"), [(None, 6), ("2", 3), ("100", 1)])
def test_processes_on_one_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch, processes: str | None, workers: int) -> None:
    monkeypatch.setattr(default_n_proc_DA, "usable_cpus", lambda: 6)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_n_proc_DA.get_allowed_n_proc_DA() == workers
