"""How far a patch may be turned and mirrored, and how much has to be read for that: numbers alone, without the library of transforms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

if TYPE_CHECKING:
    from batchgeneratorsv2.helpers.scalar_type import RandomScalar

# The patch is read large enough for these scales although scaling goes further; corners are padded then.
INITIAL_PATCH_SCALE_RANGE = (0.85, 1.25)
FLIP_SENSITIVE_ROTATION = np.deg2rad(30.0)  # rotations that move a flip-sensitive axis stay within +- this angle
ELONGATED_2D_RATIO = 1.5  # 2D patches longer than this rotate little, so that they do not leave the image


def rotation_and_mirroring(
    patch_size: Sequence[int], blocked_axes: Sequence[int] = (), scale_range: Sequence[float] = INITIAL_PATCH_SCALE_RANGE
) -> tuple[tuple[float, float], bool, np.ndarray, tuple[int, ...]]:
    """How much a patch of this size may be turned and mirrored, and what has to be read for that.

    Args:
        patch_size: Voxels per axis, two or three axes.
        blocked_axes: Patch axes whose mirroring would change a class (:func:`blocked_patch_axes`).
        scale_range: Scale factors that what is read has to suffice for.

    Returns:
        Rotation range in radians, whether rotation and scaling stay within planes (anisotropic 3D), the patch size
        before augmentation, and the axes that may be mirrored.
    """
    do_dummy_2d = False
    if len(patch_size) == 2:
        elongated = max(patch_size) / min(patch_size) > ELONGATED_2D_RATIO
        limit = np.deg2rad(15.0 if elongated else 180.0)
    elif len(patch_size) == 3:
        do_dummy_2d = max(patch_size) / patch_size[0] > ANISO_THRESHOLD
        limit = np.deg2rad(180.0 if do_dummy_2d else 30.0)
    else:
        raise ValueError(f"Patch size {tuple(patch_size)} has {len(patch_size)} axes; 2 or 3 are possible.")
    rotation, mirror_axes = restrict_to_flip_insensitive(
        (-limit, limit), tuple(range(len(patch_size))), blocked_axes, within_planes_across_axis_0=do_dummy_2d
    )
    initial_patch_size = get_patch_size(patch_size, rotation, rotation, rotation, scale_range)
    if do_dummy_2d:
        initial_patch_size[0] = patch_size[0]
    return rotation, do_dummy_2d, initial_patch_size, mirror_axes


def restrict_to_flip_insensitive(
    rotation: RandomScalar,
    mirror_axes: Sequence[int] | None,
    blocked_axes: Sequence[int],
    *,
    within_planes_across_axis_0: bool = False,
) -> tuple[RandomScalar, tuple[int, ...]]:
    """Takes mirroring over blocked axes away, and large rotations that move them (half a turn is two mirrorings).

    The rotation may be whatever batchgeneratorsv2 takes: a range, one angle, or a function that draws one; it stays of that kind.
    With ``within_planes_across_axis_0`` (dummy 2D) axis 0 does not move, so it does not limit the rotation.
    """
    allowed = tuple(axis for axis in mirror_axes or () if axis not in blocked_axes)
    moved = [axis for axis in blocked_axes if not (within_planes_across_axis_0 and axis == 0)]
    return _small_rotation(rotation) if moved else rotation, allowed


def _small_rotation(rotation: RandomScalar) -> RandomScalar:
    """The rotation within the limits for flip-sensitive axes."""
    if callable(rotation):
        return functools.partial(_drawn_small_angle, rotation)
    if isinstance(rotation, (tuple, list)):
        return tuple(_small_angle(angle) for angle in rotation)
    return _small_angle(rotation)


def _drawn_small_angle(draw: Callable[..., float], *args: Any, **kwargs: Any) -> float:
    return _small_angle(draw(*args, **kwargs))


def _small_angle(angle: float) -> float:
    return min(max(angle, -FLIP_SENSITIVE_ROTATION), FLIP_SENSITIVE_ROTATION)


def blocked_patch_axes(flip_sensitive_axes: Sequence[int], transpose_forward: Sequence[int], num_patch_axes: int) -> tuple[int, ...]:
    """Patch axes that correspond to axes of the image file.

    Every reader returns arrays whose spatial axes are those of the file in reverse, ``(z, y, x)``; 2D images become
    ``(1, y, x)``. (For the readers ``...WithReorient`` the file is the one reoriented to RAS.) Preprocessing permutes
    these axes by ``transpose_forward``, and 2D configurations drop the first of the result.

    Args:
        flip_sensitive_axes: Axes as stored in the file, x=0, y=1, z=2.
        transpose_forward: Of the plans; entry i is the array axis that becomes axis i.
        num_patch_axes: 2 or 3.

    Returns:
        Sorted axes of the patch; an axis that a 2D patch does not have is left out.
    """
    wrong = [axis for axis in flip_sensitive_axes if axis not in (0, 1, 2)]
    if wrong:
        raise ValueError(f"flip_sensitive_axes {list(flip_sensitive_axes)}: {wrong} is no axis of an image; x=0, y=1, z=2.")
    dropped = len(transpose_forward) - num_patch_axes
    positions = (list(transpose_forward).index(2 - axis) - dropped for axis in set(flip_sensitive_axes))
    return tuple(sorted(position for position in positions if position >= 0))
