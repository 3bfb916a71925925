"""nnU-Net's transforms of grey values in place and on any device.

Each is the class of batchgeneratorsv2 with the same name, its parameters and its random numbers included; only the arithmetic is written anew:
without volumes made for one step, and without a value that the processor would have to wait for when the image is on a GPU. Results are the
library's up to rounding. Images are float32 ``(C, *spatial)`` and are written to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from torch.nn.functional import interpolate

SMALLEST_RANGE = 1e-7  # of grey values that are divided by
VOXELS_AT_A_TIME = 2**16  # of a blurred part, which stays in a processor's second-level cache
KERNEL_SIZE_PER_SIGMA = 6.0


class FastGaussianNoiseTransform(GaussianNoiseTransform):
    """Adds noise that is drawn with the parameters, so that it does not depend on the device."""

    def get_parameters(self, **data_dict) -> dict:
        parameters = super().get_parameters(**data_dict)
        count, sigmas = parameters["num_apply"], parameters["sigmas"]
        noise = None
        if count:
            shape = data_dict["image"].shape[1:]
            noise = torch.empty((count, *shape)).normal_()
            noise.mul_(torch.as_tensor(sigmas, dtype=torch.float32).expand(count).reshape(count, *[1] * len(shape)))
        return {**parameters, "noise": noise}

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        if params["noise"] is not None:
            for channel, noise in zip(params["apply_idx"].tolist(), params["noise"]):
                img[channel].add_(noise)
        return img


class FastGaussianBlurTransform(GaussianBlurTransform):
    """Smooths with a separable kernel, part by part."""

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        channels = params["apply_to_channel"].nonzero()[:, 0].tolist()
        for channel, sigmas in zip(channels, params["sigmas"]):
            for axis, sigma in enumerate(sigmas):
                blur_along(img[channel], axis, gaussian_kernel(float(sigma)))
        return img


class FastBrightnessTransform(MultiplicativeBrightnessTransform):
    """Multiplies each channel."""

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        for channel, factor in zip(params["apply_to_channel"].tolist(), params["multipliers"].tolist()):
            img[channel].mul_(factor)
        return img


class FastContrastTransform(ContrastTransform):
    """Multiplies the distance from the mean of each channel."""

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        for channel, factor in zip(params["apply_to_channel"].tolist(), params["multipliers"].tolist()):
            values = img[channel]
            mean = values.mean()
            lowest, highest = values.aminmax()
            values.sub_(mean).mul_(factor).add_(mean)
            if self.preserve_range:
                values.clamp_(lowest, highest)
        return img


class FastLowResolutionTransform(SimulateLowResolutionTransform):
    """Samples each channel coarsely and interpolates it back."""

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        shape = tuple(img.shape[1:])
        mode = self.upmodes[len(shape)]
        for channel, scales in zip(params["apply_to_channel"].tolist(), params["scales"].tolist()):
            coarse_shape = [round(n * scale) for n, scale in zip(shape, scales)]
            coarse = interpolate(img[channel][None, None], coarse_shape, mode="nearest-exact")
            img[channel] = interpolate(coarse, shape, mode=mode)[0, 0]
        return img


class FastGammaTransform(GammaTransform):
    """Bends the grey values of each channel between their extremes, and restores mean and standard deviation."""

    def _apply_to_image(self, img: torch.Tensor, **params) -> torch.Tensor:
        settings = (params[key].tolist() for key in ("apply_to_channel", "retain_stats", "invert_image", "gamma"))
        for channel, retains, inverts, gamma in zip(*settings):
            values = img[channel]
            if inverts:
                values.neg_()
            if retains:
                mean, deviation = mean_and_deviation(values)
            lowest, highest = values.aminmax()
            spread = (highest - lowest).clamp_(min=SMALLEST_RANGE)
            values.sub_(lowest).div_(spread).pow_(gamma).mul_(spread).add_(lowest)
            if retains:
                new_mean, new_deviation = mean_and_deviation(values)
                values.sub_(new_mean).mul_(deviation / new_deviation.clamp_(min=SMALLEST_RANGE)).add_(mean)
            if inverts:
                values.neg_()
        return img


def mean_and_deviation(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (of n - 1), several times faster on a processor than ``torch.std_mean``."""
    mean = values.mean()
    variance = (values - mean).square_().mean()
    return mean, (variance * (values.numel() / max(1, values.numel() - 1))).sqrt_()


def gaussian_kernel(sigma: float) -> list[float]:
    """Samples of a Gaussian that sum to 1; their number is the odd one next to six standard deviations and a half."""
    length = KERNEL_SIZE_PER_SIGMA * sigma + 0.5
    size = round(length)
    if size % 2 == 0:
        size += -1 if size > length else 1
    samples = [math.exp(-0.5 * ((i - size // 2) / sigma) ** 2) for i in range(size)]
    return [sample / sum(samples) for sample in samples]


def blur_along(values: torch.Tensor, axis: int, kernel: Sequence[float]) -> None:
    """Convolves values with a symmetric kernel along an axis, in place; the border is mirrored about its voxels.

    Args:
        values: ``(*spatial)``.
        axis: Spatial axis.
        kernel: An odd number of weights.
    """
    n, reach = values.shape[axis], len(kernel) // 2
    if reach == 0:
        return
    period = max(1, 2 * (n - 1))
    places = torch.arange(-reach, n + reach, device=values.device) % period  # made there: nothing waits for a copy
    places = torch.minimum(places, period - places)
    across = 1 if axis == 0 and values.ndim > 1 else 0
    step = values.shape[across]
    if values.device.type == "cpu" and across != axis:
        step = max(1, VOXELS_AT_A_TIME * values.shape[across] // values.numel())
    for part in values.split(step, across):
        padded = part.index_select(axis, places)
        torch.mul(padded.narrow(axis, reach, n), kernel[reach], out=part)
        for i in range(reach):
            part.add_(padded.narrow(axis, i, n), alpha=kernel[i])
            part.add_(padded.narrow(axis, 2 * reach - i, n), alpha=kernel[i])
