"""Chunk and block shapes, and array files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnunetv2.preprocessing import case_storage
from nnunetv2.preprocessing.case_storage import comp_blosc2_params, open_array, remove_case, select_filter, store_case, write_array
from nnunetv2.utilities.file_io import atomic_path


@pytest.mark.parametrize(
    ("image", "patch", "item_bytes", "block", "chunk"),
    [  # recorded from nnunetv2 2.8.1
        ((1, 432, 512, 512), (128, 128, 128), 4, (1, 32, 32, 32), (1, 96, 128, 128)),
        ((1, 432, 512, 512), (128, 128, 128), 2, (1, 64, 32, 32), (1, 128, 192, 128)),
        ((4, 140, 171, 136), (128, 160, 112), 4, (1, 32, 32, 32), (1, 128, 128, 96)),
        ((1, 15, 256, 216), (16, 256, 224), 4, (1, 4, 128, 64), (1, 15, 256, 216)),
        ((1, 432, 512, 512), (512, 512), 4, (1, 1, 256, 128), (1, 1, 512, 512)),
        ((3, 1, 1500, 1500), (1280, 1024), 4, (1, 1, 256, 128), (1, 1, 1280, 1152)),
        ((1, 36, 50, 35), (40, 56, 40), 4, (1, 32, 32, 32), (1, 36, 50, 35)),
        ((1, 36, 50, 35), (40, 56, 40), 2, (1, 36, 50, 35), (1, 36, 50, 35)),
        ((1, 123, 423, 645), (20, 320, 256), 4, (1, 8, 64, 64), (1, 24, 256, 256)),
    ],
)
def test_shapes_equal_nnunets(image: tuple, patch: tuple, item_bytes: int, block: tuple, chunk: tuple) -> None:
    assert comp_blosc2_params(image, patch, item_bytes) == (block, chunk)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_what_is_written_is_read(tmp_path: Path, dtype: type) -> None:
    array = (np.random.RandomState(0).randn(2, 20, 30, 25) * 10).astype(dtype)
    blocks, chunks = comp_blosc2_params(array.shape, (16, 16, 16), array.itemsize)
    write_array(array, tmp_path / "a.b2nd", blocks, chunks)
    opened = open_array(tmp_path / "a.b2nd")
    assert (opened.dtype, opened.shape, opened.blocks, opened.chunks) == (array.dtype, array.shape, blocks, chunks)
    np.testing.assert_array_equal(opened[1:, 3:9], array[1:, 3:9])
    assert [path.name for path in tmp_path.iterdir()] == ["a.b2nd"]


def test_arrays_that_are_views_or_lack_shapes_are_written(tmp_path: Path) -> None:
    array = np.random.RandomState(0).randn(6, 7, 8).astype(np.float32).transpose(2, 0, 1)
    write_array(array, tmp_path / "a.b2nd")
    np.testing.assert_array_equal(open_array(tmp_path / "a.b2nd")[:], array)


def test_codec_and_filter_can_be_chosen(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32).reshape(1, 10, 10, 10)
    write_array(array, tmp_path / "a.b2nd", codec=blosc2.Codec.ZSTD, clevel=8, filters=blosc2.Filter.BITSHUFFLE)
    parameters = open_array(tmp_path / "a.b2nd").schunk.cparams
    assert (parameters.codec, parameters.clevel, parameters.filters[0]) == (blosc2.Codec.ZSTD, 8, blosc2.Filter.BITSHUFFLE)


def test_the_better_filter_is_chosen() -> None:
    smooth = np.linspace(1, 2, 64**3, dtype=np.float32).reshape(1, 64, 64, 64)
    shapes = comp_blosc2_params(smooth.shape, (64, 64, 64))
    assert select_filter(smooth, *shapes, blosc2.Codec.LZ4, 9) == blosc2.Filter.SHUFFLE
    assert select_filter(np.zeros_like(smooth), *shapes, blosc2.Codec.LZ4, 9) == blosc2.Filter.NOFILTER


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"case_1\.b2nd does not exist"):
        open_array(tmp_path / "case_1.b2nd")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_array(np.random.RandomState(0).randn(1, 20, 20, 20), tmp_path / "a.b2nd")
    content = (tmp_path / "a.b2nd").read_bytes()
    (tmp_path / "a.b2nd").write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=r"a\.b2nd cannot be read"):
        open_array(tmp_path / "a.b2nd")


def test_removing_a_case_leaves_the_others(tmp_path: Path) -> None:
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl", "a_2.b2nd"):
        (tmp_path / name).touch()
    remove_case(str(tmp_path / "a"))
    remove_case(str(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a_2.b2nd"]


def test_a_case_is_replaced_when_its_new_files_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, array = str(tmp_path / "case"), np.ones((1, 4, 4, 4), np.float32)
    store_case(case, array, array.astype(np.int16), {"spacing": [1, 1, 1]})
    names = ["case.b2nd", "case.pkl", "case_seg.b2nd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(properties: dict, path: Path) -> None:
        with atomic_path(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(case_storage, "save_pickle", full)
    with pytest.raises(OSError, match=r"/case\.pkl"):
        store_case(case, array * 2, array.astype(np.int16), {"spacing": [2, 2, 2]})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    store_case(case, array * 2, array.astype(np.int16), {"spacing": [2, 2, 2]})
    assert open_array(case + ".b2nd")[:].max() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_case_that_is_only_half_replaced_has_no_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, array = str(tmp_path / "case"), np.ones((1, 4, 4, 4), np.float32)
    store_case(case, array, array.astype(np.int16), {"spacing": [1, 1, 1]})
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if str(target).endswith("_seg.b2nd") and str(source).count(".tmp-") == 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store_case(case, array * 2, array.astype(np.int16), {"spacing": [2, 2, 2]})
    assert not (tmp_path / "case.pkl").exists()
