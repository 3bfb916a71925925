"""3D tif stacks and their spacing files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nnunetv2.imageio.tif_reader_writer import Tiff3DIO


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "case_0000.tif", np.arange(60, dtype=np.uint8).reshape(3, 4, 5), photometric="minisblack")
    return tmp_path / "case_0000.tif"


def test_spacing_of_images_stands_in_the_file_of_the_case(file: Path) -> None:
    file.with_name("case.json").write_text('{"spacing": [3, 1, 0.5]}')
    assert list(Tiff3DIO().read_images([str(file)])[1]["spacing"]) == [3, 1, 0.5]


def test_without_spacing_file_a_warning_and_one_millimetre(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, properties = Tiff3DIO().read_images([str(file)])
    assert tuple(properties["spacing"]) == (1, 1, 1)
    assert "case.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["{}", "no json", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": 3}', '{"spacing": [1, "a", 1]}']
)
def test_a_broken_spacing_file_is_named(file: Path, content: str) -> None:
    file.with_name("case.json").write_text(content)
    with pytest.raises(RuntimeError, match="case.json"):
        Tiff3DIO().read_images([str(file)])


def test_segmentations_are_written_with_their_own_spacing_file(file: Path) -> None:
    Tiff3DIO().write_seg(np.zeros((3, 4, 5)), str(file.with_name("out.tif")), {"spacing": [np.float64(2), 1, 0.5]})
    assert json.loads(file.with_name("out.json").read_text()) == {"spacing": [2.0, 1, 0.5]}
    assert Tiff3DIO().read_seg(str(file.with_name("out.tif")))[1]["spacing"] == [2.0, 1, 0.5]


def test_2d_files_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((4, 5), dtype=np.uint8))
    with pytest.raises(RuntimeError, match="3D"):
        Tiff3DIO().read_images([str(tmp_path / "a_0000.tif")])
