"""What a training needs to go on exactly where it stopped: its checkpoint and the random states in it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2.utilities.checkpoint_io import CheckpointError, load_checkpoint_file, save_checkpoint_file, tensors_only

__all__ = [
    "CheckpointError",
    "load_checkpoint_file",
    "newest_checkpoint",
    "restore_rng_state",
    "rng_state",
    "save_checkpoint_file",
    "tensors_only",
]

# Any of them can be continued; of equally old ones the first is taken.
CHECKPOINTS = (
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_best.pth",
    "checkpoint_best_joint.pth",
    "checkpoint_best_classification.pth",
)


def rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """State of the random generators of Python, numpy and torch (CPU and GPUs), as tensors and numbers.

    Args:
        device: The only GPU that counts; None: all of this machine.
    """
    version, python_words, python_gauss = random.getstate()
    algorithm, numpy_words, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": {"version": version, "words": torch.tensor(python_words, dtype=torch.int64), "gauss": python_gauss},
        "numpy": {
            "algorithm": str(algorithm),
            "words": torch.from_numpy(numpy_words.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(gpu) for gpu in _gpus(device)],
    }


def restore_rng_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Restore what :func:`rng_state` returned for the same ``device``, on this machine's GPUs as far as there are as many."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy_state["words"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy_state["algorithm"], words, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    for gpu, cuda_state in zip(_gpus(device), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state.cpu(), gpu)


def _gpus(device: torch.device | None) -> list[torch.device | int]:
    """The given GPU, or all of this machine; none for a device that is no GPU."""
    if device is not None:
        return [device] if device.type == "cuda" else []
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def newest_checkpoint(folder: str | os.PathLike, report: Callable[[str], None] = print) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint of a fold that is farthest in the training.

    Args:
        folder: Folder of the fold.
        report: Told about every checkpoint that cannot be read; the others count.

    Returns:
        Its path and its content on the CPU; None and None if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, but none that can be read: a new training would replace them.
    """
    newest: tuple[Path | None, dict[str, Any] | None] = (None, None)
    unreadable = []
    for path in (Path(folder, name) for name in CHECKPOINTS):
        if not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint_file(path, map_location="cpu")
            if "current_epoch" not in checkpoint:
                raise CheckpointError(f"{path} is no checkpoint of a training: it lacks current_epoch.")
        except CheckpointError as error:
            report(f"WARNING: {error}")
            unreadable.append(path.name)
            continue
        if newest[1] is None or checkpoint["current_epoch"] > newest[1]["current_epoch"]:
            newest = (path, checkpoint)
    if unreadable and newest[0] is None:
        raise CheckpointError(
            f"None of the checkpoints in {os.fspath(folder)} can be read: {', '.join(unreadable)}. Restore one of them from a backup, "
            "or remove them to train from the start."
        )
    return newest
