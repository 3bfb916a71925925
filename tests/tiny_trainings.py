"""Trainers of the tiny datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_datasets import PLANS

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_io import load_json

CPU = torch.device("cpu")


def make_trainer(
    trainer_class: type[nnUNetTrainer],
    preprocessed: Path,
    *,
    dataset: str = "Dataset001_Classes",
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    seed: int | None = 0,
    **options: int,
) -> Any:
    """A trainer of a tiny dataset, two epochs of two steps unless asked otherwise."""
    folder = preprocessed / dataset
    trainer = trainer_class(load_json(folder / f"{PLANS}.json"), configuration, fold, load_json(folder / "dataset.json"), CPU)
    trainer.seed = seed
    length = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    trainer.use_run_options({**length, **options})
    return trainer


def weights(trainer: nnUNetTrainer) -> dict[str, torch.Tensor]:
    """A copy of the network's weights."""
    return {name: value.detach().clone() for name, value in trainer.network.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Whether nested containers of tensors and values are equal, bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first.cpu(), second.cpu())
    if isinstance(first, dict):
        return isinstance(second, dict) and list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second))
    return first == second or (first != first and second != second)  # NaN
