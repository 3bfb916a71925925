"""Functions that numba compiles, where there is numba: compiled once per machine, which takes some seconds, and kept on disk."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any


def machine_code(module: str, name: str) -> Callable[..., Any] | None:
    """A function of a module that needs numba; None, with a warning, where numba is not installed or cannot compile or keep it.

    Args:
        module: Full name.
        name: Of the function.
    """
    found = machine_code_module(module)
    return None if found is None else getattr(found, name)


@functools.cache
def machine_code_module(module: str) -> ModuleType | None:
    """Such a module, imported once; importing it compiles."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # numba raises whatever its installation, numpy's version or the file system make of it
        part = module.rsplit("compiled_", 1)[-1]
        logging.getLogger(__name__).warning("numba cannot be used (%s), which is slower: %s: %s", part, type(error).__name__, error)
        return None
