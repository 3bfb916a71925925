"""Conversion of numpy and other types to what JSON can hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


def json_ready(obj: Any) -> Any:
    """A copy of `obj` that JSON can hold; see :func:`recursive_fix_for_json_export`."""
    return _fixed(obj, in_place=False)


def recursive_fix_for_json_export(my_dict: dict) -> None:
    """Replace, in place, keys and values that JSON cannot hold: numpy numbers and arrays, sets, paths, devices, dtypes.

    Tuples stay tuples (JSON writes them as lists); arrays become nested lists; anything unknown raises a TypeError that
    names the key.
    """
    fixed = [(_fixed_key(key), _fixed_entry(key, value, in_place=True)) for key, value in my_dict.items()]
    my_dict.clear()
    my_dict.update(fixed)


def fix_types_iterable(iterable: Iterable, output_type: Callable[[Iterable], Any]) -> Any:
    """The entries of `iterable`, converted, in a container made by `output_type`."""
    return output_type([_fixed(entry, in_place=True) for entry in iterable])


def _fixed(value: Any, *, in_place: bool) -> Any:
    """One value in a form that JSON can hold; dictionaries are changed or copied."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict) and in_place:
        recursive_fix_for_json_export(value)
        return value
    if isinstance(value, Mapping):
        return {_fixed_key(key): _fixed_entry(key, entry, in_place=in_place) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        entries = [_fixed(entry, in_place=in_place) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    if isinstance(value, (set, frozenset)):
        return [_fixed(entry, in_place=in_place) for entry in sorted(value)]
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value)
    if hasattr(value, "tolist"):  # a torch tensor, without importing torch
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON.")


def _fixed_entry(key: Any, value: Any, *, in_place: bool) -> Any:
    """The value of a key; errors say which."""
    try:
        return _fixed(value, in_place=in_place)
    except TypeError as error:
        raise TypeError(f"Key {key!r}: {error}") from None


def _fixed_key(key: Any) -> Any:
    """Keys: numpy numbers become plain ones; what JSON cannot use as a key becomes text."""
    if isinstance(key, np.generic):
        return key.item()
    return key if key is None or isinstance(key, (str, int, float, bool)) else str(key)
