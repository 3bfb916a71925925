"""3D tif stacks. Tif has no agreed place for spacing, so it stands in a small JSON file beside the stack."""

from __future__ import annotations

import json
import os

import numpy as np

from nnunetv2.imageio.base_reader_writer import (
    BaseReaderWriter,
    check_is_volume,
    check_same_shape,
    label_dtype,
    reading,
    stack_channels,
)
from nnunetv2.utilities.file_io import atomic_path

LENGTH_OF_CHANNEL_SUFFIX = len("_0000")
SPACING_WITHOUT_FILE = (1, 1, 1)


class Tiff3DIO(BaseReaderWriter):
    """Spacing comes from ``{case}.json`` for images and ``{segmentation}.json`` for segmentations: ``{"spacing": [z, y, x]}``."""

    supported_file_endings = [".tif", ".tiff"]

    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        stem = os.path.splitext(os.fspath(image_fnames[0]))[0]
        volumes = [_read_volume(name) for name in image_fnames]
        check_same_shape(volumes, image_fnames)
        return stack_channels(volumes), {"spacing": _read_spacing(stem[:-LENGTH_OF_CHANNEL_SUFFIX] + ".json", image_fnames[0])}

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        spacing_file = os.path.splitext(os.fspath(seg_fname))[0] + ".json"
        return stack_channels([_read_volume(seg_fname)]), {"spacing": _read_spacing(spacing_file, seg_fname)}

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        import tifffile

        check_is_volume(seg, output_fname)
        spacing = [float(size) if isinstance(size, np.floating) else size for size in properties["spacing"]]
        with atomic_path(output_fname) as temporary:
            # Without minisblack, stacks of three or four slices are taken for colours.
            labels = seg.astype(label_dtype(seg, output_fname), copy=False)
            tifffile.imwrite(temporary, data=labels, compression="zlib", photometric="minisblack")
        with atomic_path(os.path.splitext(os.fspath(output_fname))[0] + ".json") as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"spacing": spacing}, file, indent=4)


def _read_volume(fname: str) -> np.ndarray:
    """Voxels as ``(1, Z, Y, X)``."""
    import tifffile

    with reading(fname):
        volume = tifffile.imread(fname)
    if volume.ndim != 3:
        raise RuntimeError(f"Cannot use {os.fspath(fname)}: its shape is {volume.shape}, but Tiff3DIO takes 3D stacks (z, y, x) only.")
    return volume[None]


def _read_spacing(spacing_file: str, fname: str) -> list[float] | tuple[float, ...]:
    """Spacing from the JSON file; a warning and 1 mm if there is none."""
    if not os.path.isfile(spacing_file):
        print(f"WARNING: no spacing file for {os.fspath(fname)}: {spacing_file} does not exist. Using a spacing of {SPACING_WITHOUT_FILE}.")
        return SPACING_WITHOUT_FILE
    try:
        with open(spacing_file, encoding="utf-8") as file:
            spacing = json.load(file)["spacing"]
        valid = len(spacing) == 3 and all(float(size) > 0 for size in spacing)
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(f'Cannot read the spacing file {spacing_file}: expected {{"spacing": [z, y, x]}}.') from error
    if not valid:
        raise RuntimeError(f"The spacing file {spacing_file} holds {spacing}; expected three positive numbers in mm, in the order z, y, x.")
    return spacing
