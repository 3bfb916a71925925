"""Memory estimate to patch size and batch size.

The estimate is the number of values in all feature maps of one sample, a stand-in for the memory of a training step. It is
computed from strides and features alone; no network is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nnunetv2.experiment_planning.experiment_planners.network_topology import Topology, get_pool_and_conv_props

# Patches start from this volume or area (isotropic in mm), which no target memory so far could hold.
START_VOXELS_3D = 256**3
START_VOXELS_2D = 2048**2


def start_patch_size(spacing: Sequence[float], median_shape: Sequence[float]) -> np.ndarray:
    """Large patch with equal edges in mm, clipped to the median image; float if the median is.

    Args:
        spacing: Voxel size in mm, two or three axes.
        median_shape: Voxels of the median image, same axes.
    """
    voxels_per_mm = 1 / np.asarray(spacing, dtype=float)
    start_voxels = START_VOXELS_2D if len(spacing) == 2 else START_VOXELS_3D
    factor = (start_voxels / np.prod(voxels_per_mm)) ** (1 / len(spacing))
    return np.array([min(round(n), limit) for n, limit in zip(voxels_per_mm * factor, median_shape, strict=True)])


def unet_feature_map_size(
    patch_size: Sequence[int],
    features_per_stage: Sequence[int],
    strides: Sequence[Sequence[int]],
    encoder_blocks: Sequence[int],
    decoder_convs: Sequence[int],
    output_channels: int,
    *,
    residual: bool,
) -> int:
    """Number of values in the feature maps of a U-Net for one sample.

    The same number as ``compute_conv_feature_map_size`` of PlainConvUNet and ResidualEncoderUNet in
    dynamic-network-architectures with deep supervision off: outputs of all convolutions, transposed convolutions and the
    segmentation layer.

    Args:
        patch_size: Voxels per axis of the input.
        features_per_stage: Channels of every stage, finest first.
        strides: One vector for each stage.
        encoder_blocks: Convolutions (plain) or residual blocks of every encoder stage.
        decoder_convs: Convolutions of every decoder stage, the one above the bottleneck first.
        output_channels: Channels of the segmentation layer.
        residual: Residual blocks and a stem in the encoder.
    """
    voxels = []
    size = np.asarray(patch_size, dtype=np.int64)
    for stride in strides:
        size = size // np.asarray(stride)
        voxels.append(int(np.prod(size)))

    total = 0
    if residual:
        total += features_per_stage[0] * voxels[0]  # stem
    previous_features = features_per_stage[0]
    for features, stride, n_blocks, n_voxels in zip(features_per_stage, strides, encoder_blocks, voxels, strict=True):
        n_outputs = 2 * n_blocks if residual else n_blocks
        if residual and (features != previous_features or any(step != 1 for step in stride)):
            n_outputs += 1  # the skip connection of the first block has a convolution of its own
        total += n_outputs * features * n_voxels
        previous_features = features

    for n_convs, features, n_voxels in zip(decoder_convs, features_per_stage[-2::-1], voxels[-2::-1], strict=True):
        total += (n_convs + 1) * features * n_voxels  # one more for the transposed convolution
    return total + output_channels * voxels[0]


def largest_fitting_patch(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    min_feature_map_size: int,
    estimate: Callable[[Topology], float],
    too_large: Callable[[float], bool],
) -> tuple[Topology, float]:
    """Shrink the start patch, always along the axis that covers most of the median image, until the estimate fits.

    Args:
        spacing: Voxel size in mm.
        median_shape: Voxels of the median image, same axes.
        min_feature_map_size: Voxels per axis that the coarsest feature map keeps.
        estimate: Memory estimate of a topology.
        too_large: Whether an estimate is beyond the budget.

    Returns:
        The topology (with its patch size) and its estimate.

    Raises:
        ValueError: If not even the smallest patch fits.
    """

    def topology_of(patch_size: Sequence[float]) -> Topology:
        return get_pool_and_conv_props(spacing, patch_size, min_feature_map_size)

    topology = topology_of(start_patch_size(spacing, median_shape))
    size_estimate = estimate(topology)
    while too_large(size_estimate):
        patch_size = topology.patch_size
        axis = np.argsort(patch_size / np.asarray(median_shape))[-1]
        # The trial only tells the divisor that the smaller patch will need.
        trial = patch_size.copy()
        trial[axis] -= topology.must_be_divisible_by[axis]
        smaller = patch_size.copy()
        if trial[axis] > 0:
            smaller[axis] -= topology_of(trial).must_be_divisible_by[axis]
        if trial[axis] <= 0 or smaller[axis] <= 0:
            raise ValueError(
                f"No patch fits into the memory target, not even {patch_size.tolist()} voxels at spacing {list(spacing)}. "
                "Give a larger -gpu_memory_target."
            )
        topology = topology_of(smaller)
        size_estimate = estimate(topology)
    return topology, size_estimate


def batch_size_for(
    size_estimate: float,
    reference: float,
    reference_batch_size: int,
    voxels_covered: float,
    patch_size: Sequence[int],
    min_batch_size: int = 2,
) -> int:
    """Samples that fill the memory budget, without one batch seeing too much of the dataset.

    Args:
        size_estimate: Memory estimate of one patch.
        reference: Memory estimate at which `reference_batch_size` samples fill the budget.
        reference_batch_size: See above.
        voxels_covered: Most voxels that one batch may hold.
        patch_size: Voxels per axis.
        min_batch_size: Never less than this.
    """
    fills_memory = round(reference / size_estimate * reference_batch_size)
    covers_dataset = round(float(voxels_covered) / np.prod(patch_size, dtype=np.float64))
    return int(max(min(fills_memory, covers_dataset), min_batch_size))
