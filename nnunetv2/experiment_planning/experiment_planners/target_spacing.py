"""Fingerprint to voxel grid: target spacing, axis order, median image size, coarser spacing for low resolution.

Pure arithmetic on arrays of shape ``(cases, 3)``. Rules: Isensee et al., Nature Methods 18 (2021), "target spacing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

# Of the spacing along a thick axis, this percentile is taken instead of the median.
ANISOTROPIC_AXIS_PERCENTILE = 10
# Kept above the in-plane spacing, so that the thick axis stays the one with the largest spacing.
SMALLEST_EXCESS_MM = 1e-5
# Low resolution is searched in steps of 3 %, first along axes more than twice as fine as the coarsest.
COARSENING_STEP = 1.03
COARSENING_MAX_RATIO = 2


def fullres_target_spacing(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], anisotropy_threshold: float = 3
) -> np.ndarray:
    """Median spacing of all cases; along the thick axis of anisotropic data a finer one.

    Args:
        spacings: Voxel size in mm of every case, ``(cases, 3)``.
        shapes: Voxels of every case after cropping, same axis order.
        anisotropy_threshold: Ratio to the other axes from which spacing and number of voxels count as anisotropic.

    Returns:
        Target voxel size in mm, ``(3,)``, in the axis order of the arguments.
    """
    spacings = np.asarray(spacings, dtype=float)
    target = np.percentile(spacings, 50, axis=0)
    median_size = np.percentile(np.asarray(shapes), 50, axis=0)

    thick = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != thick]
    coarsest_other = max(target[others])
    has_thick_slices = target[thick] > anisotropy_threshold * coarsest_other
    has_few_slices = median_size[thick] * anisotropy_threshold < min(median_size[others])
    if has_thick_slices and has_few_slices:
        finer = np.percentile(spacings[:, thick], ANISOTROPIC_AXIS_PERCENTILE)
        if finer < coarsest_other:
            finer = coarsest_other + SMALLEST_EXCESS_MM
        target[thick] = finer
    return target


def axis_order(target_spacing: Sequence[float]) -> tuple[list[int], list[int]]:
    """Axis order that puts the coarsest axis first, and the order that undoes it.

    Returns:
        ``transpose_forward`` and ``transpose_backward``; entry i names the axis that becomes axis i.
    """
    coarsest = int(np.argmax(target_spacing))
    forward = [coarsest, *(axis for axis in range(len(target_spacing)) if axis != coarsest)]
    backward = [forward.index(axis) for axis in range(len(forward))]
    return forward, backward


def median_resampled_shape(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target_spacing: Sequence[float]
) -> np.ndarray:
    """Median over cases of the size after resampling; entries may end in .5.

    Args:
        spacings: Voxel size in mm of every case, ``(cases, 3)``.
        shapes: Voxels of every case after cropping, same axis order.
        target_spacing: Voxel size in mm, same axis order.
    """
    resampled = [
        compute_new_shape(shape, spacing, target_spacing) for spacing, shape in zip(spacings, shapes, strict=True)
    ]
    return np.median(resampled, axis=0)


def coarser_spacing(spacing: np.ndarray) -> np.ndarray:
    """One step towards low resolution: the finest axes first until all are within a factor of two, then all axes."""
    much_finer = spacing.max() / spacing > COARSENING_MAX_RATIO
    factors = np.where(much_finer, COARSENING_STEP, 1.0) if much_finer.any() else COARSENING_STEP
    return spacing * factors
