"""Spacing and patch size to strides, kernel sizes and a patch size that the network can halve as often as it does.

Every axis is halved as long as its feature map stays large enough. Axes with much larger voxels than the others wait
until the others have caught up, and get kernels of size one until then. Rules: Isensee et al., Nature Methods 18 (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Axes whose spacing is below this multiple of the finest one are halved together and convolved together.
SPACING_RATIO_LIMIT = 2
# A single remaining axis is only halved while this many smallest feature maps fit into it.
SINGLE_AXIS_MIN_MULTIPLE = 3


class Topology(NamedTuple):
    """Stages of a U-Net, finest first; axes in the order of the patch size."""

    num_pool_per_axis: list[int]  # number of halvings
    strides: list[list[int]]  # one vector for each stage, the first all ones
    kernel_sizes: list[list[int]]  # one vector for each stage
    patch_size: np.ndarray  # voxels, int, every axis divisible by `must_be_divisible_by`
    must_be_divisible_by: np.ndarray  # voxels, int

    @property
    def n_stages(self) -> int:
        return len(self.strides)


def get_shape_must_be_divisible_by(net_numpool_per_axis: Sequence[int]) -> np.ndarray:
    """Voxels that every axis of a patch has to be a multiple of, given its number of halvings."""
    return 2 ** np.asarray(net_numpool_per_axis)


def pad_shape(shape: Sequence[float], must_be_divisible_by: int | Sequence[int]) -> np.ndarray:
    """The next larger shape that is divisible along every axis.

    Args:
        shape: Voxels per axis; fractions are rounded up.
        must_be_divisible_by: One number for all axes, or one per axis.
    """
    divisor = np.broadcast_to(np.asarray(must_be_divisible_by), (len(shape),))
    return (np.ceil(np.asarray(shape) / divisor) * divisor).astype(int)


def get_pool_and_conv_props(
    spacing: Sequence[float], patch_size: Sequence[float], min_feature_map_size: int = 4, max_numpool: int = 999999
) -> Topology:
    """Strides and kernel sizes of a U-Net for patches of this size.

    Args:
        spacing: Voxel size in mm, two or three axes.
        patch_size: Voxels per axis, same axis order; fractions are rounded up in the end.
        min_feature_map_size: Voxels per axis that the coarsest feature map keeps.
        max_numpool: Most halvings of one axis.

    Returns:
        A named tuple that unpacks as pools per axis, strides, kernel sizes, padded patch size, divisors.
    """
    current_spacing = [float(s) for s in spacing]
    current_size = [float(n) for n in patch_size]
    n_axes = len(current_spacing)
    pools, kernel = [0] * n_axes, [1] * n_axes
    strides, kernel_sizes = [[1] * n_axes], []

    while True:
        poolable = axes_to_pool(current_spacing, current_size, pools, min_feature_map_size, max_numpool)
        if not poolable:
            break
        finest = min(current_spacing)
        # Decided before this stage's pooling: the kernel belongs to the stage above it.
        kernel = [3 if k == 3 or s / finest < SPACING_RATIO_LIMIT else 1 for k, s in zip(kernel, current_spacing, strict=True)]
        kernel_sizes.append(kernel)
        strides.append([2 if axis in poolable else 1 for axis in range(n_axes)])
        for axis in poolable:
            pools[axis] += 1
            current_spacing[axis] *= 2
            current_size[axis] = np.ceil(current_size[axis] / 2)
    kernel_sizes.append([3] * n_axes)  # the bottleneck

    divisors = get_shape_must_be_divisible_by(pools)
    return Topology(pools, strides, kernel_sizes, pad_shape(patch_size, divisors), divisors)


def axes_to_pool(
    spacing: Sequence[float], size: Sequence[float], pools: Sequence[int], min_feature_map_size: int, max_numpool: int
) -> list[int]:
    """Axes that the next stage halves; none if the network ends here."""
    axes = [axis for axis, n in enumerate(size) if n >= 2 * min_feature_map_size]
    if not axes:
        return []
    finest = min(spacing[axis] for axis in axes)
    axes = [axis for axis in axes if spacing[axis] / finest < SPACING_RATIO_LIMIT]
    axes = [axis for axis in axes if pools[axis] < max_numpool]
    if len(axes) == 1 and size[axes[0]] < SINGLE_AXIS_MIN_MULTIPLE * min_feature_map_size:
        return []
    return axes
