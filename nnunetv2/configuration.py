"""Defaults that apply everywhere."""

from __future__ import annotations

import os
from typing import Any

ANISO_THRESHOLD = 3  # ratio of voxel sizes from which an axis counts as of low resolution
default_num_processes = int(os.environ.get("nnUNet_def_n_proc") or 8)


def __getattr__(name: str) -> Any:
    if name == "default_n_proc_DA":
        from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

        return get_allowed_n_proc_DA()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
