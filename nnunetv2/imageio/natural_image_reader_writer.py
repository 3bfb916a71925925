"""2D images without physical spacing: photographs, ultrasound frames, microscopy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nnunetv2.imageio.base_reader_writer import (
    BaseReaderWriter,
    check_is_volume,
    check_same_shape,
    label_dtype,
    not_written_completely,
    reading,
    stack_channels,
)
from nnunetv2.utilities.file_io import atomic_path

SPACING = (999, 1, 1)  # pixels; the first axis does not exist
GEOMETRY_2D = {"spacing": (1.0, 1.0), "origin": (0.0, 0.0), "direction": (1.0, 0.0, 0.0, 1.0)}


class NaturalImage2DIO(BaseReaderWriter):
    """Grey images are one channel, RGB three and RGBA four. Properties: ``spacing`` only."""

    supported_file_endings = [".png", ".bmp", ".tif"]

    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        images = [_read_channels(name) for name in image_fnames]
        check_same_shape(images, image_fnames)
        return stack_channels(images), {"spacing": SPACING}

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        """See the base class. A colour file is accepted only if it is grey in truth, with equal red, green and blue."""
        seg, properties = self.read_images((seg_fname,))
        if len(seg) > 1:
            red, green, blue = seg[:3]
            if not (np.array_equal(red, green) and np.array_equal(red, blue)):
                raise RuntimeError(
                    f"Cannot use {os.fspath(seg_fname)} as segmentation: it is a colour image with {len(seg)} channels that differ. "
                    "Save it with one channel that holds the label values."
                )
            seg = seg[:1]
        return seg, properties

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        from skimage import io

        check_is_volume(seg, output_fname)
        pixels = seg[0].astype(label_dtype(seg, output_fname), copy=False)
        if pixels.dtype == np.uint16 and os.fspath(output_fname).lower().endswith(".bmp"):
            raise OSError(f"Cannot write {os.fspath(output_fname)}: bmp files hold labels up to 254 only. Use png or tif.")
        with atomic_path(output_fname) as temporary:
            io.imsave(str(temporary), pixels, check_contrast=False)
            if not _holds(temporary, pixels):
                raise not_written_completely(temporary)

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        from nnunetv2.imageio.simpleitk_reader_writer import write_image_with_geometry

        write_image_with_geometry(values.astype(np.float32, copy=False), output_fname, GEOMETRY_2D)


def _holds(file: Path, pixels: np.ndarray) -> bool:
    """Whether a file holds these pixels; some encoders lose the error of a full disk."""
    from skimage import io

    try:
        return np.array_equal(np.squeeze(io.imread(str(file))), np.squeeze(pixels))
    except Exception:  # decoders raise anything for a broken file
        return False


def _read_channels(fname: str) -> np.ndarray:
    """Pixels as ``(C, 1, Y, X)``."""
    from skimage import io

    with reading(fname):
        pixels = io.imread(fname)
    if pixels.ndim == 2:
        return pixels[None, None]
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        return pixels.transpose(2, 0, 1)[:, None]
    raise RuntimeError(
        f"Cannot use {os.fspath(fname)}: its array has shape {pixels.shape}. 2D images are grey (y, x), RGB (y, x, 3) or RGBA (y, x, 4)."
    )
