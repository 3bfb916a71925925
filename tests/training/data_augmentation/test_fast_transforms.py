"""The faster label resampling gives the labels of the library, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnunetv2.training.data_augmentation.fast_transforms import FastSpatialTransform


def blocky_labels(shape: tuple[int, ...], num_labels: int, rng: np.random.Generator) -> torch.Tensor:
    """Labels from -1 in blocks of four voxels, so that inside, border and junctions all occur; two channels."""
    labels = rng.integers(-1, num_labels, size=[max(1, n // 4) for n in shape])
    for axis, n in enumerate(shape):
        labels = np.take(labels, np.minimum(np.arange(n) // 4, labels.shape[axis] - 1), axis)
    return torch.from_numpy(np.stack([labels, np.roll(labels, 1, 0)]).astype(np.int16))


def resampled_by_both(seed: int, *, rotation, scaling, num_labels: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    output = tuple(int(n) for n in rng.integers(6, 26, size=2 + seed % 2))
    labels = blocky_labels(tuple(int(n * rng.uniform(0.8, 1.7)) for n in output), num_labels, rng)
    settings = {
        "patch_center_dist_from_border": 0,
        "random_crop": False,
        "p_rotation": 1,
        "rotation": rotation,
        "p_scaling": 1,
        "scaling": scaling,
        "p_synchronize_scaling_across_axes": 1,
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
        **options,
    }
    library, fast = SpatialTransform(output, **settings), FastSpatialTransform(output, **settings)
    np.random.seed(seed)
    parameters = library.get_parameters(image=labels)
    return library._apply_to_segmentation(labels, **parameters), fast._apply_to_segmentation(labels, **parameters)


@pytest.mark.parametrize("num_labels", [0, 1, 2, 5, 20])
def test_labels_equal_the_library(num_labels: int) -> None:
    for seed in range(16):
        expected, found = resampled_by_both(seed, rotation=(-3, 3), scaling=(0.6, 1.6), num_labels=num_labels)
        assert found.dtype == expected.dtype and torch.equal(found, expected), seed


def test_ties_are_settled_as_by_the_library() -> None:
    for seed in range(16):  # without rotation and at half the spacing, sample points lie halfway between voxels
        expected, found = resampled_by_both(seed, rotation=(0, 0), scaling=(0.5, 0.5), num_labels=3)
        assert torch.equal(found, expected), seed


@pytest.mark.parametrize("options", [{"mode_seg": "nearest"}, {"border_mode_seg": "border"}, {"border_mode_seg": "zeros"}])
def test_other_modes_are_left_to_the_library_or_equal_it(options: dict) -> None:
    for seed in range(6):
        expected, found = resampled_by_both(seed, rotation=(-1, 1), scaling=(0.7, 1.4), num_labels=3, **options)
        assert torch.equal(found, expected), seed
