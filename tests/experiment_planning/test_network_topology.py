"""Strides, kernels and divisible patch sizes."""

from __future__ import annotations

import numpy as np

from nnunetv2.experiment_planning.experiment_planners.network_topology import (
    get_pool_and_conv_props,
    get_shape_must_be_divisible_by,
    pad_shape,
)


def test_shapes_are_padded_up_to_the_next_multiple() -> None:
    assert pad_shape((35, 50, 36), [8, 8, 8]).tolist() == [40, 56, 40]
    assert pad_shape((16, 17), 16).tolist() == [16, 32]
    assert pad_shape((15.5, 16), [4, 4]).tolist() == [16, 16]


def test_divisors_are_powers_of_two() -> None:
    assert get_shape_must_be_divisible_by([0, 1, 3]).tolist() == [1, 2, 8]


def test_isotropic_images_are_halved_along_all_axes() -> None:
    pools, strides, kernels, patch, divisors = get_pool_and_conv_props((1, 1, 1), (36, 50, 35))
    assert pools == [3, 3, 3]
    assert strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert kernels == [[3, 3, 3]] * 4
    assert patch.tolist() == [40, 56, 40] and divisors.tolist() == [8, 8, 8]
    assert patch.dtype.kind == "i"


def test_thick_slices_wait_until_the_plane_has_caught_up() -> None:
    topology = get_pool_and_conv_props((6, 1.5625, 1.5625), (15, 256, 216))
    assert topology.strides == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
    assert topology.kernel_sizes == [[1, 3, 3]] + [[3, 3, 3]] * 5
    assert topology.patch_size.tolist() == [16, 256, 224]


def test_a_last_axis_is_halved_only_while_it_is_long_enough() -> None:
    # 8 voxels could be halved once more, but only together with another axis; alone it takes 12
    assert get_pool_and_conv_props((1, 1, 1), (4, 4, 8)).num_pool_per_axis == [0, 0, 0]
    assert get_pool_and_conv_props((1, 1, 1), (4, 4, 12)).num_pool_per_axis == [0, 0, 1]
    assert get_pool_and_conv_props((1, 1, 1), (4, 8, 8)).num_pool_per_axis == [0, 1, 1]


def test_the_number_of_halvings_can_be_limited() -> None:
    assert get_pool_and_conv_props((1, 1), (64, 64), max_numpool=2).num_pool_per_axis == [2, 2]


def test_arguments_are_left_as_they_are() -> None:
    spacing, patch = np.array([1.0, 1.0, 1.0]), np.array([32, 32, 32])
    get_pool_and_conv_props(spacing, patch)
    assert spacing.tolist() == [1, 1, 1] and patch.tolist() == [32, 32, 32]
