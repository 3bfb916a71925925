"""Checks that everything that reads images or segmentations applies to their values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Other tools leave values like 1.0000153 when they resample a segmentation; farther off, a value is no label.
TOLERANCE_OF_LABELS = 1e-3


class RoundedLabelsWarning(UserWarning):
    """A segmentation holds values that are almost, but not exactly, whole numbers."""


def whole_label_values(seg: np.ndarray, case: str) -> np.ndarray:
    """The segmentation with whole numbers only, in its own dtype.

    Values within 0.001 of a whole number are rounded, with one warning for the case. The array is returned
    as it is, not copied, if nothing has to be rounded.

    Args:
        seg: Segmentation of any shape and dtype.
        case: Identifier or file, for messages.

    Raises:
        ValueError: If a value is not finite or farther from a whole number.
    """
    if not np.issubdtype(seg.dtype, np.inexact):
        return seg
    check_finite(seg, case, what="segmentation")
    whole = np.rint(seg)
    if np.array_equal(whole, seg):
        return seg
    largest_distance_at = np.argmax(np.abs(seg - whole))
    value, nearest = float(seg.flat[largest_distance_at]), float(whole.flat[largest_distance_at])
    # float32 holds 1.001 as 1.00100005, which the tolerance means to include
    if abs(value - nearest) > TOLERANCE_OF_LABELS * (1 + 1e-3):
        raise ValueError(
            f"Case {case}: the segmentation holds the value {value:g}, but labels are whole numbers. "
            "It was probably resampled with interpolation or is a probability map; resample it with nearest neighbour or save label values."
        )
    warnings.warn(
        f"Case {case}: the segmentation holds values that are not quite whole numbers, such as {value:.7g}; they are rounded.",
        RoundedLabelsWarning,
        stacklevel=2,
    )
    return whole


def check_finite(image: np.ndarray, case: str, what: str = "image") -> None:
    """Raise ValueError if an image ``(C, ...)`` has NaN or infinite voxels."""
    if not np.issubdtype(image.dtype, np.inexact):
        return
    # The sum is finite unless a voxel is not finite or the sum overflows; only then look at every voxel.
    with np.errstate(all="ignore"):
        if np.isfinite(image.sum(dtype=np.float64)):
            return
    finite = np.isfinite(image)
    if finite.all():
        return
    channels = [str(channel) for channel in range(len(image)) if not finite[channel].all()] if len(image) > 1 else []
    number_of_nan = int(np.isnan(image).sum())
    number_of_infinite = int(image.size - finite.sum()) - number_of_nan
    raise ValueError(not_finite_message(f"Case {case}", what, number_of_nan, number_of_infinite, channels))


def not_finite_message(case: str, what: str, number_of_nan: int, number_of_infinite: int, channels: Sequence[str] = ()) -> str:
    """What to say about an image with NaN or infinite voxels."""
    found = [f"{number} {name}" for number, name in ((number_of_nan, "NaN"), (number_of_infinite, "infinite")) if number]
    where = f" in channel {', '.join(channels)}" if channels else ""
    return (
        f"{case}: the {what} has {' and '.join(found)} {'voxel' if number_of_nan + number_of_infinite == 1 else 'voxels'}{where}. "
        "Replace them, for example with the value of the background, before going on."
    )


def declared_labels(labels: Mapping[str, Any]) -> list[int]:
    """All label values of dataset.json in ascending order, those of regions and the ignore label included."""
    values = (value if isinstance(value, (list, tuple)) else (value,) for value in labels.values())
    return sorted({int(entry) for entries in values for entry in entries})


def undeclared_labels(seg: np.ndarray, declared: Sequence[int]) -> list[int]:
    """Values of a segmentation that dataset.json does not declare, in ascending order.

    Args:
        seg: Whole numbers, any shape.
        declared: In ascending order, see :func:`declared_labels`.
    """
    # Declared values are consecutive as a rule, so that the smallest and the largest value tell; looking for all values takes much longer.
    is_consecutive = len(declared) > 0 and declared[-1] - declared[0] == len(declared) - 1
    if seg.size == 0 or (is_consecutive and declared[0] <= seg.min() and seg.max() <= declared[-1]):
        return []
    return [int(value) for value in np.setdiff1d(seg, declared)]


def undeclared_message(found: Sequence[int], declared: Sequence[int]) -> str:
    """What to say about such values."""
    return (
        f"the segmentation holds labels that dataset.json does not declare: {listed_values(found)} (declared: {listed_values(declared)}). "
        "Declare them in 'labels', or correct the file"
    )


def listed_values(values: Sequence[int]) -> str:
    """Numbers with commas, the first fifty."""
    return ", ".join(map(str, values[:50])) + (f", ... ({len(values)} values)" if len(values) > 50 else "")
