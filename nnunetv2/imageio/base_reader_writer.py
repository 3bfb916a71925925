"""The contract between image files and the rest of the package, and what all readers share."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnunetv2.imageio.label_values import check_finite

LARGEST_LABEL = np.iinfo(np.uint16).max


class BaseReaderWriter(ABC):
    """Reads images and segmentations of one family of file formats and writes segmentations.

    Subclasses list the endings they can handle, with leading dot and in lower case, in ``supported_file_endings``.
    """

    supported_file_endings: list[str] = []

    @staticmethod
    def _check_all_same(input_list: Sequence[Any]) -> bool:
        """Whether all entries (numbers or equally long sequences of numbers) agree within rounding."""
        first = input_list[0]
        return all(_close(first, other) for other in input_list[1:])

    @staticmethod
    def _check_all_same_array(input_list: Sequence[np.ndarray]) -> bool:
        """Whether all arrays have one shape and agree within rounding."""
        first = input_list[0]
        return all(_close(first, other) for other in input_list[1:])

    @abstractmethod
    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        """Read the channels of one case.

        Args:
            image_fnames: One file per channel, in channel order. A file that holds several channels adds them all.

        Returns:
            The image, float32 of shape ``(C, Z, Y, X)``, where 2D images have ``Z = 1``, and the properties of the case.
            ``properties["spacing"]`` is always there: three numbers in mm in the order of the array axes. For 2D
            images the first one is a placeholder that is larger than the other two. All other entries belong
            to the reader, which needs them in :meth:`write_seg`.
        """

    @abstractmethod
    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        """Read a segmentation as an array ``(1, Z, Y, X)`` with the properties described in :meth:`read_images`."""

    def check_stored_values(self, fname: str, what: str) -> None:  # noqa: B027 - nothing to do is the usual case
        """Raise ValueError if a file stores NaN or infinite values which reading it hides. Most formats hide nothing.

        Args:
            fname: Image or segmentation.
            what: Which of the two, for the message.
        """

    @abstractmethod
    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        """Write a segmentation ``(Z, Y, X)``; ``properties`` come from reading the image that it belongs to."""

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        """Write one number per voxel, such as a saliency, as a float32 NIfTI file on the grid of the image.

        Readers whose files have a position or a direction override this; here the origin is 0 and the axes are those of the array.

        Args:
            values: ``(Z, Y, X)``.
            output_fname: Ends with ``.nii`` or ``.nii.gz``, whatever the format of the images.
            properties: From reading the image.
        """
        from nnunetv2.imageio.simpleitk_reader_writer import write_image_with_geometry

        spacing = [float(size) for size in properties["spacing"]][::-1]
        geometry = {"spacing": spacing, "origin": (0.0, 0.0, 0.0), "direction": np.eye(3).ravel().tolist()}
        write_image_with_geometry(values.astype(np.float32, copy=False), output_fname, geometry)


def check_values(reader: BaseReaderWriter, image: np.ndarray, image_fnames: Sequence[str], what: str = "image") -> None:
    """Raise ValueError if an image or segmentation has NaN or infinite voxels, whether they are seen in what was read or not.

    Args:
        reader: That read the files.
        image: What it returned, ``(C, Z, Y, X)``.
        image_fnames: The files.
        what: "image" or "segmentation", for the message.
    """
    check_finite(image, os.path.basename(image_fnames[0]), what)
    if not image.all():  # hidden values are read as zero
        for fname in image_fnames:
            reader.check_stored_values(fname, what)


def stack_channels(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate arrays ``(c, Z, Y, X)`` along the channels, as float32."""
    return np.vstack(channels, dtype=np.float32, casting="unsafe")


def check_same_shape(channels: Sequence[np.ndarray], image_fnames: Sequence[str]) -> None:
    """Raise RuntimeError unless all channels of a case have the same shape."""
    _check_equal([channel.shape for channel in channels], image_fnames, "shapes", "The channels of a case must lie on one voxel grid.")


def check_same_spacing(spacings: Sequence[Sequence[float]], image_fnames: Sequence[str]) -> None:
    """Raise RuntimeError unless all channels of a case have the same spacing."""
    _check_equal(spacings, image_fnames, "spacings", "The channels of a case must lie on one voxel grid; resample them to one.")


def warn_unless_same(values: Sequence[Any], image_fnames: Sequence[str], what: str) -> None:
    """Print a warning if origins, directions or affines of the channels of a case differ; the voxels are used as they are."""
    if not all(_close(values[0], value) for value in values[1:]):
        listed = "\n".join(f"  {os.fspath(name)}: {_plain(value)}" for name, value in zip(image_fnames, values, strict=True))
        print(
            f"WARNING: the {what} of the channels of one case differ:\n{listed}\n"
            "Voxels are matched by their index. Check that the channels are registered to each other."
        )


def label_dtype(seg: np.ndarray, output_fname: str) -> type[np.unsignedinteger]:
    """uint8 for labels below 255, else uint16, as nnU-Net writes them; ValueError if the labels fit neither."""
    smallest, largest = (seg.min(), seg.max()) if seg.size else (0, 0)
    if not 0 <= smallest <= largest <= LARGEST_LABEL:
        raise ValueError(
            f"Cannot write {os.fspath(output_fname)}: labels range from {smallest} to {largest}, must lie between 0 and {LARGEST_LABEL}."
        )
    return np.uint8 if largest < 255 else np.uint16


def check_is_volume(seg: np.ndarray, output_fname: str) -> None:
    """Raise ValueError unless a segmentation to be written has the axes ``(Z, Y, X)``."""
    if seg.ndim != 3:
        raise ValueError(
            f"Cannot write {os.fspath(output_fname)}: the segmentation has shape {seg.shape}, but needs three axes (z, y, x). "
            "2D segmentations have shape (1, y, x)."
        )


def not_written_completely(file: str | os.PathLike[str]) -> OSError:
    """The error for a file that lacks a part after it was written."""
    return OSError(f"{os.fspath(file)} was not written completely ({os.path.getsize(file)} bytes); its disk may be full or failing.")


@contextmanager
def reading(fname: str) -> Iterator[None]:
    """Give errors of the libraries that decode a file its name and a next step."""
    if not os.path.isfile(fname):
        raise FileNotFoundError(f"Cannot read {os.fspath(fname)}: there is no such file.")
    try:
        yield
    except Exception as error:  # decoders raise anything from EOFError to zlib.error for a broken file
        raise RuntimeError(
            f"Cannot read {os.fspath(fname)} ({os.path.getsize(fname)} bytes): {_first_words(error)}. "
            "The file may be truncated or in another format than its name says; copy or export it again."
        ) from error


def _close(first: Any, other: Any) -> bool:
    first, other = np.asarray(first), np.asarray(other)
    return first.shape == other.shape and bool(np.allclose(first, other))


def _check_equal(values: Sequence[Any], image_fnames: Sequence[str], what: str, advice: str) -> None:
    if not all(_close(values[0], value) for value in values[1:]):
        listed = "\n".join(f"  {os.fspath(name)}: {_plain(value)}" for name, value in zip(image_fnames, values, strict=True))
        raise RuntimeError(f"The channels of one case have different {what}:\n{listed}\n{advice}")


def _plain(value: Any) -> Any:
    """Numbers without their numpy type names, for messages."""
    return np.asarray(value).tolist()


def _first_words(error: Exception) -> str:
    """The message of an error on one line, without the source positions that ITK puts in front."""
    text = re.split(r"ITK ERROR:|sitk::ERROR:", str(error))[-1]
    return (" ".join(text.split()) or type(error).__name__).rstrip(".")
