"""Arrays and properties of SimpleITKIO; the expected values were recorded from nnU-Net v2 2.8.1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient


def save(voxels: np.ndarray, file: Path, spacing: tuple[float, ...]) -> str:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))
    return str(file)


def test_properties_keep_itk_order_and_spacing_follows_the_array(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image, properties = SimpleITKIO().read_images([save(voxels, tmp_path / "a.mha", (0.5, 0.7, 3.0))])
    assert np.array_equal(image[0], voxels)
    assert properties["sitk_stuff"] == {
        "spacing": (0.5, 0.7, 3.0),
        "origin": (0.0, 0.0, 0.0),
        "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    }
    assert properties["spacing"] == [3.0, 0.7, 0.5]


def test_2d_files_get_a_placeholder_axis_and_stay_2d_on_writing(tmp_path: Path) -> None:
    voxels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image, properties = SimpleITKIO().read_images([save(voxels, tmp_path / "a.nii.gz", (0.5, 0.75))])
    assert image.shape == (1, 1, 5, 6)
    assert properties["spacing"] == [0.75 * 999, 0.75, 0.5]
    SimpleITKIO().write_seg(image[0] % 3, str(tmp_path / "out.nii.gz"), properties)
    assert sitk.ReadImage(str(tmp_path / "out.nii.gz")).GetSize() == (6, 5)


def test_the_fourth_axis_of_a_file_are_its_channels(tmp_path: Path) -> None:
    voxels = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5)
    series = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in voxels])
    series.SetSpacing((0.5, 0.75, 3.0, 2.0))
    sitk.WriteImage(series, str(tmp_path / "a.nii.gz"))
    image, properties = SimpleITKIO().read_images([str(tmp_path / "a.nii.gz")])
    assert np.array_equal(image, voxels)
    assert properties["spacing"] == [3.0, 0.75, 0.5]
    SimpleITKIO().write_seg(voxels[0], str(tmp_path / "out.nii.gz"), properties)
    assert sitk.ReadImage(str(tmp_path / "out.nii.gz")).GetSpacing() == (0.5, 0.75, 3.0)


def test_reorientation_remembers_the_original_orientation(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image, properties = SimpleITKIOWithReorient().read_images([save(voxels, tmp_path / "a.mha", (0.5, 0.75, 3.0))])
    assert np.array_equal(image[0], voxels[:, ::-1, ::-1])
    assert properties["sitk_stuff"]["original_orientation"] == "LPS"
    assert properties["sitk_stuff"]["direction"] == (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def test_only_3d_files_can_be_reoriented(tmp_path: Path) -> None:
    file = save(np.zeros((5, 6), dtype=np.uint8), tmp_path / "a.nii.gz", (1.0, 1.0))
    with pytest.raises(RuntimeError, match="only 3D"):
        SimpleITKIOWithReorient().read_images([file])


def test_files_with_vector_voxels_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), dtype=np.float32), isVector=True), str(tmp_path / "a.mha"))
    with pytest.raises(RuntimeError, match="one file per channel"):
        SimpleITKIO().read_images([str(tmp_path / "a.mha")])
