"""How much image a patch needs so that rotating and scaling it does not run out of image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def get_patch_size(
    final_patch_size: Sequence[int],
    rot_x: float | Sequence[float],
    rot_y: float | Sequence[float],
    rot_z: float | Sequence[float],
    scale_range: Sequence[float],
) -> np.ndarray:
    """Voxels to read per axis so that the augmented patch is (nearly) covered by image.

    Args:
        final_patch_size: What the network sees; two or three axes.
        rot_x: Angle in radians about axis 0, or its range. With two axes the only rotation.
        rot_y: The same about axis 1.
        rot_z: The same about axis 2.
        scale_range: Smallest and largest scale factor; the result is divided by the smaller.

    Returns:
        Integer array, one entry per axis, each at least that of ``final_patch_size`` for scales up to 1.
    """
    size = np.asarray(final_patch_size, dtype=float)
    angles = [min(float(np.max(np.abs(angle))), np.pi / 2) for angle in (rot_x, rot_y, rot_z)]
    needed = size.copy()
    planes = [(1, 2), (0, 2), (0, 1)] if size.size == 3 else [(0, 1)]
    for angle, (first, second) in zip(angles, planes):
        needed = np.maximum(needed, np.abs(_rotated_in_plane(size, angle, first, second)))
    return (needed / min(scale_range)).astype(int)


def _rotated_in_plane(size: np.ndarray, angle: float, first: int, second: int) -> np.ndarray:
    """The size vector turned by the angle within the plane of two axes."""
    # Turning about axis 1 goes the other way round than about axes 0 and 2 (right-handed matrices).
    sine = -np.sin(angle) if (first, second) == (0, 2) else np.sin(angle)
    turned = size.copy()
    turned[first] = size[first] * np.cos(angle) + size[second] * sine
    turned[second] = -size[first] * sine + size[second] * np.cos(angle)
    return turned
