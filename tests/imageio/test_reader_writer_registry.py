"""Which reader/writer is chosen for a dataset; expectations are those of nnU-Net v2 2.8.1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
    recursive_find_reader_writer_by_name,
)


def test_order_of_preference() -> None:
    assert [reader.__name__ for reader in LIST_OF_IO_CLASSES] == [
        "NaturalImage2DIO",
        "SimpleITKIO",
        "Tiff3DIO",
        "NibabelIO",
        "NibabelIOWithReorient",
    ]


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (".nii.gz", "SimpleITKIO"),
        (".NII.GZ", "SimpleITKIO"),
        (".nii", "NibabelIO"),
        (".nrrd", "SimpleITKIO"),
        (".png", "NaturalImage2DIO"),
        (".tif", "NaturalImage2DIO"),
        (".tiff", "Tiff3DIO"),
    ],
)
def test_choice_by_file_ending(ending: str, expected: str) -> None:
    assert determine_reader_writer_from_dataset_json({"file_ending": ending}, verbose=False).__name__ == expected


def test_an_unknown_ending_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(RuntimeError, match=r"\.xyz.*\.nii\.gz"):
        determine_reader_writer_from_file_ending(".xyz", verbose=False)


def test_the_example_file_decides_between_2d_and_3d_tif(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "flat_0000.tif", np.zeros((6, 7), dtype=np.uint8))
    tifffile.imwrite(tmp_path / "stack_0000.tif", np.zeros((6, 7, 8), dtype=np.uint8))
    choose = determine_reader_writer_from_file_ending
    assert choose(".tif", str(tmp_path / "flat_0000.tif"), verbose=False).__name__ == "NaturalImage2DIO"
    assert choose(".tif", str(tmp_path / "stack_0000.tif"), verbose=False).__name__ == "Tiff3DIO"


def test_other_endings_are_tried_only_on_request(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 7, 8), dtype=np.uint8)), str(tmp_path / "a.mha"))
    with pytest.raises(RuntimeError):
        determine_reader_writer_from_file_ending(".xyz", str(tmp_path / "a.mha"), verbose=False)
    chosen = determine_reader_writer_from_file_ending(".xyz", str(tmp_path / "a.mha"), allow_nonmatching_filename=True, verbose=False)
    assert chosen.__name__ == "SimpleITKIO"


def test_an_example_that_no_reader_can_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="broken.nii.gz"):
        determine_reader_writer_from_file_ending(".nii.gz", str(tmp_path / "broken.nii.gz"), verbose=False)


def test_dataset_json_can_name_the_reader(capsys: pytest.CaptureFixture[str]) -> None:
    dataset_json = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "SimpleITKIOWithReorient"}
    assert determine_reader_writer_from_dataset_json(dataset_json).__name__ == "SimpleITKIOWithReorient"
    dataset_json["overwrite_image_reader_writer"] = "None"
    assert determine_reader_writer_from_dataset_json(dataset_json).__name__ == "SimpleITKIO"
    capsys.readouterr()
    dataset_json["overwrite_image_reader_writer"] = "NoSuchReader"
    assert determine_reader_writer_from_dataset_json(dataset_json).__name__ == "SimpleITKIO"
    assert "WARNING" in capsys.readouterr().out


def test_readers_are_found_by_name() -> None:
    assert recursive_find_reader_writer_by_name("NibabelIO").__module__ == "nnunetv2.imageio.nibabel_reader_writer"
    with pytest.raises(RuntimeError, match="NoSuchReader"):
        recursive_find_reader_writer_by_name("NoSuchReader")
