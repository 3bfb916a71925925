"""Where the voxels of a file lie, and whether two files of a case lie on the same grid."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Two grids count as one if no corner moves by more than this part of the smallest voxel edge; header noise is far below.
LARGEST_SHIFT_IN_VOXELS = 0.5
NOTEWORTHY_SHIFT_IN_VOXELS = 0.01


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """The voxel grid of one file."""

    file: str
    num_channels: int
    shape: tuple[int, ...]  # (Z, Y, X)
    spacing: tuple[float, ...]  # mm, same order
    affine: np.ndarray | None  # index (x, y, z) -> mm; None if the format knows no position


@dataclass(frozen=True, kw_only=True)
class GridDifference:
    """What two grids disagree in, in words."""

    text: str
    is_error: bool  # False: less than half a voxel, worth a warning

    def __str__(self) -> str:
        return self.text


def voxel_grid(file: str, array: np.ndarray, properties: Mapping[str, Any]) -> VoxelGrid:
    """The grid of an array ``(C, Z, Y, X)`` and its properties as the readers return them."""
    return VoxelGrid(
        file=os.fspath(file),
        num_channels=len(array),
        shape=array.shape[1:],
        spacing=tuple(float(size) for size in properties["spacing"]),
        affine=_affine(properties),
    )


def check_same_grid(reference: VoxelGrid, other: VoxelGrid) -> None:
    """Raise ValueError unless two files of a case lie on the same grid, up to half a voxel."""
    difference = grid_difference(reference, other)
    if difference is not None and difference.is_error:
        raise ValueError(f"{difference}. --verify_dataset_integrity lists every affected case.")


def grid_difference(reference: VoxelGrid, other: VoxelGrid) -> GridDifference | None:
    """The first of shape, spacing and position that two grids disagree in; None if they are the same."""
    first, second = os.path.basename(reference.file), os.path.basename(other.file)
    if reference.shape != other.shape:
        text = f"shapes differ: {first} has {reference.shape}, {second} has {other.shape} (z, y, x); both must lie on one voxel grid"
        return GridDifference(text=text, is_error=True)
    if not np.allclose(reference.spacing, other.spacing):
        text = (
            f"spacings differ: {first} has {_rounded(reference.spacing)} mm, {second} has {_rounded(other.spacing)} mm (z, y, x); "
            "correct the one that is wrong, or resample one to the grid of the other"
        )
        return GridDifference(text=text, is_error=True)
    if reference.affine is None or other.affine is None or reference.affine.shape != other.affine.shape:
        return None
    shift = _largest_shift_mm(reference, other)
    smallest_edge = min(abs(edge) for edge in reference.spacing)
    if shift <= NOTEWORTHY_SHIFT_IN_VOXELS * smallest_edge:
        return None
    parts = _differing_parts(reference.affine, other.affine)
    text = f"origin or direction differ: the same voxel of {first} and {second} lies up to {shift:.4g} mm apart ({parts})"
    if shift <= LARGEST_SHIFT_IN_VOXELS * smallest_edge:
        return GridDifference(text=f"{text}; this is less than half a voxel, voxels are matched by their index", is_error=False)
    advice = "resample one to the grid of the other or, if the voxels do belong together, copy its header"
    return GridDifference(text=f"{text}; {advice}", is_error=True)


def _differing_parts(first: np.ndarray, other: np.ndarray) -> str:
    """Origin and direction of two affines, those that differ."""
    parts = []
    if not np.allclose(first[:-1, -1], other[:-1, -1]):
        parts.append(f"origins {_rounded(first[:-1, -1])} and {_rounded(other[:-1, -1])}")
    if not np.allclose(first[:-1, :-1], other[:-1, :-1]):
        parts.append(f"direction times spacing {_rounded(first[:-1, :-1])} and {_rounded(other[:-1, :-1])}")
    return ", ".join(parts) or "origin and direction"


def _largest_shift_mm(reference: VoxelGrid, other: VoxelGrid) -> float:
    """How far apart the two affines place the same corner of the volume, at most."""
    dimensions = len(reference.affine) - 1
    last_index = [size - 1 for size in reference.shape[::-1][:dimensions]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*[(0, last) for last in last_index])], dtype=float)
    return float(np.linalg.norm(corners @ (reference.affine - other.affine).T, axis=1).max())


def _affine(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Index to millimetres, from what the readers of this package store."""
    if "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        return np.asarray(affines.get("reoriented_affine", affines["original_affine"]), dtype=float)
    if "sitk_stuff" not in properties:
        return None
    geometry = properties["sitk_stuff"]
    dimensions = len(geometry["spacing"])
    direction = np.reshape(geometry["direction"], (dimensions, dimensions))
    spatial = min(dimensions, 3)  # the fourth axis of a 4D file are channels
    affine = np.eye(spatial + 1)
    affine[:spatial, :spatial] = (direction * np.asarray(geometry["spacing"]))[:spatial, :spatial]
    affine[:spatial, spatial] = geometry["origin"][:spatial]
    return affine


def _rounded(values: Sequence[float] | np.ndarray) -> list:
    return np.round(np.asarray(values, dtype=float), 4).tolist()
