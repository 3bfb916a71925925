"""Functions that numba compiles, where there is numba: compiled once per machine, which takes some seconds, and kept on disk."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any


@functools.cache
def machine_code(module: str, name: str) -> Callable[..., Any] | None:
    """A function of a module that needs numba; None where numba is not installed or cannot compile or keep it.

    Args:
        module: Full name.
        name: Of the function.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # numba raises whatever its installation, numpy's version or the file system make of it
        logging.getLogger(__name__).warning("%s runs without numba, several times slower: %s: %s", module, type(error).__name__, error)
        return None
