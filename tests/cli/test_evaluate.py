from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.cli.evaluate import evaluate_folder_entry, evaluate_simple_entry


@pytest.fixture
def folders(tmp_path):
    for name in ("ref", "pred"):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.eye(4, dtype=np.uint8)[None]), str(tmp_path / name / "case.nii.gz"))
    return tmp_path


def test_simple_evaluation_writes_where_it_is_told(folders, capsys) -> None:
    evaluate_simple_entry([str(folders / "ref"), str(folders / "pred"), "-l", "1", "-o", str(folders / "scores.json"), "-np", "1"])
    assert json.loads((folders / "scores.json").read_text())["foreground_mean"]["Dice"] == 1
    assert "Dice 1.0000" in capsys.readouterr().out


def test_evaluation_with_a_datasets_labels(folders) -> None:
    dataset = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (folders / "dataset.json").write_text(json.dumps(dataset))
    (folders / "plans.json").write_text(json.dumps({"configurations": {}}))
    files = ["-djfile", str(folders / "dataset.json"), "-pfile", str(folders / "plans.json")]
    evaluate_folder_entry([str(folders / "ref"), str(folders / "pred"), *files])
    assert json.loads((folders / "pred" / "summary.json").read_text())["mean"]["1"]["TP"] == 4


def test_a_missing_folder_is_one_line_of_error(folders, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate_simple_entry([str(folders / "nowhere"), str(folders / "pred"), "-l", "1"])
    assert caught.value.code == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_references_with_hidden_nan_are_named(folders, capsys) -> None:
    voxels = np.eye(4, dtype=np.float32)[None]
    voxels[0, 0, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folders / "ref" / "case.nii.gz"))
    with pytest.raises(SystemExit) as caught:
        evaluate_simple_entry([str(folders / "ref"), str(folders / "pred"), "-l", "1"])
    assert caught.value.code == 1
    assert "case.nii.gz: the segmentation has 1 NaN voxel" in capsys.readouterr().err
    assert not (folders / "pred" / "summary.json").exists()
