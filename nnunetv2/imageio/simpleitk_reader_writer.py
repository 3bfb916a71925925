"""Medical images in 2D, 3D and 4D through SimpleITK."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2.imageio.base_reader_writer import (
    BaseReaderWriter,
    check_is_volume,
    check_same_shape,
    check_same_spacing,
    label_dtype,
    not_written_completely,
    reading,
    stack_channels,
    warn_unless_same,
)
from nnunetv2.imageio.nifti_file import check_nifti_is_complete, check_stored_values_are_finite, is_nifti
from nnunetv2.utilities.file_io import atomic_path

# The missing axis of a 2D image gets a spacing this many times the largest one, so that it is recognised as such.
FACTOR_OF_MISSING_AXIS = 999


class SimpleITKIO(BaseReaderWriter):
    """Reads and writes on the voxel grid of the file. Properties: ``sitk_stuff`` (in ITK's axis order) and ``spacing``."""

    supported_file_endings = [".nii.gz", ".nrrd", ".mha", ".gipl"]

    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        """See the base class. The fourth axis of a 4D file holds its channels."""
        return _read([_load(name) for name in image_fnames], image_fnames)

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        return self.read_images((seg_fname,))

    def check_stored_values(self, fname: str, what: str) -> None:
        if is_nifti(fname):
            check_stored_values_are_finite(fname, what)

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        write_image(_to_sitk(seg, output_fname, properties["sitk_stuff"]), output_fname)

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        write_image_with_geometry(values.astype(np.float32, copy=False), output_fname, properties["sitk_stuff"])


class SimpleITKIOWithReorient(SimpleITKIO):
    """Reorients images to a common orientation on reading and segmentations back on writing. 3D only.

    The properties describe the reoriented image; ``sitk_stuff`` has ``original_orientation`` in addition.
    """

    def read_images(self, image_fnames: list[str] | tuple[str, ...], orientation: str = "RAS") -> tuple[np.ndarray, dict]:
        """See the base class. ``orientation`` is the common orientation in DICOM's letters."""
        originals = [_load(name) for name in image_fnames]
        for original, name in zip(originals, image_fnames, strict=True):
            if original.GetDimension() != 3:
                raise RuntimeError(
                    f"Cannot reorient {name}: it has {original.GetDimension()} dimensions and only 3D images can be reoriented. "
                    "Use SimpleITKIO for this dataset."
                )
        image, properties = _read([sitk.DICOMOrient(original, orientation) for original in originals], image_fnames)
        properties["sitk_stuff"]["original_orientation"] = _orientation(originals[0])
        return image, properties

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        geometry = properties["sitk_stuff"]
        reoriented = _to_sitk(seg, output_fname, geometry)
        write_image(sitk.DICOMOrient(reoriented, geometry["original_orientation"]), output_fname)

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        geometry = properties["sitk_stuff"]
        reoriented = _with_geometry(values.astype(np.float32, copy=False), geometry)
        write_image(sitk.DICOMOrient(reoriented, geometry["original_orientation"]), output_fname)


def _load(fname: str) -> sitk.Image:
    with reading(fname):
        if is_nifti(fname):
            check_nifti_is_complete(fname)
        return sitk.ReadImage(str(fname))


def _orientation(image: sitk.Image) -> str:
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def _read(images: list[sitk.Image], image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
    """Array and properties of the channels of one case."""
    channels = [_channels_first(image, name) for image, name in zip(images, image_fnames, strict=True)]
    spacings = [_array_spacing(image) for image in images]
    check_same_shape(channels, image_fnames)
    check_same_spacing(spacings, image_fnames)
    warn_unless_same([image.GetOrigin() for image in images], image_fnames, "origins")
    warn_unless_same([image.GetDirection() for image in images], image_fnames, "directions")
    geometry = {"spacing": images[0].GetSpacing(), "origin": images[0].GetOrigin(), "direction": images[0].GetDirection()}
    return stack_channels(channels), {"sitk_stuff": geometry, "spacing": spacings[0]}


def _channels_first(image: sitk.Image, fname: str) -> np.ndarray:
    """Voxels as ``(C, Z, Y, X)``."""
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise RuntimeError(
            f"Cannot use {fname}: each voxel has {image.GetNumberOfComponentsPerPixel()} components. Save one file per channel."
        )
    voxels = sitk.GetArrayFromImage(image)
    if voxels.ndim == 2:
        return voxels[None, None]
    if voxels.ndim == 3:
        return voxels[None]
    if voxels.ndim == 4:
        return voxels
    raise RuntimeError(f"Cannot use {fname}: it has {voxels.ndim} dimensions, but images have 2, 3 or 4 (channels last).")


def _array_spacing(image: sitk.Image) -> list[float]:
    """Spacing in mm of the axes ``(Z, Y, X)``."""
    spacing = list(image.GetSpacing())[::-1]
    if len(spacing) == 2:
        spacing = [max(spacing) * FACTOR_OF_MISSING_AXIS, *spacing]
    elif len(spacing) == 4:
        spacing = spacing[1:]
    return list(np.abs(spacing))


def _to_sitk(seg: np.ndarray, output_fname: str, geometry: dict) -> sitk.Image:
    """A segmentation ``(Z, Y, X)`` as an image with the given geometry, which may be that of a 2D or 4D file."""
    check_is_volume(seg, output_fname)
    return _with_geometry(seg.astype(label_dtype(seg, output_fname), copy=False), geometry)


def write_image_with_geometry(values: np.ndarray, output_fname: str | os.PathLike[str], geometry: dict) -> None:
    """Write ``(Z, Y, X)`` with ``spacing``, ``origin`` and ``direction`` in ITK's axis order, which may be those of a 2D or 4D file."""
    write_image(_with_geometry(values, geometry), output_fname)


def _with_geometry(values: np.ndarray, geometry: dict) -> sitk.Image:
    """``(Z, Y, X)`` as an image with the given geometry."""
    spacing, origin, direction = geometry["spacing"], geometry["origin"], geometry["direction"]
    dimensions = len(spacing)
    image = sitk.GetImageFromArray(values[0] if dimensions == 2 else values)
    if dimensions == 4:  # the last axis were the channels
        spacing, origin = spacing[:3], origin[:3]
        direction = tuple(np.reshape(direction, (4, 4))[:3, :3].ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def write_image(image: sitk.Image, output_fname: str | os.PathLike[str]) -> None:
    """Write an image compressed, whole or not at all."""
    with atomic_path(output_fname) as temporary:
        sitk.WriteImage(image, str(temporary), True)
        _check_was_written(temporary, image)


def _check_was_written(file: Path, image: sitk.Image) -> None:
    """Raise OSError if ITK left out part of an image: when a disk is full, some of its formats say nothing."""
    number_of_bytes = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    try:
        if is_nifti(file):
            check_nifti_is_complete(file)
        is_whole = os.path.getsize(file) >= (number_of_bytes if file.suffix == ".gipl" else 1)
    except (ValueError, EOFError):
        is_whole = False
    if not is_whole:
        raise not_written_completely(file)
