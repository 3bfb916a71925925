"""Which files belong to which case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2.utilities.utils import (
    create_lists_from_splitted_dataset_folder,
    create_paths_fn,
    get_filenames_of_train_images_and_targets,
    get_identifiers_from_splitted_dataset_folder,
)


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def test_channels_are_grouped_by_case_in_order(tmp_path: Path) -> None:
    folder = write(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_1_0000.nii.gz", "a_0000.nii.gz", "a_0000.png", "notes.txt")
    assert get_identifiers_from_splitted_dataset_folder(folder, ".nii.gz") == ["a", "a_1", "b"]
    lists = create_lists_from_splitted_dataset_folder(folder, ".nii.gz")
    assert [[Path(path).name for path in case] for case in lists] == [
        ["a_0000.nii.gz"],
        ["a_1_0000.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]


def test_asked_cases_keep_their_order_and_missing_ones_have_no_files(tmp_path: Path) -> None:
    folder = write(tmp_path, "a_0000.png", "b_0000.png")
    lists = create_lists_from_splitted_dataset_folder(folder, ".png", ["b", "c", "a"])
    assert [[Path(path).name for path in case] for case in lists] == [["b_0000.png"], [], ["a_0000.png"]]


def test_hidden_files_are_no_cases_and_stray_ones_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "a_0000.png", "._a_0000.png", ".DS_Store", "overview.png")
    with pytest.warns(UserWarning, match=r"1 file.*overview\.png"):
        assert get_identifiers_from_splitted_dataset_folder(folder, ".png") == ["a"]


def test_an_identifier_is_no_regular_expression(tmp_path: Path) -> None:
    assert create_paths_fn("/x", ["a.b_0001.png", "a.b_0000.png", "aXb_0000.png"], ".png", "a.b") == ["/x/a.b_0000.png", "/x/a.b_0001.png"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="imagesTr"):
        get_filenames_of_train_images_and_targets(tmp_path, {"file_ending": ".png"})


def test_training_cases_from_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "Dataset001_A" / "imagesTr", "b_0000.png", "a_0000.png")
    (tmp_path / "Dataset001_A" / "dataset.json").write_text(json.dumps({"file_ending": ".png"}))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    cases = get_filenames_of_train_images_and_targets("Dataset001_A")
    folder = str(tmp_path / "Dataset001_A")
    assert list(cases) == ["a", "b"]
    assert cases["a"] == {"images": [f"{folder}/imagesTr/a_0000.png"], "label": f"{folder}/labelsTr/a.png"}


def test_listed_cases_keep_their_order_and_resolve_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_IMAGES", "/elsewhere")
    listed = {"b": {"images": ["${MY_IMAGES}/b1.png", "sub/b2.png"], "label": "../b.png"}, "a": {"images": ["/a.png"], "label": "/al.png"}}
    cases = get_filenames_of_train_images_and_targets(tmp_path, {"file_ending": ".png", "dataset": listed})
    assert list(cases) == ["b", "a"]
    assert cases["b"] == {"images": ["/elsewhere/b1.png", str(tmp_path / "sub/b2.png")], "label": str(tmp_path.parent / "b.png")}


def test_incomplete_listed_cases_are_named_together(tmp_path: Path) -> None:
    listed = {"a": {"images": ["a.png"]}, "b": {"images": [], "label": "b.png"}, "c": {"images": ["c.png"], "label": "c.png"}}
    with pytest.raises(ValueError, match="Not so for: a, b"):
        get_filenames_of_train_images_and_targets(tmp_path, {"dataset": listed})
