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
    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    return folders
