"""Step outputs of an epoch, joined."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np


def collate_outputs(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the dictionaries that ``train_step`` or ``validation_step`` returned.

    Returns:
        By key: a list of scalars, arrays stacked along a new first axis, or lists concatenated.

    Raises:
        ValueError: If a value is of another type.
    """
    collated: dict[str, Any] = {}
    for key, first in outputs[0].items():
        values = [output[key] for output in outputs]
        if isinstance(first, (Number, np.generic)) or (isinstance(first, np.ndarray) and first.ndim == 0):
            collated[key] = values
        elif isinstance(first, np.ndarray):
            collated[key] = np.stack(values)
        elif isinstance(first, list):
            collated[key] = [item for value in values for item in value]
        else:
            raise ValueError(f"Step output {key!r} is a {type(first).__name__}; expected a number, a numpy array or a list.")
    return collated
