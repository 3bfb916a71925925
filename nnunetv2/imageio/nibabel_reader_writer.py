"""3D NIfTI images through nibabel. Arrays have the axis order of SimpleITK's, so readers can be exchanged."""

from __future__ import annotations

import os

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from nnunetv2.imageio.base_reader_writer import (
    BaseReaderWriter,
    check_is_volume,
    check_same_shape,
    check_same_spacing,
    label_dtype,
    reading,
    stack_channels,
    warn_unless_same,
)
from nnunetv2.utilities.file_io import atomic_path


class NibabelIO(BaseReaderWriter):
    """Reads and writes on the voxel grid of the file. Properties: ``nibabel_stuff.original_affine`` and ``spacing``."""

    supported_file_endings = [".nii", ".nii.gz"]

    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        images = [_load(name) for name in image_fnames]
        original_affines = [image.affine for image in images]
        image, spacing = _stack(images, image_fnames)
        warn_unless_same(original_affines, image_fnames, "affines")
        return image, {"nibabel_stuff": {"original_affine": original_affines[0]}, "spacing": spacing}

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        return self.read_images((seg_fname,))

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        _write(_to_nibabel(seg, output_fname, properties["nibabel_stuff"]["original_affine"]), output_fname)

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        _write(_with_affine(values.astype(np.float32, copy=False), properties["nibabel_stuff"]["original_affine"]), output_fname)


class NibabelIOWithReorient(BaseReaderWriter):
    """Reorients images to RAS on reading and segmentations back on writing.

    ``nibabel_stuff`` holds ``original_affine`` and ``reoriented_affine``; ``spacing`` is that of the reoriented image.
    """

    supported_file_endings = [".nii", ".nii.gz"]

    def read_images(self, image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, dict]:
        originals = [_load(name) for name in image_fnames]
        reoriented = [image.as_reoriented(io_orientation(image.affine)) for image in originals]
        reoriented_affines = [image.affine for image in reoriented]
        image, spacing = _stack(reoriented, image_fnames)
        warn_unless_same(reoriented_affines, image_fnames, "affines (after reorientation to RAS)")
        affines = {"original_affine": originals[0].affine, "reoriented_affine": reoriented_affines[0]}
        return image, {"nibabel_stuff": affines, "spacing": spacing}

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        return self.read_images((seg_fname,))

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        affines = properties["nibabel_stuff"]
        original = _reoriented_back(_to_nibabel(seg, output_fname, affines["reoriented_affine"]), affines["original_affine"])
        if not np.allclose(affines["original_affine"], original.affine):
            print(
                f"WARNING: the affine of the image was not restored for {os.fspath(output_fname)}:\n"
                f"  image: {np.asarray(affines['original_affine']).tolist()}\n  segmentation: {original.affine.tolist()}"
            )
        _write(original, output_fname)

    def write_map(self, values: np.ndarray, output_fname: str, properties: dict) -> None:
        affines = properties["nibabel_stuff"]
        reoriented = _with_affine(values.astype(np.float32, copy=False), affines["reoriented_affine"])
        _write(_reoriented_back(reoriented, affines["original_affine"]), output_fname)


def _load(fname: str) -> nibabel.spatialimages.SpatialImage:
    with reading(fname):
        image = nibabel.load(fname)
    if image.ndim != 3:
        raise RuntimeError(
            f"Cannot use {os.fspath(fname)}: its shape is {image.shape} and nibabel readers take 3D images only. "
            "SimpleITKIO reads 2D and 4D files with the ending .nii.gz."
        )
    return image


def _stack(images: list[nibabel.spatialimages.SpatialImage], image_fnames: list[str] | tuple[str, ...]) -> tuple[np.ndarray, list[float]]:
    """Channels ``(C, Z, Y, X)`` of one case and the spacing of their axes."""
    channels, spacings = [], []
    for image, name in zip(images, image_fnames, strict=True):
        with reading(name):
            channels.append(_voxels(image).transpose(2, 1, 0)[None])
        spacings.append([float(size) for size in image.header.get_zooms()[::-1]])
    check_same_shape(channels, image_fnames)
    check_same_spacing(spacings, image_fnames)
    return stack_channels(channels), spacings[0]


def _voxels(image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """Stored values; in double precision only where the file asks for scaling."""
    slope, intercept = getattr(image.dataobj, "slope", None), getattr(image.dataobj, "inter", None)
    if (slope, intercept) == (1, 0):
        return np.asanyarray(image.dataobj)
    return np.asanyarray(image.dataobj, dtype=np.float64)


def _to_nibabel(seg: np.ndarray, output_fname: str, affine: np.ndarray) -> nibabel.Nifti1Image:
    check_is_volume(seg, output_fname)
    return _with_affine(seg.astype(label_dtype(seg, output_fname), copy=False), affine)


def _with_affine(values: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """``(Z, Y, X)`` as an image."""
    return nibabel.Nifti1Image(values.transpose(2, 1, 0), affine=affine)


def _reoriented_back(reoriented: nibabel.Nifti1Image, original_affine: np.ndarray) -> nibabel.Nifti1Image:
    """An image in RAS order in the orientation that its file had."""
    return reoriented.as_reoriented(ornt_transform(axcodes2ornt("RAS"), io_orientation(original_affine)))


def _write(image: nibabel.Nifti1Image, output_fname: str) -> None:
    with atomic_path(output_fname) as temporary:
        nibabel.save(image, temporary)
