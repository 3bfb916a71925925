"""What counts as the same settings and code, and what a record says about the files of a case."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from tiny_models import dataset_json, plans

from nnunetv2.preprocessing.case_records import (
    ENDINGS,
    CaseRecord,
    code_digest,
    file_states,
    prepare_records,
    records_of_cases,
    settings_digest,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor, _remove_other_files
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


class OwnPreprocessor(DefaultPreprocessor):
    """Of the user: it may read any entry of the plans."""


def digest(preprocessor: DefaultPreprocessor, dataset: dict | None = None, name: str | None = None, **configuration) -> str:
    content = plans()
    content["configurations"]["3d_fullres"].update(configuration)
    content["plans_name"] = name or content["plans_name"]
    manager = PlansManager(content)
    return settings_digest(preprocessor, manager, manager.get_configuration("3d_fullres"), dataset or dataset_json())


DEFAULT, OWN = DefaultPreprocessor(verbose=False), OwnPreprocessor(verbose=False)


@pytest.mark.parametrize("preprocessor", [DEFAULT, OWN])
def test_what_decides_the_voxels_decides_the_digest(preprocessor: DefaultPreprocessor) -> None:
    same = digest(preprocessor)
    assert digest(preprocessor) == same
    assert digest(preprocessor, name="other") == same  # plans that preprocess alike share a folder
    assert digest(preprocessor, dataset_json(description="x", numTraining=3)) == same
    assert digest(preprocessor, spacing=[2.0, 1.0, 1.0]) != same
    assert digest(preprocessor, normalization_schemes=["NoNormalization"]) != same
    assert digest(preprocessor, dataset_json({"background": 0, "organ": 1})) != same


def test_only_a_preprocessor_of_the_user_may_depend_on_the_rest_of_the_plans() -> None:
    assert digest(DEFAULT, batch_size=7) == digest(DEFAULT)
    assert digest(OWN, batch_size=7) != digest(OWN)
    assert digest(OWN) != digest(DEFAULT)


def test_changes_of_the_users_code_and_of_what_lies_beside_it_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reader.py").write_text("class OwnReader:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_reader

    before = code_digest(own_reader.OwnReader)
    assert code_digest(own_reader.OwnReader) == before
    (tmp_path / "helper_of_reader.py").write_text("FACTOR = 2\n")
    with_helper = code_digest(own_reader.OwnReader)
    (tmp_path / "own_reader.py").write_text("class OwnReader:\n    changed = True\n")
    assert len({before, with_helper, code_digest(own_reader.OwnReader)}) == 3
    del sys.modules["own_reader"]


def test_of_code_without_a_file_changes_are_not_seen(tmp_path: Path) -> None:
    made_by_hand = type("Made", (DefaultPreprocessor,), {"__module__": "nowhere"})
    assert code_digest(made_by_hand) is None
    manager = PlansManager(plans())
    files = {"images": [str(tmp_path / "image")], "label": str(tmp_path / "image")}
    (tmp_path / "image").write_text("voxels")
    for ending in ENDINGS:
        (tmp_path / f"case{ending}").write_text("stored")
    own = records_of_cases(
        made_by_hand(), str(tmp_path), {"case": files}, manager, manager.get_configuration("3d_fullres"), dataset_json()
    )["case"]
    Path(own.file).parent.mkdir()
    own.write()
    assert own.is_made() and not own.is_current()


def record(tmp_path: Path) -> CaseRecord:
    (tmp_path / "image").write_text("voxels")
    return CaseRecord(str(tmp_path / "case.json"), str(tmp_path / "case"), "settings", file_states([str(tmp_path / "image")]))


@pytest.mark.parametrize("endings", [[], [".npz", ".pkl"]])
def test_a_case_that_is_stored_otherwise_is_made_but_never_current(tmp_path: Path, endings: list[str]) -> None:
    own = record(tmp_path)
    for ending in endings:
        (tmp_path / f"case{ending}").write_text("stored")
    own.write()
    assert own.is_made() and not own.is_current()
    (tmp_path / "image").write_text("other voxels")
    assert not dataclasses.replace(own, inputs=file_states([str(tmp_path / "image")])).is_made()


def test_a_case_that_lost_a_file_is_an_error_and_a_whole_one_is_current(tmp_path: Path) -> None:
    own = record(tmp_path)
    (tmp_path / "case_seg.b2nd").write_text("array")
    with pytest.raises(FileNotFoundError, match="Another program"):
        own.write()
    for ending in (".b2nd", ".pkl"):
        (tmp_path / f"case{ending}").write_text("stored")
    own.write()
    assert own.is_current()
    own.remove()
    assert not own.is_current()


def test_parts_that_start_together_may_remove_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cases"
    scan = os.scandir

    def scan_before_the_other_part_removes(path: str) -> list[os.DirEntry]:
        entries = list(scan(path))
        for entry in entries:
            os.unlink(entry.path)
        return entries

    for path in (folder / "gone.b2nd", tmp_path / "cases.cases" / "gone.json"):
        path.parent.mkdir()
        path.touch()
    monkeypatch.setattr(os, "scandir", scan_before_the_other_part_removes)
    _remove_other_files(str(folder), [], is_alone=False)
    prepare_records(str(folder), [])
    monkeypatch.undo()
    assert not list(tmp_path.rglob("gone*"))
