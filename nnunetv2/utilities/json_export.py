"""Conversion of numpy and other types to what JSON can hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def recursive_fix_for_json_export(my_dict: dict) -> None:
    """Replace, in place, keys and values that JSON cannot hold: numpy numbers and arrays, sets, paths, devices, dtypes.

    Tuples stay tuples (JSON writes them as lists); arrays become nested lists; anything unknown raises a TypeError that
    names the key.
    """
    for key in list(my_dict):
        plain_key = _fixed_scalar(key) if isinstance(key, np.generic) else key
        value = my_dict.pop(key) if plain_key is not key else my_dict[key]
        try:
            my_dict[plain_key] = _fixed(value)
        except TypeError as error:
            raise TypeError(f"Key {key!r}: {error}") from None


def fix_types_iterable(iterable: Iterable, output_type: Callable[[Iterable], Any]) -> Any:
    """The entries of `iterable`, converted, in a container made by `output_type`."""
    return output_type([_fixed(entry) for entry in iterable])


def _fixed(value: Any) -> Any:
    """One value in a form that JSON can hold."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        recursive_fix_for_json_export(value)
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return _fixed_scalar(value)
    if isinstance(value, tuple):
        return fix_types_iterable(value, tuple)
    if isinstance(value, list):
        return fix_types_iterable(value, list)
    if isinstance(value, (set, frozenset)):
        return fix_types_iterable(sorted(value), list)
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype", "Size"):
        return list(value) if type(value).__name__ == "Size" else str(value)
    if hasattr(value, "tolist"):  # a torch tensor, without importing torch
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON.")


def _fixed_scalar(value: np.generic) -> Any:
    """A numpy scalar as the Python number, bool or text it stands for."""
    if isinstance(value, np.datetime64):
        return str(value)
    return value.item()
