"""Dataset numbers and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2.utilities.dataset_name_id_conversion import (
    convert_dataset_name_to_id,
    convert_id_to_dataset_name,
    find_candidate_datasets,
    maybe_convert_to_dataset_name,
)


def test_a_dataset_in_several_folders_is_one(nnunet_folders: dict[str, Path]) -> None:
    for folder in nnunet_folders.values():
        (folder / "Dataset004_Hippocampus").mkdir()
    assert convert_id_to_dataset_name(4) == "Dataset004_Hippocampus"
    assert maybe_convert_to_dataset_name("4") == maybe_convert_to_dataset_name(4) == "Dataset004_Hippocampus"


def test_unset_folders_are_passed_over(nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (nnunet_folders["raw"] / "Dataset004_A").mkdir()
    monkeypatch.delenv("nnUNet_results")
    monkeypatch.setenv("nnUNet_preprocessed", "/does/not/exist")
    assert convert_id_to_dataset_name(4) == "Dataset004_A"


def test_two_names_of_one_number_are_an_error_that_names_both(nnunet_folders: dict[str, Path]) -> None:
    (nnunet_folders["raw"] / "Dataset004_A").mkdir()
    (nnunet_folders["results"] / "Dataset004_B").mkdir()
    with pytest.raises(RuntimeError, match=r"Dataset004_A, Dataset004_B"):
        convert_id_to_dataset_name(4)


def test_an_unknown_number_is_an_error_that_names_the_folders(nnunet_folders: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="(?s)id 7.*nnUNet_raw = "):
        maybe_convert_to_dataset_name(7)


def test_files_and_longer_numbers_are_no_candidates(nnunet_folders: dict[str, Path]) -> None:
    (nnunet_folders["raw"] / "Dataset100_A").mkdir()
    (nnunet_folders["raw"] / "Dataset1000_B").mkdir()
    (nnunet_folders["raw"] / "Dataset100_C.zip").write_text("")
    assert find_candidate_datasets(100) == ["Dataset100_A"]


def test_names_pass_whether_they_exist_or_not(nnunet_folders: dict[str, Path]) -> None:
    assert maybe_convert_to_dataset_name("Dataset999_Nowhere") == "Dataset999_Nowhere"


def test_text_that_is_neither_is_an_error() -> None:
    with pytest.raises(ValueError, match="'5x'"):
        maybe_convert_to_dataset_name("5x")


@pytest.mark.parametrize(("name", "number"), [("Dataset012_foo", 12), ("Dataset000_", 0), ("Dataset999_a_b", 999)])
def test_the_number_of_a_name(name: str, number: int) -> None:
    assert convert_dataset_name_to_id(name) == number


def test_a_name_without_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="DatasetX"):
        convert_dataset_name_to_id("DatasetX_foo")
