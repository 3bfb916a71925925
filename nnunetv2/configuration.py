"""Default numbers of processes and the anisotropy threshold.

``default_num_processes`` follows the environment variable ``nnUNet_def_n_proc`` and ``default_n_proc_DA`` follows
``nnUNet_n_proc_DA``; both are looked up when they are imported from here, so a change of the environment before that counts.
"""

from __future__ import annotations

import os
from typing import Any

# A volume counts as anisotropic if its largest spacing is more than this many times its smallest one.
ANISO_THRESHOLD = 3

_USUAL_NUM_PROCESSES = 8


def _default_num_processes() -> int:
    """``nnUNet_def_n_proc``, or 8."""
    text = os.environ.get("nnUNet_def_n_proc", "").strip()
    if not text:
        return _USUAL_NUM_PROCESSES
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(
            f"The environment variable nnUNet_def_n_proc is {text!r}; expected a whole number, 1 or more. Correct or unset it."
        )
    return value


def __getattr__(name: str) -> Any:
    if name == "default_num_processes":
        return _default_num_processes()
    if name == "default_n_proc_DA":
        from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA  # this module lies below utilities

        return get_allowed_n_proc_DA()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
