"""Size, shape and brightness of the structures in a label map, as one vector of numbers per case.

For classes that are defined by size or shape (a thick wall, a large chamber) these numbers say what pooled features hardly can. They are
computed from a predicted label map on the preprocessed grid, in training and at prediction alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

PERCENTILES = (10, 50, 90)
MM3_PER_ML = 1000.0
LENGTHS = ("length_1_mm", "length_2_mm", "length_3_mm")
DEPTHS = ("mean_depth_mm", "largest_depth_mm")  # distance of the voxels inside from the surface: how thick a wall is
SHAPE_FEATURES = ("present", "log_volume_ml", "log_surface_cm2", "sphericity", *LENGTHS, *DEPTHS, "log_pieces", "largest_piece")
INTENSITY_FEATURES = ("mean", "deviation", *(f"percentile_{p}" for p in PERCENTILES))


def morphometry_names(structures: Sequence[str], num_channels: int) -> list[str]:
    """Names of the entries of :func:`morphometry`, such as ``lesion/log_volume_ml`` or ``lesion:organ/log_volume_ratio``."""
    names = []
    for structure in structures:
        names += [f"{structure}/{feature}" for feature in SHAPE_FEATURES]
        names += [f"{structure}/channel_{channel}_{feature}" for channel in range(num_channels) for feature in INTENSITY_FEATURES]
    for first, second in itertools.combinations(structures, 2):
        names += [f"{first}:{second}/log_volume_ratio"]
        names += [f"{first}:{second}/channel_{channel}_mean_difference" for channel in range(num_channels)]
    return names


def morphometry(
    label_map: np.ndarray, image: np.ndarray, spacing: Sequence[float], structures: Mapping[str, Sequence[int]]
) -> np.ndarray:
    """Measure every structure.

    Args:
        label_map: Label values ``(X, Y, Z)``; of a 2D image ``(1, X, Y)``.
        image: Preprocessed image ``(C, X, Y, Z)``.
        spacing: Voxel size in mm per axis of ``label_map``.
        structures: Label values of every structure by name; several values are one structure (a region).

    Returns:
        float64, one entry for each of :func:`morphometry_names`. What an absent structure does not have is NaN, apart from ``present`` (0)
        and its volume (that of half a voxel, so that the logarithm exists). Lengths are the full axes of the ellipsoid with the same
        second moments, longest first. In 2D the "volume" is that of a slice of 1 mm and the "surface" that of its rim.
    """
    if label_map.shape != image.shape[1:] or len(spacing) != label_map.ndim:
        raise ValueError(f"Label map {label_map.shape}, image {image.shape} and spacing {tuple(spacing)} do not belong together.")
    spacing_mm = np.array(spacing, dtype=float)
    flat = label_map.shape[0] == 1
    if flat:
        spacing_mm[0] = 1.0  # readers of 2D images give 999 for the missing axis
    measured = {name: _measure(np.isin(label_map, values), image, spacing_mm, flat) for name, values in structures.items()}
    vector: list[float] = []
    for shape, intensities in measured.values():
        vector += [*shape, *intensities.ravel()]
    volume = SHAPE_FEATURES.index("log_volume_ml")
    for first, second in itertools.combinations(structures, 2):
        (shape_1, intensities_1), (shape_2, intensities_2) = measured[first], measured[second]
        vector += [shape_1[volume] - shape_2[volume], *(intensities_1[:, 0] - intensities_2[:, 0])]
    return np.array(vector)


def _measure(mask: np.ndarray, image: np.ndarray, spacing_mm: np.ndarray, flat: bool) -> tuple[np.ndarray, np.ndarray]:
    """``SHAPE_FEATURES`` and, by channel, ``INTENSITY_FEATURES`` of one structure."""
    voxel_ml = float(np.prod(spacing_mm)) / MM3_PER_ML
    indices = np.argwhere(mask)
    if len(indices) == 0:
        shape = np.full(len(SHAPE_FEATURES), np.nan)
        shape[:2] = 0.0, np.log(0.5 * voxel_ml)
        return shape, np.full((len(image), len(INTENSITY_FEATURES)), np.nan)
    low, high = indices.min(axis=0), indices.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = mask[box]
    volume_mm3 = len(indices) * voxel_ml * MM3_PER_ML
    surface_mm2 = _surface_mm2(mask, spacing_mm, flat)
    pieces = _piece_sizes(mask)
    shape = np.array(
        [
            1.0,
            np.log(volume_mm3 / MM3_PER_ML),
            np.log(surface_mm2 / 100),
            _sphericity(volume_mm3, surface_mm2, flat),
            *_axis_lengths_mm(indices, spacing_mm),
            *_depths_mm(mask, spacing_mm, flat),
            np.log(len(pieces)),
            pieces.max() / pieces.sum(),
        ]
    )
    inside = [channel[box][mask] for channel in image]
    intensities = np.array([[v.mean(), v.std(), *np.percentile(v, PERCENTILES)] for v in inside], dtype=float)
    return shape, intensities


def _surface_mm2(mask: np.ndarray, spacing_mm: np.ndarray, flat: bool) -> float:
    """Area of the surface through the voxels' borders; of a 2D image, length of the outline times the slice's thickness."""
    from skimage.measure import find_contours, marching_cubes, mesh_surface_area

    if flat:
        outlines = find_contours(np.pad(mask[0], 1).astype(np.float32), 0.5)
        steps = [np.diff(outline, axis=0) * spacing_mm[1:] for outline in outlines]
        return float(sum(np.linalg.norm(step, axis=1).sum() for step in steps)) * spacing_mm[0]
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=tuple(spacing_mm))
    return float(mesh_surface_area(vertices, faces))


def _sphericity(volume_mm3: float, surface_mm2: float, flat: bool) -> float:
    """1 for a ball (a disc when flat), less for anything else."""
    if flat:
        return 4 * np.pi * volume_mm3 / surface_mm2**2
    return np.pi ** (1 / 3) * (6 * volume_mm3) ** (2 / 3) / surface_mm2


def _axis_lengths_mm(indices: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Axes of the ellipsoid with the same second moments, longest first."""
    positions_mm = indices * spacing_mm
    covariance = np.cov(positions_mm, rowvar=False, bias=True) + np.diag(spacing_mm**2 / 12)  # a voxel has an extent of its own
    return 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance)[::-1])


def _depths_mm(mask: np.ndarray, spacing_mm: np.ndarray, flat: bool) -> tuple[float, float]:
    """Mean and largest distance of a voxel's centre from the nearest one outside."""
    from scipy.ndimage import distance_transform_edt

    if flat:
        mask, spacing_mm = mask[0], spacing_mm[1:]
    depths = distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    inside = depths[depths > 0]
    return float(inside.mean()), float(inside.max())


def _piece_sizes(mask: np.ndarray) -> np.ndarray:
    """Voxels of every connected piece, voxels touching at corners included."""
    from scipy.ndimage import label

    pieces, _ = label(mask, structure=np.ones((3,) * mask.ndim))
    return np.bincount(pieces.ravel())[1:]
