"""The faster rotation and scaling gives what the library gives, bit by bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnunetv2.training.data_augmentation import affine_warp
from nnunetv2.training.data_augmentation.fast_transforms import FastSpatialTransform
from nnunetv2.utilities.machine_code import machine_code_module


@pytest.fixture(params=["numba", "torch"], autouse=True)
def arithmetic(request, monkeypatch) -> str:
    """Every test with machine code, where it can be had, and without."""
    if request.param == "torch":
        monkeypatch.setattr(affine_warp, "compiled_kernel", lambda axes: None)
    elif affine_warp.compiled_kernel(2) is None or affine_warp.compiled_kernel(3) is None:
        pytest.skip("numba is not installed")
    return request.param


def blocky_labels(shape: tuple[int, ...], num_labels: int, rng: np.random.Generator) -> torch.Tensor:
    """Labels from -1 in blocks of four voxels, so that inside, border and junctions all occur; two channels."""
    labels = rng.integers(-1, num_labels, size=[max(1, n // 4) for n in shape])
    for axis, n in enumerate(shape):
        labels = np.take(labels, np.minimum(np.arange(n) // 4, labels.shape[axis] - 1), axis)
    return torch.from_numpy(np.stack([labels, np.roll(labels, 1, 0)]).astype(np.int16))


def transformed_by_both(
    seed: int, *, rotation, scaling, num_labels: int, largest_size: int = 26, **options
) -> list[dict[str, torch.Tensor]]:
    """What the library and ours make of one sample, and the random state they leave."""
    rng = np.random.default_rng(seed)
    output = tuple(int(n) for n in rng.integers(6, largest_size, size=2 + seed % 2))
    shape = tuple(int(n * rng.uniform(0.8, 1.7)) for n in output)
    sample = {
        "image": torch.from_numpy(rng.normal(size=(3, *shape)).astype(np.float32)),
        "segmentation": blocky_labels(shape, num_labels, rng),
    }
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
    results = []
    for transform_class in (SpatialTransform, FastSpatialTransform):
        np.random.seed(seed), torch.manual_seed(seed)
        result = transform_class(output, **settings)(**{key: tensor.clone() for key, tensor in sample.items()})
        results.append({**result, "next random number": torch.tensor(np.random.uniform())})
    return results


def assert_same(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], seed: int) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), (key, seed)


@pytest.mark.parametrize("num_labels", [0, 1, 2, 5, 20])
def test_image_and_labels_equal_the_library(num_labels: int) -> None:
    for seed in range(16):
        assert_same(*transformed_by_both(seed, rotation=(-3, 3), scaling=(0.6, 1.6), num_labels=num_labels), seed)


def test_large_patches_equal_the_library() -> None:
    for seed in range(3):
        assert_same(*transformed_by_both(seed, rotation=(-1, 1), scaling=(0.7, 1.4), num_labels=4, largest_size=90), seed)


def test_ties_are_settled_as_by_the_library() -> None:
    for seed in range(16):  # without rotation and at half the spacing, sample points lie halfway between voxels
        assert_same(*transformed_by_both(seed, rotation=(0, 0), scaling=(0.5, 0.5), num_labels=3), seed)


@pytest.mark.parametrize(
    "options",
    [
        {"mode_seg": "nearest"},
        {"border_mode_seg": "border"},
        {"border_mode_seg": "zeros"},
        {"mode_image": "nearest"},
        {"p_elastic_deform": 1},
        {"p_rotation": 0.3, "p_scaling": 0.3},
    ],
)
def test_other_settings_are_left_to_the_library_or_equal_it(options: dict) -> None:
    for seed in range(6):
        assert_same(*transformed_by_both(seed, rotation=(-1, 1), scaling=(0.7, 1.4), num_labels=3, **options), seed)


def test_an_image_alone_and_other_data_are_transformed_too() -> None:
    transform = FastSpatialTransform((8, 10), 0, False, p_rotation=1, rotation=(0.3, 0.4), p_scaling=1, scaling=(0.8, 0.9))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 12, 14)).astype(np.float32))
    np.random.seed(0)
    alone = transform(image=image)
    assert list(alone) == ["image"] and alone["image"].shape == (1, 8, 10)
    np.random.seed(0)
    both = transform(image=image, regression_target=image)
    assert torch.equal(both["image"], alone["image"]) and torch.allclose(both["regression_target"], alone["image"], atol=1e-5)


def test_a_part_of_the_volume_gives_the_same(arithmetic: str) -> None:
    rng = np.random.default_rng(0)
    shape = (30, 34, 28)
    sample = {"image": torch.from_numpy(rng.normal(size=(2, *shape)).astype(np.float32)), "segmentation": blocky_labels(shape, 3, rng)}
    for p_rotation in (0, 1):
        transform = FastSpatialTransform((9, 14, 11), 0, False, p_rotation=p_rotation, rotation=(0.3, 0.4), border_mode_seg="constant")
        np.random.seed(1)
        expected = transform(**sample)
        np.random.seed(1)
        part = transform.draw_ahead(shape)
        assert part is not None and all(along.stop - along.start < n for along, n in zip(part, shape))
        assert_same(expected, transform(**{key: tensor[(slice(None), *part)].clone() for key, tensor in sample.items()}), p_rotation)


def test_without_numba_torch_does_it(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "nnunetv2.training.data_augmentation.compiled_warp", None)  # importing it raises ImportError
    machine_code_module.cache_clear()
    try:
        assert affine_warp.compiled_kernel(2) is None
        assert affine_warp.compiled_kernel(3) is None
    finally:
        machine_code_module.cache_clear()
