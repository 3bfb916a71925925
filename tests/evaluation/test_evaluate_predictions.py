from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.evaluation.evaluate_predictions import (
    compute_metrics,
    compute_metrics_on_folder,
    compute_metrics_on_folder2,
    compute_metrics_on_folder_simple,
    key_to_label_or_region,
    label_or_region_to_key,
    load_summary_json,
    segmentation_file_ending,
)
from nnunetv2.evaluation.segmentation_metrics import compute_tp_fp_fn_tn, overlap_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.scheduling import CaseErrors


def write(file, array, spacing=(1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))


@pytest.fixture
def folders(tmp_path):
    reference, prediction = tmp_path / "ref", tmp_path / "pred"
    reference.mkdir()
    prediction.mkdir()
    return reference, prediction


def segmentation(**voxels: int) -> np.ndarray:
    """(2, 3, 4) with the first ``n`` voxels of each label, one label after the other."""
    values = [int(name.removeprefix("label_")) for name, count in voxels.items() for _ in range(count)]
    return np.array(values + [0] * (24 - len(values)), dtype=np.uint8).reshape(2, 3, 4)


def test_counts_by_hand() -> None:
    reference = np.array([[1, 1, 1, 0, 0, 2]])
    prediction = np.array([[1, 1, 0, 1, 0, 2]])
    metrics = overlap_metrics(reference, prediction, [1, 2, (1, 2), 3])
    assert metrics[1] == {"Dice": 4 / 6, "IoU": 0.5, "TP": 2, "FP": 1, "FN": 1, "TN": 2, "n_pred": 3, "n_ref": 3}
    assert metrics[2]["Dice"] == 1
    assert metrics[(1, 2)]["TP"] == 3
    assert math.isnan(metrics[3]["Dice"])
    assert math.isnan(metrics[3]["IoU"])


def test_voxels_of_the_ignore_label_do_not_count() -> None:
    reference = np.array([1, 1, 9, 9, 0])
    prediction = np.array([1, 0, 1, 0, 0])
    assert overlap_metrics(reference, prediction, [1], ignore_label=9)[1] == {
        "Dice": 2 / 3, "IoU": 0.5, "TP": 1, "FP": 0, "FN": 1, "TN": 1, "n_pred": 1, "n_ref": 2,
    }  # fmt: skip
    assert compute_tp_fp_fn_tn(reference == 1, prediction == 1, reference == 9) == (1, 0, 1, 1)


def test_keys_of_regions_survive() -> None:
    for label in (1, (1, 2), (3,), (np.int64(1), np.int64(2))):
        assert key_to_label_or_region(label_or_region_to_key(label)) == label
    assert label_or_region_to_key(np.int64(4)) == "4"


def test_summary_has_nnunets_format(folders) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", segmentation(label_1=4))
    write(reference / "b.nii.gz", segmentation(label_1=4, label_2=2))
    write(prediction / "b.nii.gz", segmentation(label_1=2))
    file = prediction / "summary.json"
    results = compute_metrics_on_folder(
        str(reference), str(prediction), str(file), SimpleITKIO(), ".nii.gz", [1, 2, (1, 2)], num_processes=1
    )
    content = json.loads(file.read_text())
    assert list(content) == ["foreground_mean", "mean", "metric_per_case"]
    assert set(content["mean"]) == {"1", "2", "(1, 2)"}
    assert list(content["mean"]["1"]) == ["Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"]
    assert content["mean"]["1"]["Dice"] == pytest.approx((1 + 4 / 6) / 2)
    assert content["mean"]["2"]["Dice"] == 0  # case a has neither, so b alone counts
    assert math.isnan(content["metric_per_case"][0]["metrics"]["2"]["Dice"])
    assert content["metric_per_case"][0]["reference_file"] == str(reference / "a.nii.gz")
    assert content["foreground_mean"]["Dice"] == pytest.approx(np.mean([results["mean"][k]["Dice"] for k in (1, 2, (1, 2))]))
    assert set(load_summary_json(file)["mean"]) == {1, 2, (1, 2)}


def test_missing_predictions_are_named_unless_chill(folders) -> None:
    reference, prediction = folders
    for name in ("a", "b"):
        write(reference / f"{name}.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", segmentation(label_1=4))
    with pytest.raises(FileNotFoundError, match="b.nii.gz"):
        compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1)
    results = compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1, chill=True)
    assert len(results["metric_per_case"]) == 1
    assert (prediction / "summary.json").is_file()


def test_a_prediction_without_reference_is_named(folders) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    for name in ("a", "stray"):
        write(prediction / f"{name}.nii.gz", segmentation(label_1=4))
    with pytest.raises(FileNotFoundError, match="stray"):
        compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1, chill=True)


def test_other_gz_files_are_no_segmentations(folders) -> None:
    """The ending is .nii.gz as a whole: a stray .gz file among the predictions is none."""
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", segmentation(label_1=4))
    (prediction / "log.txt.gz").write_bytes(b"nothing")
    assert segmentation_file_ending(str(reference)) == ".nii.gz"
    assert len(compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1)["metric_per_case"]) == 1


def test_different_shapes_are_an_error_that_names_the_files(folders) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", np.zeros((2, 3, 5), np.uint8))
    write(reference / "b.nii.gz", segmentation(label_1=4))
    write(prediction / "b.nii.gz", np.full((2, 3, 4), 0.5, np.float32))
    with pytest.raises(CaseErrors, match="voxel grid") as caught:
        compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1)
    assert {failure.identifier for failure in caught.value.failures} == {"a", "b"}


def test_different_spacing_is_a_warning(folders, capsys) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", segmentation(label_1=4), spacing=(1.0, 1.0, 2.0))
    compute_metrics_on_folder_simple(str(reference), str(prediction), [1], num_processes=1)
    assert "different geometry: a.nii.gz (spacing)" in capsys.readouterr().out


def test_values_that_are_nearly_labels_are_rounded(folders) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4))
    write(prediction / "a.nii.gz", segmentation(label_1=4).astype(np.float32) * np.float32(1.0000153))
    with pytest.warns(UserWarning, match="rounded"):
        metrics = compute_metrics(str(reference / "a.nii.gz"), str(prediction / "a.nii.gz"), SimpleITKIO(), [1])["metrics"]
    assert metrics[1]["Dice"] == 1


def test_labels_come_from_dataset_json_and_plans(folders, tmp_path) -> None:
    reference, prediction = folders
    write(reference / "a.nii.gz", segmentation(label_1=4, label_2=3, label_3=2))
    write(prediction / "a.nii.gz", segmentation(label_1=4, label_2=3))
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {"labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz", "channel_names": {"0": "MR"}, "numTraining": 1}
        )
    )
    (tmp_path / "plans.json").write_text(json.dumps({"plans_name": "p", "configurations": {}}))
    results = compute_metrics_on_folder2(
        str(reference), str(prediction), str(tmp_path / "dataset.json"), str(tmp_path / "plans.json"), num_processes=1
    )
    assert set(results["mean"]) == {(1, 2), 2}
    assert results["mean"][2]["TN"] == 24 - 2 - 3
    assert (prediction / "summary.json").is_file()


def test_evaluation_and_its_workers_do_without_torch() -> None:
    modules = "nnunetv2.evaluation.evaluate_predictions, nnunetv2.evaluation.classification_metrics"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
