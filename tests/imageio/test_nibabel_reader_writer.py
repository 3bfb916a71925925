"""NIfTI through nibabel, also against SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient


@pytest.fixture
def rotated_file(tmp_path: Path) -> str:
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.5, 0.75, 3]
    affine[:3, 3] = (10, 20, 30)
    voxels = np.random.default_rng(0).integers(-100, 100, (6, 5, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "case_0000.nii.gz")
    return str(tmp_path / "case_0000.nii.gz")


def test_nibabel_and_simpleitk_give_the_same_array_and_spacing(rotated_file: str) -> None:
    for nibabel_reader, sitk_reader in ((NibabelIO, SimpleITKIO), (NibabelIOWithReorient, SimpleITKIOWithReorient)):
        image, properties = nibabel_reader().read_images([rotated_file])
        expected, expected_properties = sitk_reader().read_images([rotated_file])
        assert np.array_equal(image, expected)
        assert np.allclose(properties["spacing"], expected_properties["spacing"])


def test_properties_hold_the_affines(rotated_file: str) -> None:
    affine = nibabel.load(rotated_file).affine
    _, properties = NibabelIO().read_images([rotated_file])
    assert set(properties) == {"nibabel_stuff", "spacing"} and set(properties["nibabel_stuff"]) == {"original_affine"}
    assert np.array_equal(properties["nibabel_stuff"]["original_affine"], affine)
    assert all(type(size) is float for size in properties["spacing"])
    _, properties = NibabelIOWithReorient().read_images([rotated_file])
    assert set(properties["nibabel_stuff"]) == {"original_affine", "reoriented_affine"}
    assert nibabel.aff2axcodes(properties["nibabel_stuff"]["reoriented_affine"]) == ("R", "A", "S")


def test_stored_values_are_scaled_as_the_header_says(tmp_path: Path) -> None:
    values = np.linspace(-3, 7, 60).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    read, _ = NibabelIO().read_images([str(tmp_path / "a.nii.gz")])
    assert np.array_equal(read[0], nibabel.load(tmp_path / "a.nii.gz").get_fdata().transpose(2, 1, 0).astype(np.float32))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 2)])
def test_only_3d_files_are_accepted(shape: tuple[int, ...], tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(RuntimeError, match="3D images only"):
        NibabelIO().read_images([str(tmp_path / "a.nii.gz")])
