"""Collating, softmax, gathering and initialisation."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2.run.processes import cleanup_ddp, find_free_network_port, setup_ddp
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.helpers import dummy_context, empty_cache, softmax_helper_dim0, softmax_helper_dim1
from nnunetv2.utilities.network_initialization import InitWeights_He


def test_outputs_are_joined_by_type() -> None:
    steps = [
        {"loss": np.float32(1), "tp": np.array([1, 2]), "keys": ["a"], "n": 3},
        {"loss": np.float32(2), "tp": np.array([3, 4]), "keys": ["b", "c"], "n": 4},
    ]
    joined = collate_outputs(steps)
    assert joined["loss"] == [1, 2]
    assert joined["tp"].tolist() == [[1, 2], [3, 4]]
    assert joined["keys"] == ["a", "b", "c"]
    assert joined["n"] == [3, 4]


def test_an_output_of_another_type_is_named() -> None:
    with pytest.raises(ValueError, match="'extra' is a str"):
        collate_outputs([{"extra": "text"}])


def test_softmax_axes() -> None:
    logits = torch.randn(2, 3, 4)
    assert torch.allclose(softmax_helper_dim0(logits).sum(0), torch.ones(3, 4))
    assert torch.allclose(softmax_helper_dim1(logits).sum(1), torch.ones(2, 4))


def test_contexts_and_caches_on_the_cpu() -> None:
    with dummy_context():
        empty_cache(torch.device("cpu"))
    with pytest.raises(KeyError), dummy_context():
        raise KeyError


def test_convolutions_get_zero_biases_and_scaled_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(4, 4))
    linear = network[1].weight.detach().clone()
    network.apply(InitWeights_He(1e-2))
    assert (network[0].bias == 0).all()
    assert abs(network[0].weight.std().item() - (2 / (1 + 1e-4) / (64 * 9)) ** 0.5) < 0.002
    assert torch.equal(network[1].weight, linear)


def _gather(rank: int, port: int, folder: str) -> None:
    """One of two processes: gathers its value and writes what it got and its gradient."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    setup_ddp(rank, 2)
    value = torch.tensor([1.0 + rank, 5.0], requires_grad=True)
    gathered = AllGatherGrad.apply(value)
    (gathered.sum(0) ** 2).sum().backward()
    np.save(os.path.join(folder, f"{rank}.npy"), np.stack([*gathered.detach().numpy(), value.grad.numpy()]))
    cleanup_ddp()


def test_gathered_values_are_stacked_and_gradients_summed_over_processes(tmp_path: object) -> None:
    torch.multiprocessing.spawn(_gather, args=(find_free_network_port(), str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        first, second, gradient = np.load(os.path.join(str(tmp_path), f"{rank}.npy"))
        assert (first.tolist(), second.tolist()) == ([1, 5], [2, 5])
        # each process has the loss (1 + 2)^2 + (5 + 5)^2; both send their gradient back
        assert gradient.tolist() == [12, 40]
