from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.cli.convert_class_folders import main
from nnunetv2.dataset_conversion.convert_class_folders import convert_class_folders
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

NAME = "Dataset101_Classes"
OPTIONS = {"task_name": "subtype", "label_names": ["background", "organ", "lesion"], "channel_names": ["CT"]}


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def source(tmp_path) -> Path:
    """Four training cases, two of validation, one of test; the file's content is its own name."""
    folder = tmp_path / "source"
    for place in ("train/subtype0/a", "train/subtype0/b", "train/subtype1/c", "train/subtype1/d"):
        write(folder / f"{place}_0000.nii.gz")
        write(folder / f"{place}.nii.gz")
    for place in ("validation/subtype0/v", "validation/subtype1/w"):
        write(folder / f"{place}_0000.nii.gz")
        write(folder / f"{place}.nii.gz")
    write(folder / "test" / "t_0000.nii.gz")
    return folder


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.name)


def test_folders_become_a_dataset(source, raw) -> None:
    folder, _ = convert_class_folders(source, NAME, **OPTIONS, evidence=["lesion"], context=["organ"])
    assert folder == raw / NAME
    assert [entry.name for entry in raw.iterdir()] == [NAME]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["classification"] == {"subtype": {"classes": ["subtype0", "subtype1"], "evidence": ["lesion"], "context": ["organ"]}}
    assert content["labels"] == {"background": 0, "organ": 1, "lesion": 2}
    assert (content["channel_names"], content["numTraining"], content["file_ending"]) == ({"0": "CT"}, 6, ".nii.gz")
    assert (folder / "labels.csv").read_text().splitlines() == [
        "identifier,subtype", "a,subtype0", "b,subtype0", "c,subtype1", "d,subtype1", "v,subtype0", "w,subtype1",
    ]  # fmt: skip
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["a", "b", "c", "d"], "val": ["v", "w"]}]
    for kind, names in (("imagesTr", "abcdvw"), ("imagesTs", "t")):
        files = [f"{name}_0000.nii.gz" for name in names]
        assert {file.name: file.read_text() for file in (folder / kind).iterdir()} == dict(zip(files, files, strict=True))
    assert {file.name: file.read_text() for file in (folder / "labelsTr").iterdir()} == {f"{n}.nii.gz": f"{n}.nii.gz" for n in "abcdvw"}


def test_copies_are_independent_and_links_are_not(source, raw) -> None:
    original = source / "train/subtype0/a.nii.gz"
    copy = convert_class_folders(source, NAME, **OPTIONS)[0] / "labelsTr" / "a.nii.gz"
    assert not copy.samefile(original)
    link = convert_class_folders(source, "Dataset102_Links", **OPTIONS, hard_links=True)[0] / "labelsTr" / "a.nii.gz"
    assert link.samefile(original)


def test_all_problems_are_reported_together_and_nothing_is_written(source, raw) -> None:
    write(source / "train/subtype1/a_0000.nii.gz")
    write(source / "train/subtype1/a.nii.gz")
    write(source / "test/b_0000.nii.gz")
    (source / "train/subtype1/c.nii.gz").unlink()
    (source / "train/subtype0/b_0000.nii.gz").unlink()
    write(source / "validation/subtype0/v_0001.nii.gz")
    write(source / "validation/subtype7/x_0000.nii.gz")
    (source / "train/empty").mkdir()
    with pytest.raises(ValueError) as caught:
        convert_class_folders(source, NAME, **OPTIONS, evidence=["tumour"])
    message = str(caught.value)
    for problem in (
        "case a: stands in train/subtype0 and in train/subtype1",
        "case b: stands in train/subtype0 and in test",
        "subtype0: no image b_0000.nii.gz",
        "subtype1: no segmentation c.nii.gz",
        "v_0001.nii.gz, but only 1 channel names are given",
        "subtype7: no segmentation x.nii.gz",
        "classes of validation that train does not have: subtype7",
        "empty holds no case",
        "names 'tumour', expected names of `labels`",
    ):
        assert problem in message
    assert not list(raw.iterdir())


def test_a_segmentation_whose_name_ends_like_a_channel_belongs_to_its_case(source, raw) -> None:
    write(source / "train/subtype0/case_0001_0000.nii.gz")
    write(source / "train/subtype0/case_0001.nii.gz")
    folder, _ = convert_class_folders(source, NAME, **OPTIONS)
    assert (folder / "labelsTr/case_0001.nii.gz").is_file()
    assert (folder / "imagesTr/case_0001_0000.nii.gz").is_file()


def test_several_channels_and_an_order_of_the_classes(source, raw) -> None:
    for image in list(source.rglob("*_0000.nii.gz")):
        write(image.with_name(image.name.replace("_0000", "_0001")))
    options = OPTIONS | {"channel_names": ["T1", "T2"]}
    folder, _ = convert_class_folders(source, NAME, **options, class_names=["subtype1", "subtype0"])
    assert json.loads((folder / "dataset.json").read_text())["classification"]["subtype"]["classes"] == ["subtype1", "subtype0"]
    assert (folder / "imagesTr/a_0001.nii.gz").read_text() == "a_0001.nii.gz"
    with pytest.raises(ValueError, match="classes are given as subtype1, other, but the folders are subtype0, subtype1"):
        convert_class_folders(source, "Dataset103_X", **options, class_names=["subtype1", "other"])


def test_without_a_validation_folder_training_makes_the_folds(source, raw) -> None:
    for file in sorted((source / "validation").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder, _ = convert_class_folders(source, NAME, **OPTIONS)
    assert not (folder / "splits_final.json").exists()


def test_an_existing_dataset_stays(source, raw) -> None:
    (raw / NAME).mkdir()
    with pytest.raises(ValueError, match="exists already"):
        convert_class_folders(source, NAME, **OPTIONS)
    with pytest.raises(ValueError, match=f"101 belongs to {NAME}"):
        convert_class_folders(source, "Dataset101_Other", **OPTIONS)
    with pytest.raises(ValueError, match="no dataset name"):
        convert_class_folders(source, "Dataset104_a/b", **OPTIONS)


def test_what_fails_half_way_leaves_nothing_behind(source, raw, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("nnunetv2.dataset_conversion.convert_class_folders.save_json", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_class_folders(source, NAME, **OPTIONS)
    assert not list(raw.iterdir())


def test_the_result_of_the_command_passes_the_integrity_check(source, raw, capsys) -> None:
    """Values of other tools such as 1.0000153 are left as they are: reading rounds them."""
    for file in source.rglob("*.nii.gz"):
        array = np.zeros((4, 5, 6), np.float32)
        array[1, 1:3, 1:3] = 1.0000153 if "_0000" not in file.name else 7
        array[2, 1:3, 1:3] = 2
        sitk.WriteImage(sitk.GetImageFromArray(array), str(file))
    (source / "train" / "readme.txt").write_text("hello")
    (source / "val").mkdir()
    main([str(source), "-d", NAME, "-labels", "background", "organ", "lesion", "-channels", "CT", "-task", "kind", "-evidence", "lesion"])
    printed = capsys.readouterr().out
    assert "subtype1          2          1" in printed
    assert "1 test cases" in printed
    assert "train are not used: readme.txt" in printed
    assert "source are not used: val" in printed
    verify_dataset_integrity(str(raw / NAME), num_processes=1)
    printed = capsys.readouterr().out
    assert "are rounded" in printed
    assert "kind (multiclass)" in printed
