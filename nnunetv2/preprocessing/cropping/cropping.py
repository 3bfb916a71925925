"""Crop a case to the region where any channel is non-zero."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BoundingBox = list[list[int]]  # [[low, high], ...] per spatial axis, half open


def create_nonzero_mask(data: np.ndarray) -> np.ndarray:
    """Voxels at which any channel is non-zero, holes filled.

    Args:
        data: Image ``(C, X, Y, Z)`` or ``(C, X, Y)``; not modified.

    Returns:
        Boolean mask without channel axis. A hole is a region of zeros that does not reach the border of the image, so
        along an axis of length 1 nothing can be enclosed.
    """
    mask = _nonzero_in_any_channel(data)
    box = tuple(slice(low, high) for low, high in _bounding_box(mask))
    # Everything outside the box is zero and reaches the border, so holes are found, and searched, inside it only.
    mask[box] = _fill_holes(mask[box])
    return mask


def crop_to_nonzero(data: np.ndarray, seg: np.ndarray | None = None, nonzero_label: int = -1) -> tuple[np.ndarray, np.ndarray, BoundingBox]:
    """Crop to the bounding box of the non-zero region.

    Args:
        data: Image ``(C, X, Y, Z)``.
        seg: Segmentation ``(1, X, Y, Z)`` or None. **Modified in place**: background outside the non-zero region
            becomes ``nonzero_label``.
        nonzero_label: Value that marks voxels outside the non-zero region.

    Returns:
        Views of ``data`` and ``seg`` inside the box, and the box (the full extent where everything is zero). Without a
        segmentation the second item is an int8 array: 0 inside the non-zero region, ``nonzero_label`` outside.
    """
    mask = _nonzero_in_any_channel(data)
    bbox = _bounding_box(mask)
    box = tuple(slice(low, high) for low, high in bbox)
    outside = ~_fill_holes(mask[box])
    data = data[(slice(None), *box)]
    if seg is None:
        marked = np.zeros((1, *outside.shape), dtype=np.int8)
        marked[0][outside] = nonzero_label
        return data, marked, bbox
    seg = seg[(slice(None), *box)]
    if outside.any():
        seg[(seg == 0) & outside[None]] = nonzero_label
    return data, seg, bbox


def _nonzero_in_any_channel(data: np.ndarray) -> np.ndarray:
    """Boolean mask ``(X, Y, Z)``, one channel at a time to keep the temporary small."""
    mask = data[0] != 0
    for channel in data[1:]:
        mask |= channel != 0
    return mask


def _bounding_box(mask: np.ndarray) -> BoundingBox:
    """Tight half-open box of the True voxels; the full extent if there are none."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if occupied.size == 0:
            return [[0, n] for n in mask.shape]
        box.append([int(occupied[0]), int(occupied[-1]) + 1])
    return box


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """``scipy.ndimage.binary_fill_holes`` by one labelling pass instead of repeated dilation; returns a new array."""
    if mask.all() or min(mask.shape) == 1:
        return mask.copy()
    components, number = ndimage.label(~mask)
    reaches_border = np.zeros(number + 1, dtype=bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            reaches_border[np.take(components, end, axis=axis)] = True
    reaches_border[0] = False  # component 0 is the mask itself
    return ~reaches_border[components]
