"""Files are whole or absent; pickles hold data only."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from nnunetv2.utilities.file_io import (
    DiskFullError,
    atomic_path,
    load_json,
    load_properties,
    remove_remains,
    restricted_pickle_load,
    save_json,
    save_pickle,
)

PROPERTIES = {
    "spacing": [999.0, 1.5, np.float64(1.5)],
    "shape_before_cropping": (1, 20, 30),
    "bbox_used_for_cropping": [[np.int64(0), 20], [0, 30]],
    "class_locations": {1: np.arange(8).reshape(2, 4), (1, 2): np.zeros((0, 4), np.int64)},
    "more": OrderedDict(a={1, 2}, b=b"bytes", c=np.bool_(True), d=np.array(["case"]), e=None, f=complex(1, 2)),
}


class RunsCode:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "case.nii.gz").write_text("old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "case.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        raise KeyError
    assert (tmp_path / "case.nii.gz").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_remains_of_killed_processes_are_removed_with_the_names_of_their_files(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "case-1.b2nd") as first, atomic_path(first) as nested, atomic_path(tmp_path / "other.b2nd") as other:
        for path in (first, nested, other):
            path.write_text("half")
        (tmp_path / "case-1.b2nd").write_text("old")
        remove_remains([tmp_path / "case-1.b2nd", tmp_path / "1.b2nd"])
        assert not first.exists() and not nested.exists() and other.exists()
        assert (tmp_path / "case-1.b2nd").read_text() == "old"
        nested.write_text("again")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_file_and_the_old_file_stays(tmp_path: Path, number: int) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(DiskFullError, match=r"Cannot write .*/a\.json: .*Free some space") as caught:
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise OSError(number, "some words")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it comes from worker processes too


def test_errors_of_libraries_are_taken_for_a_full_disk_only_where_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "a.b2nd"):
            raise RuntimeError("Error while creating the NDArray")

    with pytest.raises(RuntimeError, match="NDArray"):
        write()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"a\.b2nd"):
        write()


def test_a_writer_within_a_writer_names_the_outer_file(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as caught, atomic_path(tmp_path / "case.pkl") as outer, atomic_path(outer) as inner:
        inner.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "case.pkl")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Cannot write .*b\.json: the folder .*a does not exist"):
        save_json({}, tmp_path / "a" / "b.json")


def test_a_written_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.json").read_text() == "old"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "new")]


def test_json_takes_numpy_values_and_leaves_the_object_as_it_was(tmp_path: Path) -> None:
    content = {"b": np.float32(0.5), "a": [np.int64(1), (2, np.bool_(True))], 3: np.arange(2), "nan": float("nan")}
    save_json(content, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert "NaN" in text
    assert text.index('"b"') < text.index('"a"')
    loaded = load_json(tmp_path / "x.json")
    assert loaded.pop("nan") != 0
    assert loaded == {"b": 0.5, "a": [1, [2, True]], "3": [0, 1]}
    assert isinstance(content["b"], np.float32)
    assert isinstance(content[3], np.ndarray)


def test_what_json_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Key 'inner'.*object"):
        save_json({"outer": {"inner": object()}}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"{'a': 1}", "line 1"), (b'{"a": "\xff"}', "UTF-8")])
def test_a_broken_json_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_json(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_in_json_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert load_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_properties_of_every_pickle_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(PROPERTIES, protocol=protocol))
    loaded = load_properties(tmp_path / "case.pkl")
    np.testing.assert_equal(loaded, PROPERTIES)
    assert type(loaded["spacing"][2]) is np.float64
    assert loaded["class_locations"][1].dtype == PROPERTIES["class_locations"][1].dtype


def test_saved_properties_come_back(tmp_path: Path) -> None:
    save_pickle(PROPERTIES, tmp_path / "case.pkl")
    np.testing.assert_equal(load_properties(tmp_path / "case.pkl"), PROPERTIES)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "case.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"spacing": [1], "x": RunsCode(trace)}, protocol=protocol))
    with pytest.raises(ValueError, match="mkdir") as error:
        restricted_pickle_load(path)
    assert str(path) in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(Vprint(1)\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.ctypeslib\nload_library\n.",
        b"cnumpy\nf2py\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0esctypeDict.get\x93.",
    ],
)
def test_names_beyond_plain_data_are_refused(tmp_path: Path, attack: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(attack)
    with pytest.raises(ValueError, match=r"x\.pkl"):
        restricted_pickle_load(tmp_path / "x.pkl")


def test_an_array_of_objects_cannot_smuggle_code(tmp_path: Path) -> None:
    array = np.array([RunsCode(tmp_path / "trace")], dtype=object)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(ValueError, match="mkdir"):
        restricted_pickle_load(tmp_path / "x.pkl")
    assert not (tmp_path / "trace").exists()


def test_every_truncation_of_a_pickle_is_an_error_that_names_it(tmp_path: Path) -> None:
    content = pickle.dumps(PROPERTIES, protocol=4)
    for length in range(0, len(content), 7):
        (tmp_path / "cut.pkl").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl"):
            load_properties(tmp_path / "cut.pkl")


def test_properties_that_are_no_dictionary_are_an_error(tmp_path: Path) -> None:
    save_pickle([1, 2], tmp_path / "case.pkl")
    with pytest.raises(ValueError, match=r"case\.pkl holds a list"):
        load_properties(tmp_path / "case.pkl")
