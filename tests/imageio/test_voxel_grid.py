"""When two files of a case count as lying on one grid."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.imageio.voxel_grid import VoxelGrid, check_same_grid, grid_difference, voxel_grid


def grid(name: str, shape=(4, 5, 6), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 1, 1)) -> VoxelGrid:
    stuff = {"spacing": spacing[::-1], "origin": origin, "direction": tuple(np.diag(direction).astype(float).ravel())}
    return voxel_grid(f"folder/{name}.nii.gz", np.zeros((1, *shape)), {"spacing": spacing, "sitk_stuff": stuff})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"shape": (4, 5, 7)}, "shapes differ: image.nii.gz has (4, 5, 6), mask.nii.gz has (4, 5, 7)"),
        ({"spacing": (2.0, 1.0, 1.5)}, "spacings differ: image.nii.gz has [2.0, 1.0, 1.0] mm, mask.nii.gz has [2.0, 1.0, 1.5] mm"),
        ({"origin": (3.0, 0.0, 0.0)}, "up to 3 mm apart (origins [0.0, 0.0, 0.0] and [3.0, 0.0, 0.0])"),
        ({"direction": (-1, 1, 1)}, "up to 10 mm apart (direction times spacing"),
    ],
)
def test_what_differs_is_said_with_both_values(other: dict, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_same_grid(grid("image"), grid("mask", **other))
    assert said in str(caught.value)


def test_a_shift_below_half_a_voxel_is_no_error() -> None:
    difference = grid_difference(grid("image"), grid("mask", origin=(0.3, 0.0, 0.0)))
    assert difference is not None and not difference.is_error
    check_same_grid(grid("image"), grid("mask", origin=(0.3, 0.0, 0.0)))
    assert grid_difference(grid("image"), grid("mask", origin=(1e-4, 0.0, 0.0))) is None


def test_files_that_differ_until_they_are_reoriented_are_on_one_grid() -> None:
    array, spacing = np.zeros((1, 4, 5, 6)), [1.0, 1.0, 1.0]
    affines = [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])]
    stuff = [{"original_affine": affine, "reoriented_affine": np.eye(4)} for affine in affines]
    grids = [voxel_grid("a", array, {"spacing": spacing, "nibabel_stuff": each}) for each in stuff]
    assert grid_difference(*grids) is None


def test_formats_without_a_position_are_compared_by_shape_and_spacing() -> None:
    png = voxel_grid("a.png", np.zeros((1, 1, 5, 6)), {"spacing": (999, 1, 1)})
    assert grid_difference(png, voxel_grid("b.png", np.zeros((1, 1, 5, 6)), {"spacing": (999, 1, 1)})) is None
