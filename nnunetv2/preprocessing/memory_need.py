"""How much memory a case takes while it is read or preprocessed, estimated from its header.

Upper bounds of measured peaks (int16 and float32 NIfTI files, one and two channels, finer, equal and coarser target spacing), which the
estimate exceeds by 10 to 40 %. Cropping makes cases smaller; it is not known before they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nnunetv2.imageio.image_size import ImageSize, sizes_of_cases
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

BYTES_PER_VALUE = 4  # float32
# Copies of an image at the same time: for the case as a whole (labels, masks), and for each channel.
READING = (6.5, 2.5)
RESAMPLING_FROM = (7.5, 2.5)
RESAMPLING_TO = (1.0, 1.75)
BUFFER_BYTES = 20 * 1000**2  # of readers and compressors, whatever the size of the case
SAME_SIZE = 0.01  # a relative change of the number of voxels that may come from rounded spacings


def bytes_to_read(sizes: Sequence[ImageSize]) -> int:
    """Peak of reading and cropping a case; `sizes` are those of its image files."""
    return BUFFER_BYTES + round(BYTES_PER_VALUE * _voxels(sizes) * _copies(READING, sizes))


def bytes_to_preprocess(sizes: Sequence[ImageSize], plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> int:
    """Peak of reading a case, resampling it and storing it."""
    factor = enlargement(sizes[0].spacing, plans_manager, configuration_manager) if sizes else 1.0
    if abs(factor - 1) < SAME_SIZE:
        return bytes_to_read(sizes)
    copies = _copies(RESAMPLING_FROM, sizes) + factor * _copies(RESAMPLING_TO, sizes)
    return BUFFER_BYTES + round(BYTES_PER_VALUE * _voxels(sizes) * copies)


def enlargement(spacing: Sequence[float] | None, plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> float:
    """By which factor resampling changes the number of voxels of an image with this spacing; see :func:`enlargement_by_axis`."""
    return math.prod(enlargement_by_axis(spacing, plans_manager, configuration_manager))


def enlargement_by_axis(
    spacing: Sequence[float] | None, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> list[float]:
    """Voxels after resampling by those before, for each axis in the reader's order, like the spacing; 1 where that is unknown."""
    factors = [1.0] * len(plans_manager.transpose_forward)
    target = list(configuration_manager.spacing)
    if spacing is not None and len(spacing) == len(factors) and min(spacing) > 0:
        for axis, wanted in zip(plans_manager.transpose_forward[-len(target) :], target, strict=True):
            factors[axis] = spacing[axis] / wanted
    return factors


def bytes_to_read_cases(images: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """By case; `images` are the files of its channels."""
    return {case: bytes_to_read(sizes) for case, sizes in sizes_of_cases(images).items()}


def bytes_to_preprocess_cases(
    images: Mapping[str, Sequence[str]], plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> dict[str, int]:
    """By case; `images` are the files of its channels."""
    return {case: bytes_to_preprocess(sizes, plans_manager, configuration_manager) for case, sizes in sizes_of_cases(images).items()}


def _copies(of_case_and_channel: tuple[float, float], sizes: Sequence[ImageSize]) -> float:
    """Values for each voxel."""
    return of_case_and_channel[0] + of_case_and_channel[1] * sum(size.channels for size in sizes)


def _voxels(sizes: Sequence[ImageSize]) -> int:
    return max((size.voxels for size in sizes), default=0)
