"""nnUNetv2_train with several processes, from the command line to the tables of the validation."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_datasets import PLANS

from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

Folders = dict[str, Path]
SHORT = ("-p", PLANS, "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "2", "--seed", "0")
FAILING_TRAINER = """
import os, signal
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
class FailingTrainer(nnUNetTrainerMultitask):
    def train_step(self, batch):
        if self.local_rank == 1 and os.environ["HOW"] == "raise":
            raise ValueError("no memory for case_003")
        if self.local_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
"""


def train_command(*options: str) -> list[str]:
    return [sys.executable, "-m", "nnunetv2.cli.train", "1", "3d_fullres", "0", *SHORT, *options]


def torchrun(node: int, port: int, *options: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={port}", f"--local_addr=127.0.0.{node + 1}"]
    return [*launcher, "-m", "nnunetv2.run.run_training", "1", "3d_fullres", "0", *SHORT, *options]


@contextlib.contextmanager
def started(commands: list[list[str]], environment: dict[str, str]) -> Iterator[list[subprocess.Popen]]:
    """Running commands, none of which outlives a test that fails."""
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its own
        for process in processes:
            with process:  # closes its output and waits
                pass


def fold_folder(folders: Folders, trainer: str = "nnUNetTrainerMultitask") -> Path:
    return folders["results"] / "Dataset001_Classes" / f"{trainer}__{PLANS}__3d_fullres" / "fold_0"


def check_results(fold: Path) -> None:
    """One training, validated with both sets of heads."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (fold / "validation").glob("*.nii.gz"))
    assert len(cases) == 2
    for name in ("classification.csv", "classification_joint.csv"):
        with open(fold / "validation" / name, newline="") as file:
            assert [row["identifier"] for row in csv.DictReader(file)] == cases
    summary = json.loads((fold / "validation" / "classification_summary.json").read_text())
    assert list(summary) == ["refit", "joint"]
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) == 2
    assert len(list(fold.glob("training_log_*.txt"))) == 1
    (log,) = fold.glob("training_log_*.txt")
    assert len(re.findall("Epoch 0 ", log.read_text())) == 1
    checkpoint = load_checkpoint_file(fold / "checkpoint_final.pth")
    assert not [key for key in checkpoint["network_weights"] if key.startswith(("module.", "_orig_mod."))]
    assert (fold / "progress.png").is_file()


def test_two_processes_on_one_machine(tiny_training: Folders) -> None:
    finished = subprocess.run(train_command("-tr", "nnUNetTrainerMultitask", "-num_gpus", "2"), capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr[-3000:]
    check_results(fold_folder(tiny_training))
    assert "2 processes share batches of 2, each has 1" in finished.stdout
    assert finished.stdout.count("The last epoch is done") == 1


@pytest.mark.slow
def test_torchrun_on_two_machines(tiny_training: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    commands = [torchrun(node, port, "-tr", "nnUNetTrainerMultitask") for node in range(2)]
    with started(commands, environment) as nodes:
        outputs = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    check_results(fold_folder(tiny_training))
    assert "The last epoch is done" in outputs[0]
    assert "The last epoch is done" not in outputs[1]


def processes_with(token: str) -> list[int]:
    """Running processes that have an environment variable of this content."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if token.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (OSError, ValueError):  # gone, or somebody else's
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "kill"])
@pytest.mark.parametrize("machines", [1, 2])
def test_a_failing_process_ends_all_and_says_why(how: str, machines: int, tiny_training: Folders, tmp_path: Path) -> None:
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "failing_trainer.py").write_text(FAILING_TRAINER)
    token = f"token-of-{tmp_path.name}-{os.getpid()}"
    environment = {
        **os.environ,
        **{"nnUNet_extTrainer": str(tmp_path / "trainers"), "HOW": how, "nnUNet_n_proc_DA": "1", "TEST_TOKEN": token},
        **{"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    }
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ("-tr", "FailingTrainer")
    commands = [train_command(*options, "-num_gpus", "2")] if machines == 1 else [torchrun(node, port, *options) for node in range(2)]
    with started(commands, environment) as running:
        first_end, deadline = None, time.monotonic() + 500
        while any(process.poll() is None for process in running):
            assert time.monotonic() < deadline
            if first_end is None and any(process.poll() is not None for process in running):
                first_end = time.monotonic()
            time.sleep(0.2)
        assert first_end is None or time.monotonic() - first_end < 60
        outputs = [process.communicate()[0] for process in running]
    assert all(process.returncode not in (0, None) for process in running)
    cause = "no memory for case_003" if how == "raise" else "SIGKILL" if machines == 1 else "process 1 of 2 .* ended without a word"
    for output in outputs[:1]:
        assert re.search(cause, output), output[-3000:]
    deadline = time.monotonic() + 20
    while processes_with(token) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes_with(token)


def test_setup_of_nnunet_joins_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.run.run_training import cleanup_ddp, find_free_network_port, setup_ddp

    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    setup_ddp(0, 1)
    assert torch.distributed.get_world_size() == 1
    cleanup_ddp()
    assert not torch.distributed.is_initialized()
