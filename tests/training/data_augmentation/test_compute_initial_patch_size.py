"""Patch size before augmentation, against values of nnU-Net v2 2.8.1."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size


@pytest.mark.parametrize(
    ("patch_size", "degrees", "expected"),
    [
        ((128, 128, 128), 30, (205, 205, 205)),
        ((40, 56, 40), 30, (73, 80, 64)),
        ((128, 160, 112), 30, (224, 228, 189)),
        ((20, 320, 256), 180, (376, 376, 376)),
        ((16, 256, 224), 180, (301, 301, 301)),
        ((512, 512), 180, (602, 602)),
        ((320, 192), 15, (422, 225)),
    ],
)
def test_equals_reference(patch_size, degrees, expected) -> None:
    angle = np.deg2rad(degrees)
    assert tuple(get_patch_size(patch_size, (-angle, angle), (-angle, angle), (-angle, angle), (0.85, 1.25))) == expected


def test_a_single_angle_is_as_good_as_a_range() -> None:
    assert tuple(get_patch_size((40, 56, 40), 0.5, 0.5, 0.5, (1, 1))) == tuple(
        get_patch_size((40, 56, 40), (-0.5, 0.1), (0, 0.5), (-0.5, 0.5), (1, 1))
    )
