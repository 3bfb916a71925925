"""Numpy values to what JSON can hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def json_ready(obj: Any) -> Any:
    """A copy in which numpy arrays, numpy scalars, tuples, sets, paths and devices are lists, numbers and strings."""
    if isinstance(obj, Mapping):
        return {_json_key(key): json_ready(value) for key, value in obj.items()}
    if isinstance(obj, np.ndarray):
        return obj.tolist()
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, (list, tuple, set, frozenset)):
        return [json_ready(value) for value in obj]
    if obj is None or isinstance(obj, (str, int, float, bool)):
        return obj
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if type(obj).__module__ == "torch" and type(obj).__name__ == "device":
        return str(obj)
    raise TypeError(f"{type(obj).__module__}.{type(obj).__name__} cannot be written as JSON: {obj!r}")


def recursive_fix_for_json_export(my_dict: dict) -> None:
    """Replace, in place, what JSON cannot hold."""
    fixed = json_ready(my_dict)
    my_dict.clear()
    my_dict.update(fixed)


def fix_types_iterable(iterable: Iterable, output_type: type) -> Any:
    """The iterable as ``output_type`` with plain values."""
    return output_type(json_ready(value) for value in iterable)


def _json_key(key: Any) -> Any:
    """Dictionary keys: numpy numbers become plain ones, paths and tuples strings."""
    if isinstance(key, np.generic):
        return key.item()
    return key if key is None or isinstance(key, (str, int, float, bool)) else str(key)
