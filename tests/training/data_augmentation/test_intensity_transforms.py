"""The transforms in place give what the library's give, up to rounding, from the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from nnunetv2.training.data_augmentation.intensity_transforms import (
    FastBrightnessTransform,
    FastContrastTransform,
    FastGammaTransform,
    FastGaussianBlurTransform,
    FastGaussianNoiseTransform,
    FastLowResolutionTransform,
    blur_along,
    gaussian_kernel,
)

GAMMA = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1}
BLUR = {"synchronize_channels": False, "synchronize_axes": False}
CASES = [
    (GaussianNoiseTransform, FastGaussianNoiseTransform, {"noise_variance": (0, 0.1), "p_per_channel": 1, "synchronize_channels": True}),
    (GaussianNoiseTransform, FastGaussianNoiseTransform, {"noise_variance": (0, 0.1), "p_per_channel": 0.5, "synchronize_channels": False}),
    (GaussianBlurTransform, FastGaussianBlurTransform, {"blur_sigma": (0.5, 1.0), "p_per_channel": 0.5, **BLUR}),
    (GaussianBlurTransform, FastGaussianBlurTransform, {"blur_sigma": (0.3, 2.0), "p_per_channel": 1, **BLUR}),
    (
        MultiplicativeBrightnessTransform,
        FastBrightnessTransform,
        {"multiplier_range": BGContrast((0.75, 1.25)), "synchronize_channels": False, "p_per_channel": 0.7},
    ),
    *(
        (
            ContrastTransform,
            FastContrastTransform,
            {"contrast_range": BGContrast((0.75, 1.25)), "preserve_range": preserve, "synchronize_channels": False, "p_per_channel": 0.7},
        )
        for preserve in (True, False)
    ),
    *(
        (
            SimulateLowResolutionTransform,
            FastLowResolutionTransform,
            {"scale": (0.5, 1), "synchronize_channels": False, "synchronize_axes": together, "ignore_axes": ignored, "p_per_channel": 0.5},
        )
        for together, ignored in ((True, None), (False, None), (True, (0,)))
    ),
    (GammaTransform, FastGammaTransform, {**GAMMA, "p_invert_image": 1, "p_retain_stats": 1}),
    (GammaTransform, FastGammaTransform, {**GAMMA, "p_invert_image": 0, "p_retain_stats": 0.5}),
]


@pytest.mark.parametrize(("library_class", "fast_class", "settings"), CASES)
@pytest.mark.parametrize("shape", [(4, 21, 18), (4, 9, 16, 13)])
def test_values_and_random_numbers_equal_the_library(library_class, fast_class, settings, shape) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(2, 3, size=shape).astype(np.float32))
    image[-1] = 1.5  # nothing to stretch
    changed = False
    for seed in range(6):
        results = []
        for transform in (library_class(**settings), fast_class(**settings)):
            np.random.seed(seed), torch.manual_seed(seed)
            results.append((transform(image=image.clone())["image"], np.random.uniform(), torch.rand(1).item()))
        assert results[0][1:] == results[1][1:], seed
        torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-5, atol=2e-5)
        changed |= not torch.equal(results[0][0], image)
    assert changed


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_blur_keeps_a_constant_and_mirrors_the_border(n: int) -> None:
    kernel = gaussian_kernel(1.0)
    assert len(kernel) == 7 and sum(kernel) == pytest.approx(1)
    values = torch.full((5, n, 4), 3.0)
    for axis in range(3):
        blur_along(values, axis, kernel)
    torch.testing.assert_close(values, torch.full((5, n, 4), 3.0))
    if n > 3:
        line = torch.arange(float(n))
        blur_along(line, 0, kernel)
        padded = np.pad(np.arange(float(n)), 3, mode="reflect")
        torch.testing.assert_close(line.double(), torch.from_numpy(np.convolve(padded, kernel, mode="valid")), rtol=1e-5, atol=1e-5)
