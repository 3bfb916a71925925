"""Look up a resampling function by the name a plan holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class


def recursive_find_resampling_fn_by_name(resampling_fn: str) -> Callable:
    """Function of that name below ``nnunetv2.preprocessing.resampling``.

    Raises:
        RuntimeError: If there is none.
    """
    folder = Path(__file__).parent
    found = recursive_find_python_class(str(folder), resampling_fn, "nnunetv2.preprocessing.resampling")
    if found is None:
        raise RuntimeError(
            f"The plans ask for the resampling function {resampling_fn!r}, but no module in {folder} defines it. "
            "Put the file that defines it there, or correct 'resampling_fn_*' in the plans."
        )
    return found
