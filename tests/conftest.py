"""Fixtures of several folders of tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty ``raw``, ``preprocessed`` and ``results`` folders that the environment points to; no worker processes."""
    folders = {}
    for name in ("raw", "preprocessed", "results"):
        folders[name] = tmp_path / f"nnUNet_{name}"
        folders[name].mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(folders[name]))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    for logger in ("wandb", "tensorboard", "csv"):
        monkeypatch.delenv(f"nnUNet_{logger}_enabled", raising=False)
    return folders


@pytest.fixture
def reference() -> Path:
    """Folder of the commands of stock nnU-Net 2.8.1; skips the test where there is none. Run them with ``run_reference``."""
    from stock_nnunet import reference_commands

    return reference_commands()


@pytest.fixture(scope="session")
def tiny_preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``nnUNet_preprocessed`` with two planned and preprocessed datasets, ``2d`` and ``3d_fullres``.

    ``Dataset001_Classes`` has four tasks, every fourth case unknown; ``Dataset002_Plain`` has none. Not to be changed.
    """
    from tiny_datasets import FINDINGS, GRADE, PLANNER, SIDE, SUBTYPE, write_tiny_dataset

    from nnunetv2.cli.plan_and_preprocess import plan_and_preprocess_entry

    root = tmp_path_factory.mktemp("tiny")
    tasks = {"subtype": SUBTYPE, "findings": FINDINGS, "grade": GRADE, "side": SIDE}
    with pytest.MonkeyPatch.context() as environment:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            environment.setenv(f"nnUNet_{name}", str(root / name))
        environment.setenv("nnUNet_def_n_proc", "1")
        write_tiny_dataset(root / "raw" / "Dataset001_Classes", classification=tasks, unknown_every=4)
        write_tiny_dataset(root / "raw" / "Dataset002_Plain")
        plan_and_preprocess_entry(["-d", "1", "2", "-pl", PLANNER, "-c", "2d", "3d_fullres", "-np", "1", "1", "-npfp", "1", "--no_pbar"])
    return root / "preprocessed"


@pytest.fixture
def tiny_training(nnunet_folders: dict[str, Path], tiny_preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """``nnunet_folders`` with the preprocessed tiny datasets and empty results."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
    return {**nnunet_folders, "preprocessed": tiny_preprocessed}
