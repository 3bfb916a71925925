"""Truncated NIfTI files, which ITK would fill with zeros."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.imageio import nifti_file
from nnunetv2.imageio.base_reader_writer import check_values
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.nifti_file import check_nifti_is_complete, check_stored_values_are_finite
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

VOXELS = np.random.default_rng(0).normal(size=(11, 12, 13)).astype(np.float32)


@pytest.fixture(params=["nifti1.nii", "nifti1.nii.gz", "nifti2.nii.gz", "big_endian.nii.gz", "itk.nii.gz"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / request.param
    if request.param.startswith("itk"):
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(file))
    elif request.param.startswith("nifti2"):
        nibabel.save(nibabel.Nifti2Image(VOXELS, np.eye(4)), file)
    elif request.param.startswith("big"):
        nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4), nibabel.Nifti1Header(endianness=">")), file)
    else:
        nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), file)
    return file


def test_complete_files_pass_and_are_read(file: Path) -> None:
    check_nifti_is_complete(str(file))
    voxels = NibabelIO().read_images([str(file)])[0][0]  # ITK does not read NIfTI-2
    # nibabel names the axes x, y, z; ITK's arrays have them the other way round.
    np.testing.assert_array_equal(voxels, VOXELS if file.name.startswith("itk") else VOXELS.T)


@pytest.mark.parametrize("missing", [20, 500, 4000])
def test_truncated_files_are_found(file: Path, missing: int) -> None:
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(ValueError, match="truncated"):
        check_nifti_is_complete(str(file))
    with pytest.raises(RuntimeError, match=file.name):
        SimpleITKIO().read_images([str(file)])


def test_gzip_files_of_several_members_pass(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    check_nifti_is_complete(str(tmp_path / "b.nii.gz"))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:-8]))
    with pytest.raises(ValueError, match="truncated"):
        check_nifti_is_complete(str(tmp_path / "b.nii.gz"))


def with_hidden_values(file: Path, dtype: type = np.float32, number: int = 3) -> Path:
    """A file whose first voxels are NaN and whose last one is infinite."""
    voxels = VOXELS.astype(dtype)
    voxels.ravel()[:number], voxels[-1, -1, -1] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    return file


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stored_values_that_itk_replaces_are_found(tmp_path: Path, ending: str, dtype: type) -> None:
    file = with_hidden_values(tmp_path / f"a{ending}", dtype)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))).all(), "if ITK no longer hides them, drop the check"
    with pytest.raises(ValueError, match=f"a{ending}: the image has 3 NaN and 1 infinite voxels"):
        check_stored_values_are_finite(str(file), "image")


def test_hidden_values_are_found_behind_a_seam_of_gzip_members_and_before_padding(tmp_path: Path) -> None:
    content = with_hidden_values(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:1001]) + gzip.compress(content[1001:]) + bytes(100))
    with pytest.raises(ValueError, match="3 NaN and 1 infinite"):
        check_stored_values_are_finite(str(tmp_path / "b.nii.gz"), "image")


def test_complete_files_have_no_hidden_values(file: Path) -> None:
    check_stored_values_are_finite(str(file), "image")


def test_files_of_whole_numbers_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS.astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    monkeypatch.setattr(nifti_file, "_content", lambda fname: pytest.fail("read"))
    check_stored_values_are_finite(str(tmp_path / "a.nii.gz"), "image")


def test_images_without_zeros_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(with_hidden_values(tmp_path / "a.nii.gz"))
    image = SimpleITKIO().read_images([file])[0]
    with pytest.raises(ValueError, match="3 NaN"):
        check_values(SimpleITKIO(), image, [file])
    monkeypatch.setattr(nifti_file, "_content", lambda fname: pytest.fail("read"))
    check_values(SimpleITKIO(), image + 100, [file])
