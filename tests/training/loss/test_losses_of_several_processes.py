from __future__ import annotations

from pathlib import Path

import torch
from training.loss.two_processes import data, gradients, run_process

from nnunetv2.run.processes import find_free_network_port


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_process, (find_free_network_port(), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = gradients(*data())
    torch.testing.assert_close(halves[0]["dice"], whole["dice"])
    torch.testing.assert_close((halves[0]["classification"] + halves[1]["classification"]) / 2, whole["classification"])
    for kind in ("dice gradient", "classification gradient"):
        # DDP takes the mean of the processes' gradients of shared weights
        torch.testing.assert_close(torch.cat([half[kind] for half in halves]) / 2, whole[kind])
