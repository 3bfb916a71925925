"""Sizes of images without reading their voxels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

COMPRESSED = (".gz", ".png", ".jpg", ".jpeg", ".bz2", ".zip")
# What these say of resolution, for printing above all, the readers do not take for voxel sizes.
WITHOUT_SPACING = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")
LENGTH_OF_CHANNEL_SUFFIX = len("_0000")
# Of formats that are compressed and cannot be looked into: one byte of file for so many voxels, as in CT stored as .nii.gz.
VOXELS_PER_COMPRESSED_BYTE = 2
HEADERS_READ = 32


@dataclass(frozen=True)
class ImageSize:
    """Voxels of one image file."""

    voxels: int  # without channels
    channels: int = 1
    spacing: tuple[float, ...] | None = None  # mm, slowest axis first as readers give it; None where the file does not say
    shape: tuple[int, ...] | None = None  # three axes, in the same order; None where the header cannot be read


def image_size(file: str | os.PathLike[str]) -> ImageSize:
    """Size from the header; where it cannot be read, a guess from the size of the file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # a format of another library, or a broken file, which whoever reads it will report
        size = os.path.getsize(file) if os.path.isfile(file) else 0
        return ImageSize(size * VOXELS_PER_COMPRESSED_BYTE if os.fspath(file).lower().endswith(COMPRESSED) else size)
    shape, channels = tuple(reversed(reader.GetSize())), reader.GetNumberOfComponents()
    voxels, missing = math.prod(shape), 3 - len(shape)
    shape = (1,) * missing + shape
    if os.fspath(file).lower().endswith(WITHOUT_SPACING):
        return ImageSize(voxels, channels, _spacing_beside(file), shape)
    return ImageSize(voxels, channels, (999.0,) * missing + tuple(reversed(reader.GetSpacing())), shape)


def _spacing_beside(file: str | os.PathLike[str]) -> tuple[float, ...] | None:
    """Spacing of a case from ``{case}.json`` beside its image, as for 3D tif; None without such a file, or if it is broken."""
    try:
        with open(os.path.splitext(os.fspath(file))[0][:-LENGTH_OF_CHANNEL_SUFFIX] + ".json", encoding="utf-8") as beside:
            return tuple(float(size) for size in json.load(beside)["spacing"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def sizes_of_cases(files: Mapping[str, Sequence[str]], headers_read: int = HEADERS_READ) -> dict[str, list[ImageSize]]:
    """Sizes of the image files of every case.

    Headers are read of the cases with the largest files only; the others count like the smallest of those, their voxels (but not their
    shape) scaled by their file sizes.

    Args:
        files: By case the files of its channels.
        headers_read: Number of cases whose headers are read.
    """
    bytes_of_files = {case: sum(os.path.getsize(file) for file in names if os.path.isfile(file)) for case, names in files.items()}
    descending = sorted(files, key=bytes_of_files.__getitem__, reverse=True)
    sizes = {case: [image_size(file) for file in files[case]] for case in descending[:headers_read]}
    for case in descending[headers_read:]:
        known = descending[headers_read - 1]
        share = bytes_of_files[case] / max(1, bytes_of_files[known])
        sizes[case] = [replace(size, voxels=round(size.voxels * share)) for size in sizes[known]]
    return sizes
