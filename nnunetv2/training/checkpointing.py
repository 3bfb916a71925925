"""What a training needs to go on exactly where it stopped: its checkpoint and the random states in it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nnunetv2.utilities.checkpoint_io import CheckpointError, load_checkpoint_file, save_checkpoint_file, tensors_only

__all__ = [
    "CheckpointError",
    "load_checkpoint_file",
    "restore_rng_state",
    "rng_state",
    "save_checkpoint_file",
    "tensors_only",
]


def rng_state() -> dict[str, Any]:
    """State of the random generators of Python, numpy and torch (CPU and GPUs), as tensors and numbers."""
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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`rng_state` returned, on this machine's GPUs as far as there are as many."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy_state["words"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy_state["algorithm"], words, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)
