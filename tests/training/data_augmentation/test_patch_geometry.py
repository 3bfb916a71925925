"""How far patches are turned, and along which axes they are mirrored."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.data_augmentation.patch_geometry import blocked_patch_axes, restrict_to_flip_insensitive, rotation_and_mirroring

FULL_TURN, SMALL_TURN = np.pi, np.deg2rad(30)


@pytest.mark.parametrize(
    ("patch_size", "limit", "dummy_2d", "initial"),
    [
        ((128, 128, 128), SMALL_TURN, False, (205, 205, 205)),
        ((20, 320, 256), FULL_TURN, True, (20, 376, 376)),
        ((512, 512), FULL_TURN, False, (602, 602)),
        ((320, 192), np.deg2rad(15), False, (422, 225)),
    ],
)
def test_rotation_and_mirroring_by_patch_size(patch_size, limit, dummy_2d, initial) -> None:
    rotation, is_dummy, initial_patch_size, axes = rotation_and_mirroring(patch_size)
    assert rotation == pytest.approx((-limit, limit)) and is_dummy is dummy_2d
    assert tuple(initial_patch_size) == initial and axes == tuple(range(len(patch_size)))


def test_flip_sensitive_axes_are_neither_mirrored_nor_turned_far() -> None:
    rotation, _, initial, axes = rotation_and_mirroring((512, 512), blocked_axes=(1,))
    assert rotation == pytest.approx((-SMALL_TURN, SMALL_TURN)) and axes == (0,)
    assert tuple(initial) != (602, 602)
    rotation, _, _, axes = rotation_and_mirroring((320, 192), blocked_axes=(0, 1))
    assert rotation == pytest.approx((-np.deg2rad(15), np.deg2rad(15))) and axes == ()


def test_dummy_2d_turns_freely_about_a_flip_sensitive_axis_0() -> None:
    rotation, _, _, axes = rotation_and_mirroring((20, 320, 256), blocked_axes=(0,))
    assert rotation == pytest.approx((-FULL_TURN, FULL_TURN)) and axes == (1, 2)
    assert rotation_and_mirroring((20, 320, 256), blocked_axes=(2,))[0] == pytest.approx((-SMALL_TURN, SMALL_TURN))


def test_restriction_takes_what_a_users_trainer_returned() -> None:
    assert restrict_to_flip_insensitive((-0.1, 2.0), None, (0,)) == ((-0.1, pytest.approx(SMALL_TURN)), ())
    assert restrict_to_flip_insensitive((-2.0, 2.0), (0, 1), ()) == ((-2.0, 2.0), (0, 1))


@pytest.mark.parametrize(
    ("file_axes", "transpose_forward", "patch_axes", "expected"),
    [
        ((0,), (0, 1, 2), 3, (2,)),  # arrays are (z, y, x)
        ((2,), (0, 1, 2), 3, (0,)),
        ((0,), (2, 0, 1), 3, (0,)),  # x comes first after transposing
        ((0, 1), (1, 0, 2), 3, (0, 2)),
        ((0,), (0, 1, 2), 2, (1,)),  # 2D patches are (y, x); also photographs, read as (1, y, x)
        ((1,), (0, 1, 2), 2, (0,)),
        ((2,), (0, 1, 2), 2, ()),  # the axis across the slices is not in the patch
        ((0,), (2, 0, 1), 2, ()),
        ((1,), (2, 0, 1), 2, (1,)),
        ((), (0, 1, 2), 3, ()),
    ],
)
def test_axes_of_the_file_become_axes_of_the_patch(file_axes, transpose_forward, patch_axes, expected) -> None:
    assert blocked_patch_axes(file_axes, transpose_forward, patch_axes) == expected


def test_an_axis_that_no_image_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="x=0"):
        blocked_patch_axes((3,), (0, 1, 2), 3)
