"""The root folders follow the environment at the moment of use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunetv2 import configuration
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results


def test_a_folder_set_after_import_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/one")
    assert os.path.join(nnUNet_raw, "Dataset001_A") == "/one/Dataset001_A"
    monkeypatch.setenv("nnUNet_raw", "/two")
    assert nnUNet_raw / "Dataset001_A" == Path("/two/Dataset001_A")
    assert (str(nnUNet_raw), nnUNet_raw.get(), nnUNet_raw.require(), bool(nnUNet_raw)) == ("/two", "/two", "/two", True)


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_folder_is_false_and_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    if value is not None:
        monkeypatch.setenv("nnUNet_results", value)
    assert not nnUNet_results
    assert not nnUNet_results.is_set()
    assert nnUNet_results == None
    for use in (os.fspath, str, lambda path: os.path.join(path, "x")):
        with pytest.raises(RuntimeError, match="nnUNet_results is not set.*export nnUNet_results="):
            use(nnUNet_results)
    assert "nnUNet_results" in repr(nnUNet_results)


def test_folders_are_compared_by_their_present_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/data")
    monkeypatch.setenv("nnUNet_preprocessed", "/data")
    assert nnUNet_raw == nnUNet_preprocessed == "/data"
    assert nnUNet_raw == Path("/data")
    assert nnUNet_raw != "/elsewhere"


def test_default_processes_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    assert configuration.default_num_processes == 8
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    assert configuration.default_num_processes == 3
    assert configuration.ANISO_THRESHOLD == 3


def test_a_default_number_of_processes_that_is_none_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_def_n_proc", "many")
    with pytest.raises(ValueError, match="nnUNet_def_n_proc is 'many'"):
        configuration.default_num_processes  # noqa: B018
