"""The dataset.json that conversion scripts write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json


def generated(folder: Path, *args: object, **kwargs: object) -> dict:
    generate_dataset_json(str(folder), *args, **kwargs)
    return json.loads((folder / "dataset.json").read_text())


def test_required_keys_come_first_and_in_order(tmp_path: Path) -> None:
    content = generated(tmp_path, {0: "CT", "1": "PET"}, {"background": 0, "tumour": "1"}, 5, ".nii.gz")
    assert list(content)[:4] == ["channel_names", "labels", "numTraining", "file_ending"]
    assert list(content["channel_names"].items()) == [("0", "CT"), ("1", "PET")]
    assert content["labels"] == {"background": 0, "tumour": 1}
    assert content["numTraining"] == 5
    assert not {"citation", "release", "name", "regions_class_order"} & set(content)


def test_every_optional_entry_lands_under_its_own_key(tmp_path: Path) -> None:
    content = generated(
        tmp_path,
        {0: "CT"},
        {"background": 0, "whole": (1, 2), "core": [2]},
        5,
        ".nii.gz",
        citation="Doe 2020",
        regions_class_order=(1, 2),
        dataset_name="Name",
        reference="example.org",
        release="1.0",
        description="text",
        overwrite_image_reader_writer="NibabelIO",
        license="CC0",
        converted_by="me",
        case_labels="labels.csv",
    )
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": [2]}
    expected = {
        "citation": "Doe 2020",
        "release": "1.0",
        "regions_class_order": [1, 2],
        "name": "Name",
        "reference": "example.org",
        "description": "text",
        "overwrite_image_reader_writer": "NibabelIO",
        "licence": "CC0",
        "converted_by": "me",
        "case_labels": "labels.csv",
    }
    assert {key: content[key] for key in expected} == expected


def test_regions_need_their_class_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regions_class_order"):
        generate_dataset_json(str(tmp_path), {0: "CT"}, {"background": 0, "whole": (1, 2)}, 5, ".nii.gz")
    assert not (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize("value", [1.5, "one", None])
def test_label_values_must_be_whole_numbers(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="tumour"):
        generate_dataset_json(str(tmp_path), {0: "CT"}, {"background": 0, "tumour": value}, 5, ".nii.gz")


def test_the_file_ending_needs_its_dot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dot"):
        generate_dataset_json(str(tmp_path), {0: "CT"}, {"background": 0}, 5, "nii.gz")


def test_classification_tasks_are_checked_and_written_as_they_are(tmp_path: Path) -> None:
    tasks = {"grade": {"classes": ["low", "high"], "evidence": ["tumour"], "flip_sensitive_axes": [0]}}
    labels = {"background": 0, "tumour": 1}
    assert generated(tmp_path, {0: "CT"}, labels, 5, ".nii.gz", classification=tasks)["classification"] == tasks
    tasks["grade"]["evidence"] = ["lesion"]
    with pytest.raises(ValueError, match="lesion"):
        generate_dataset_json(str(tmp_path), {0: "CT"}, labels, 5, ".nii.gz", classification=tasks)
