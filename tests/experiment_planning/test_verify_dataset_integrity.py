"""Every kind of bad raw data is found, named by case and reported together with the others."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from skimage import io as skimage_io

from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_dataset_integrity, verify_labels
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

SHAPE = (5, 6, 7)
CASES = ("case_1", "case_2", "case_3", "case_4")


def save(file: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1, 1, 2), origin: tuple[float, ...] = (0, 0, 0)) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)


def some_labels() -> np.ndarray:
    seg = np.zeros(SHAPE, dtype=np.float32)
    seg[1:3, 1:3, 1:3], seg[3, 3, 3] = 1, 2
    return seg


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound dataset of four cases with two channels."""
    folder = tmp_path / "Dataset001_Test"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for case in CASES:
        for channel in (0, 1):
            save(folder / "imagesTr" / f"{case}_000{channel}.nii.gz", generator.normal(size=SHAPE).astype(np.float32))
        save(folder / "labelsTr" / f"{case}.nii.gz", some_labels())
    write_dataset_json(folder)
    return folder


def write_dataset_json(folder: Path, **changes: object) -> None:
    """dataset.json with some keys changed; None removes a key."""
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content))


def problems_of(folder: Path) -> str:
    with pytest.raises(RuntimeError) as caught:
        verify_dataset_integrity(str(folder), num_processes=1)
    return str(caught.value)


def assert_passes(folder: Path, capsys: pytest.CaptureFixture[str], num_processes: int = 1) -> None:
    """Verified to the end, without a warning."""
    capsys.readouterr()
    verify_dataset_integrity(str(folder), num_processes)
    printed = capsys.readouterr().out
    assert "Done" in printed and "Warnings" not in printed


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_sound_dataset_passes(dataset: Path, num_processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert_passes(dataset, capsys, num_processes)


def test_all_problems_are_reported_at_once_by_case(dataset: Path) -> None:
    (dataset / "labelsTr" / "case_1.nii.gz").unlink()
    (dataset / "imagesTr" / "case_2_0001.nii.gz").unlink()
    save(dataset / "labelsTr" / "case_3.nii.gz", some_labels() * 2)
    image = np.zeros(SHAPE, dtype=np.float32)
    image[0, 0, 0] = np.nan
    save(dataset / "imagesTr" / "case_4_0000.nii.gz", image)
    save(dataset / "labelsTr" / "extra.nii.gz", some_labels())
    text = problems_of(dataset)
    by_case = dict(block.split(":\n", 1) for block in re.split(r"\n  (?! )", text)[1:])
    assert "no segmentation" in by_case["case_1"]
    assert "channel" in by_case["case_2"] and "missing" in by_case["case_2"]
    assert "does not declare: 4" in by_case["case_3"]
    assert "1 NaN" in by_case["case_4"] and "case_4_0000.nii.gz" in by_case["case_4"]
    assert "no image" in by_case["extra"]
    assert "found 5 problems" in text


def test_problems_are_the_same_from_worker_processes(dataset: Path) -> None:
    save(dataset / "labelsTr" / "case_3.nii.gz", some_labels() + 0.25)
    expected = problems_of(dataset)
    with pytest.raises(RuntimeError) as caught:
        verify_dataset_integrity(str(dataset), num_processes=2)
    assert str(caught.value) == expected and "0.25" in expected and "case_3" in expected


def test_a_missing_first_channel_is_named(dataset: Path) -> None:
    (dataset / "imagesTr" / "case_2_0000.nii.gz").unlink()
    assert "imagesTr/case_2_0000.nii.gz" in problems_of(dataset)


@pytest.mark.parametrize(
    ("shape", "spacing", "origin", "expected"),
    [
        ((5, 6, 8), (1, 1, 2), (0, 0, 0), "shapes differ"),
        (SHAPE, (1, 1.5, 2), (0, 0, 0), "spacings differ"),
        (SHAPE, (1, 1, 2), (0, 3, 0), "origin or direction differ"),
        (SHAPE, (-1, 1, 2), (0, 0, 0), "origin or direction differ"),
    ],
)
@pytest.mark.parametrize("file", ["labelsTr/case_2.nii.gz", "imagesTr/case_2_0001.nii.gz"])
def test_files_on_another_grid_are_found(dataset: Path, file: str, shape, spacing, origin, expected: str) -> None:
    save(dataset / file, np.zeros(shape, dtype=np.float32), spacing, origin)
    text = problems_of(dataset)
    assert expected in text and "case_2:" in text and os.path.basename(file) in text
    assert "case_1:" not in text


def test_a_shift_below_half_a_voxel_is_a_warning(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(dataset / "labelsTr" / "case_2.nii.gz", some_labels(), origin=(0, 0.3, 0))
    verify_dataset_integrity(str(dataset), 1)
    assert "case_2:\n    - origin or direction differ" in capsys.readouterr().out


def test_header_noise_is_not_mentioned(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(dataset / "labelsTr" / "case_2.nii.gz", some_labels(), origin=(0, 1e-4, 0))
    verify_dataset_integrity(str(dataset), 1)
    assert "Warnings" not in capsys.readouterr().out


def test_almost_whole_labels_are_summed_up_in_one_warning(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in CASES[:2]:
        save(dataset / "labelsTr" / f"{case}.nii.gz", some_labels() * np.float32(1.0000153))
    verify_dataset_integrity(str(dataset), 1)
    printed = capsys.readouterr().out
    assert printed.count("not quite whole numbers") == 1 and "case_1, case_2" in printed


@pytest.mark.parametrize("file", ["labelsTr/case_1.nii.gz", "imagesTr/case_1_0000.nii.gz", "imagesTr/case_4_0001.nii.gz"])
@pytest.mark.parametrize("part", [0, 0.3, 0.7, 0.9])
def test_unreadable_and_truncated_files_are_named(dataset: Path, file: str, part: float) -> None:
    content = (dataset / file).read_bytes()
    (dataset / file).write_bytes(content[: int(part * len(content))])
    text = problems_of(dataset)
    assert f"Cannot read {dataset / file}" in text and "found 1 problem " in text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_segmentations_with_values_that_are_no_numbers(dataset: Path, value: float) -> None:
    seg = some_labels()
    seg[0, 0, 0] = value
    save(dataset / "labelsTr" / "case_1.nii.gz", seg)
    text = problems_of(dataset)
    assert "case_1:" in text and ("1 NaN" in text or "1 infinite" in text)


def test_empty_segmentations_and_unused_labels_are_warnings(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in CASES:
        save(dataset / "labelsTr" / f"{case}.nii.gz", np.minimum(some_labels(), 0 if case == "case_1" else 1))
    verify_dataset_integrity(str(dataset), 1)
    printed = capsys.readouterr().out
    assert "1 of 4 segmentations hold background only: case_1" in printed
    assert "no segmentation holds: lesion" in printed


def test_hidden_files_and_other_endings_are_only_mentioned(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "imagesTr" / "._case_1_0000.nii.gz").write_bytes(b"")
    (dataset / "imagesTr" / "notes.txt").write_text("")
    verify_dataset_integrity(str(dataset), 1)
    printed = capsys.readouterr().out
    assert "._case_1_0000.nii.gz" in printed and "notes.txt" in printed


def test_images_with_a_name_outside_the_pattern_are_found(dataset: Path) -> None:
    (dataset / "imagesTr" / "case_1_0000.nii.gz").rename(dataset / "imagesTr" / "case_1.nii.gz")
    text = problems_of(dataset)
    assert "imagesTr/case_1.nii.gz" in text and "CASE_CCCC.nii.gz" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"numTraining": 7}, "'numTraining' is 7, but 4 training cases"),
        ({"numTraining": "4"}, "'numTraining' is '4'"),
        ({"numTraining": None}, "'numTraining' is missing"),
        ({"labels": None}, "'labels' is missing"),
        ({"file_ending": None}, "'file_ending' is missing"),
        ({"file_ending": "nii.gz"}, "begins with a dot"),
        ({"file_ending": ".xyz"}, "no training cases"),
        ({"channel_names": {"0": "T1"}}, "declares 1 in 'channel_names'"),
        ({"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}, "1 channel file is missing"),
        ({"labels": {"background": 0, "organ": 1, "lesion": 3}}, "consecutive"),
        ({"labels": {"background": 0, "organ": "one"}}, "whole numbers"),
        ({"labels": {"organ": 1, "lesion": 2}}, "background"),
        ({"labels": {"background": 0, "all": [1, 2], "lesion": 2}}, "regions_class_order"),
    ],
)
def test_problems_of_dataset_json(dataset: Path, changes: dict, expected: str) -> None:
    write_dataset_json(dataset, **changes)
    assert expected in problems_of(dataset)


def test_the_old_name_of_channel_names_is_accepted(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset_json(dataset, channel_names=None, modality={"0": "T1", "1": "T2"})
    assert_passes(dataset, capsys)
    write_dataset_json(dataset, channel_names=None, modality={"0": "T1"})  # it is counted, not just let through
    assert "dataset.json declares 1" in problems_of(dataset)


def test_regions_and_ignore_label_are_expected_labels(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "whole": [1, 2], "lesion": [2], "ignore": 3}
    write_dataset_json(dataset, labels=labels, regions_class_order=[1, 2])
    seg = some_labels()
    seg[4] = 3
    save(dataset / "labelsTr" / "case_1.nii.gz", seg)
    assert_passes(dataset, capsys)
    del labels["ignore"]
    write_dataset_json(dataset, labels=labels, regions_class_order=[1, 2])
    assert "does not declare: 3" in problems_of(dataset)


def test_missing_dataset_json_or_folders(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset.json"):
        verify_dataset_integrity(str(tmp_path))
    (dataset / "labelsTr").rename(dataset / "labels")
    text = problems_of(dataset)
    assert "labelsTr does not exist" in text and "case_4" in text


def test_cases_can_be_listed_in_dataset_json(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_TEST_FOLDER", str(dataset))
    images = ["imagesTr/case_1_0000.nii.gz", "$NNUNET_TEST_FOLDER/imagesTr/case_1_0001.nii.gz"]
    listed = {"first": {"images": images, "label": "labelsTr/case_1.nii.gz"}}
    write_dataset_json(dataset, numTraining=1, dataset=listed)
    verify_dataset_integrity(str(dataset), 1)
    listed["second"] = {"images": [images[0], "imagesTr/absent_0001.nii.gz"], "label": "labelsTr/absent.nii.gz"}
    write_dataset_json(dataset, numTraining=2, dataset=listed)
    text = problems_of(dataset)
    assert "second:" in text and "absent_0001.nii.gz" in text and "labelsTr/absent.nii.gz" in text and "first:" not in text


def test_colour_images_count_as_three_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    skimage_io.imsave(str(tmp_path / "imagesTr" / "a_0000.png"), pixels)
    skimage_io.imsave(str(tmp_path / "labelsTr" / "a.png"), (pixels[..., 0] > 99).astype(np.uint8), check_contrast=False)
    names = {"0": "R", "1": "G", "2": "B"}
    rest = {"file_ending": ".png", "numTraining": 1, "labels": {"background": 0, "bright": 1}}
    write_dataset_json(tmp_path, channel_names=names, **rest)
    assert_passes(tmp_path, capsys)
    write_dataset_json(tmp_path, channel_names={"0": "grey"}, **rest)
    assert "declares 1" in problems_of(tmp_path)


# --- classification ---------------------------------------------------------------------------------------------------

TASKS = {"grade": {"classes": ["low", "high"], "evidence": ["lesion"]}, "findings": {"type": "multilabel", "classes": ["cyst", "stone"]}}
GOOD_TABLE = "identifier,grade,findings\ncase_1,low,cyst\ncase_2,high,none\ncase_3,,cyst;stone\ncase_4,low,\n"


def test_classes_are_counted_in_a_table(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset_json(dataset, classification=TASKS)
    (dataset / "labels.csv").write_text(GOOD_TABLE)
    verify_dataset_integrity(str(dataset), 1)
    printed = capsys.readouterr().out
    for name in ("grade", "low", "high", "findings", "cyst", "stone"):
        assert name in printed


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (GOOD_TABLE.replace("case_2,high", "case_2,hihg"), ["case_2", "hihg"]),
        (GOOD_TABLE + "case_9,low,none\n", ["case_9"]),
        (GOOD_TABLE + "case_1,low,none\n", ["case_1"]),
        (GOOD_TABLE.replace("findings", "finding"), ["findings"]),
        (GOOD_TABLE.replace("high", "low"), ["high"]),
        (None, ["labels.csv"]),
    ],
)
def test_problems_of_class_labels_and_images_come_together(dataset: Path, table: str | None, expected: list[str]) -> None:
    write_dataset_json(dataset, classification=TASKS)
    if table is not None:
        (dataset / "labels.csv").write_text(table)
    (dataset / "labelsTr" / "case_3.nii.gz").unlink()
    text = problems_of(dataset)
    assert "case_3:\n    - the image has no segmentation" in text
    for word in expected:
        assert word in text.partition("class labels:")[2]


def test_evidence_must_be_a_label(dataset: Path) -> None:
    write_dataset_json(dataset, classification={"grade": {"classes": ["low", "high"], "evidence": ["tumour"]}})
    (dataset / "labels.csv").write_text(GOOD_TABLE)
    assert "tumour" in problems_of(dataset)


# --- functions for one case -------------------------------------------------------------------------------------------


def test_verify_labels_of_one_file(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(dataset / "labelsTr" / "case_1.nii.gz")
    assert verify_labels(file, SimpleITKIO, [0, 1, 2]) is True
    assert capsys.readouterr().out == ""
    assert verify_labels(file, SimpleITKIO, [0, 1]) is False
    assert "case_1.nii.gz" in capsys.readouterr().out


def test_check_cases_of_one_case(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(dataset / "imagesTr" / f"case_1_000{channel}.nii.gz") for channel in (0, 1)]
    label = str(dataset / "labelsTr" / "case_1.nii.gz")
    assert check_cases(images, label, 2, SimpleITKIO) is True
    assert check_cases(images, label, 3, SimpleITKIO) is False
    assert "declares 3" in capsys.readouterr().out


def test_the_table_of_classes_is_shown_with_problems_too(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    description["classification"] = {"subtype": {"classes": ["a", "b"]}}
    (dataset / "dataset.json").write_text(json.dumps(description))
    (dataset / "labels.csv").write_text("identifier,subtype\ncase_1,a\ncase_2,b\ncase_3,c\n")
    with pytest.raises(RuntimeError, match="case case_3: 'c' is no class"):
        verify_dataset_integrity(str(dataset), 1)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert table[-3:] == [["a", "1"], ["b", "1"], ["unknown", "2"]]
