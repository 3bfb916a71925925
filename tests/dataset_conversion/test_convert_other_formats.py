"""Tasks of the Medical Segmentation Decathlon and of nnU-Net v1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from stock_nnunet import files_of, run_reference

from nnunetv2.cli.convert_dataset import msd_entry, old_entry
from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset, split_4d_nifti
from nnunetv2.dataset_conversion.convert_raw_dataset_from_old_nnunet_format import convert
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

LABELS = {"0": "background", "1": "PZ", "2": "TZ"}
OTHER_ENTRIES = {"name": "PROSTATE", "licence": "CC", "tensorImageSize": "4D", "numTest": 1, "relase": "1.0"}


def image(values: np.ndarray) -> sitk.Image:
    result = sitk.GetImageFromArray(values)
    result.SetSpacing((0.6, 0.7, 3.6))
    result.SetOrigin((1, 2, 3))
    result.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return result


def write(values: np.ndarray, file: Path) -> None:
    """A 3D file, or one with channels last from ``(C, Z, Y, X)``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image(values) if values.ndim == 3 else sitk.JoinSeries([image(channel) for channel in values]), str(file))


def write_description(folder: Path, **entries: object) -> None:
    content = OTHER_ENTRIES | {"modality": {"0": "T2", "1": "ADC"}, "labels": LABELS, "numTraining": 2}
    content |= {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], "test": ["./imagesTs/c.nii.gz"]}
    (folder / "dataset.json").write_text(json.dumps(content | entries))


@pytest.fixture
def decathlon(tmp_path: Path) -> Path:
    folder = tmp_path / "Task05_Prostate"
    generator = np.random.default_rng(0)
    for name in ("imagesTr/a", "imagesTr/b", "imagesTs/c"):
        write(generator.integers(-500, 500, (2, 6, 9, 8)).astype(np.int16), folder / f"{name}.nii.gz")
    for name in ("a", "b"):
        write(generator.integers(0, 3, (6, 9, 8)).astype(np.uint8), folder / "labelsTr" / f"{name}.nii.gz")
    (folder / "imagesTr" / "._a.nii.gz").write_text("left behind by macOS")
    write_description(folder)
    return folder


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    folder = tmp_path / "Task007_Old"
    generator = np.random.default_rng(0)
    for case in ("imagesTr/a", "imagesTr/b", "imagesTs/c", "imagesVal/d"):
        for channel in (0, 1):
            write(generator.integers(0, 500, (6, 9, 8)).astype(np.int16), folder / f"{case}_{channel:04d}.nii.gz")
    for case in ("labelsTr/a", "labelsTr/b", "labelsTs/c"):
        write(generator.integers(0, 3, (6, 9, 8)).astype(np.uint8), folder / f"{case}.nii.gz")
    (folder / "notes.txt").write_text("x")
    write_description(folder)
    return folder


def read(file: Path) -> sitk.Image:
    return sitk.ReadImage(str(file))


def test_a_decathlon_task_becomes_a_dataset_that_can_be_planned(decathlon, nnunet_folders, capsys) -> None:
    msd_entry(["-i", f"{decathlon}/", "-np", "1"])
    folder = nnunet_folders["raw"] / "Dataset005_Prostate"
    assert "nnUNetv2_plan_and_preprocess -d Dataset005_Prostate" in capsys.readouterr().out
    images = [f"{case}_{channel:04d}.nii.gz" for case in ("imagesTr/a", "imagesTr/b", "imagesTs/c") for channel in (0, 1)]
    assert files_of(folder) == sorted(["dataset.json", *images, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz"])
    assert json.loads((folder / "dataset.json").read_text()) == OTHER_ENTRIES | {
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "channel_names": {"0": "T2", "1": "ADC"},
    }
    whole = read(decathlon / "imagesTr" / "b.nii.gz")
    for channel in (0, 1):
        part = read(folder / "imagesTr" / f"b_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(part), sitk.GetArrayFromImage(whole)[channel])
        assert part.GetPixelID() == whole.GetPixelID()
        np.testing.assert_allclose(part.GetSpacing(), (0.6, 0.7, 3.6), rtol=1e-6)
        assert part.GetOrigin() == (1, 2, 3)
        assert part.GetDirection() == (0, -1, 0, 1, 0, 0, 0, 0, 1)
    assert (folder / "labelsTr" / "a.nii.gz").read_bytes() == (decathlon / "labelsTr" / "a.nii.gz").read_bytes()
    verify_dataset_integrity(str(folder), num_processes=1)


def test_files_of_one_channel_keep_their_bytes(tmp_path) -> None:
    write(np.zeros((3, 4, 5), np.int16), tmp_path / "a.nii.gz")
    (tmp_path / "out").mkdir()
    assert split_4d_nifti(str(tmp_path / "a.nii.gz"), str(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "a_0000.nii.gz").read_bytes() == (tmp_path / "a.nii.gz").read_bytes()


def test_a_number_that_is_taken_is_refused_and_can_be_changed(decathlon, nnunet_folders, capsys) -> None:
    (nnunet_folders["preprocessed"] / "Dataset005_Other").mkdir()
    with pytest.raises(SystemExit):
        msd_entry(["-i", str(decathlon), "-np", "1"])
    assert "taken by Dataset005_Other" in capsys.readouterr().err
    msd_entry(["-i", str(decathlon), "-np", "1", "-overwrite_id", "33"])
    assert [path.name for path in nnunet_folders["raw"].iterdir()] == ["Dataset033_Prostate"]
    with pytest.raises(ValueError, match="number 1000"):
        convert_msd_dataset(str(decathlon), 1000, 1)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda task: (task / "labelsTr" / "b.nii.gz").unlink(), ValueError, "without segmentation.*b.nii.gz"),
        (lambda task: (task / "dataset.json").unlink(), FileNotFoundError, "lacks dataset.json"),
        (lambda task: write_description(task, modality={"0": "T2"}), RuntimeError, "2 channels, but dataset.json names 1"),
        (lambda task: write_description(task, labels={"0": "background", "1": "x", "2": "x"}), ValueError, "not different names"),
        (lambda task: write_description(task, labels={"a": "b"}), ValueError, "names by value"),
        (lambda task: write_description(task, labels=[1]), ValueError, "lacks labels"),
        (lambda task: (task / "imagesTr" / "a.nii.gz").write_bytes((task / "imagesTr" / "a.nii.gz").read_bytes()[:600]), RuntimeError, "a:"),
    ],
)  # fmt: skip
def test_a_faulty_task_is_described_and_nothing_is_written(decathlon, nnunet_folders, damage, error, message) -> None:
    damage(decathlon)
    with pytest.raises(error, match=message):
        convert_msd_dataset(str(decathlon), num_processes=1)
    assert list(nnunet_folders["raw"].iterdir()) == []


def test_each_command_names_the_other_where_that_is_meant(decathlon, version_1, nnunet_folders, tmp_path) -> None:
    for folder in (version_1, shutil.copytree(version_1, tmp_path / "Task07_Old")):
        with pytest.raises(ValueError, match="nnUNetv2_convert_old_nnUNet_dataset"):
            convert_msd_dataset(str(folder), num_processes=1)
    with pytest.raises(ValueError, match="nnUNetv2_convert_MSD_dataset"):
        convert(str(decathlon), "Dataset005_Prostate")


def test_a_dataset_of_version_1_keeps_its_files_and_gets_a_new_description(version_1, nnunet_folders) -> None:
    old_entry([str(version_1), "Dataset107_Old"])
    folder = nnunet_folders["raw"] / "Dataset107_Old"
    assert files_of(folder) == [name for name in files_of(version_1) if name != "notes.txt"]
    for name in files_of(folder):
        assert name == "dataset.json" or (folder / name).read_bytes() == (version_1 / name).read_bytes()
    assert json.loads((folder / "dataset.json").read_text()) == {
        "name": "PROSTATE",
        "licence": "CC",
        "relase": "1.0",
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": 2,
        "channel_names": {"0": "T2", "1": "ADC"},
        "file_ending": ".nii.gz",
    }
    verify_dataset_integrity(str(folder), num_processes=1)


def test_the_label_0_is_the_background_whatever_its_name(version_1, nnunet_folders) -> None:
    write_description(version_1, labels={"0": "Clear Label", "1": "PZ", "2": "TZ"})
    folder = convert(str(version_1), "Dataset107_Old")
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "PZ": 1, "TZ": 2}


def test_names_and_existing_datasets_are_checked(version_1, nnunet_folders, capsys) -> None:
    for name in ("Old", "Dataset7_Old", "Dataset007_../x"):
        with pytest.raises(ValueError, match="no dataset name"):
            convert(str(version_1), name)
    convert(str(version_1), "Dataset107_Old")
    with pytest.raises(SystemExit):
        old_entry([str(version_1), "Dataset107_Old"])
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="imagesTr, labelsTr, dataset.json"):
        convert(str(nnunet_folders["raw"]), "Dataset108_New")


# --- with stock nnU-Net, a program that is run and nothing more


@pytest.mark.slow
def test_both_conversions_write_what_stock_nnunet_writes(reference, decathlon, version_1, nnunet_folders, tmp_path) -> None:
    stock = tmp_path / "stock"
    stock.mkdir()
    folders = {f"nnUNet_{name}": folder for name, folder in nnunet_folders.items()} | {"nnUNet_raw": stock}
    run_reference(reference / "nnUNetv2_convert_MSD_dataset", "-i", decathlon, "-np", 1, **folders)
    run_reference(reference / "nnUNetv2_convert_old_nnUNet_dataset", version_1, "Dataset107_Old", **folders)
    msd_entry(["-i", str(decathlon), "-np", "1"])
    old_entry([str(version_1), "Dataset107_Old"])
    ours = nnunet_folders["raw"]
    assert files_of(ours) == files_of(stock)
    for name in files_of(ours):
        if name.endswith(".json"):
            assert json.loads((ours / name).read_text()) == json.loads((stock / name).read_text())
            continue
        first, second = read(ours / name), read(stock / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
        assert first.GetPixelID() == second.GetPixelID()
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(first, geometry)(), getattr(second, geometry)())
