from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_models import dataset_json, plans

from nnunetv2.cli.postprocessing import apply_postprocessing_entry, determine_postprocessing_entry
from nnunetv2.evaluation import segmentation_metrics
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.postprocessing import remove_connected_components as module
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    apply_postprocessing_to_folder,
    determine_postprocessing,
    load_postprocess_save,
    load_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)

KEEP_LARGEST = remove_all_but_largest_component_from_segmentation


def test_the_largest_component_of_a_label_stays() -> None:
    seg = np.array([[[1, 1, 0, 2, 0, 1]]])
    np.testing.assert_array_equal(KEEP_LARGEST(seg, 1), [[[1, 1, 0, 2, 0, 0]]])
    np.testing.assert_array_equal(seg, [[[1, 1, 0, 2, 0, 1]]])


def test_labels_and_regions_are_taken_together() -> None:
    seg = np.array([[1, 2, 0, 1, 1, 0, 2, 3]])
    np.testing.assert_array_equal(KEEP_LARGEST(seg, (1, 2)), [[1, 2, 0, 1, 1, 0, 0, 3]])  # of equal size: both stay
    np.testing.assert_array_equal(KEEP_LARGEST(seg, [1, (2, 3)]), KEEP_LARGEST(seg, [1, 2, 3]))
    np.testing.assert_array_equal(KEEP_LARGEST(seg, [(1, 2), 1]), KEEP_LARGEST(seg, (1, 2)))


def test_voxels_that_touch_at_a_corner_are_connected() -> None:
    seg = np.zeros((3, 3, 4), dtype=np.uint8)
    seg[0, 0, 0] = seg[1, 1, 1] = seg[2, 2, 3] = 1
    np.testing.assert_array_equal(np.argwhere(KEEP_LARGEST(seg, 1)), [[0, 0, 0], [1, 1, 1]])


def test_removed_voxels_become_the_background_label_and_dtypes_stay() -> None:
    seg = np.array([[5, 5, 0, 5]], dtype=np.uint16)
    kept = KEEP_LARGEST(seg, 5, background_label=9)
    np.testing.assert_array_equal(kept, [[5, 5, 0, 9]])
    assert kept.dtype == np.uint16


def test_a_label_that_is_not_there_changes_nothing() -> None:
    np.testing.assert_array_equal(KEEP_LARGEST(np.zeros((2, 2)), [1, 2]), np.zeros((2, 2)))


def test_functions_are_applied_in_order() -> None:
    seg = np.array([[1, 1, 0, 2, 2, 2, 1]])
    arguments = [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 1}]
    np.testing.assert_array_equal(apply_postprocessing(seg, [KEEP_LARGEST] * 2, arguments), [[0, 0, 0, 2, 2, 2, 1]])


# --- folders


def write(folder: Path, name: str, seg: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(seg.astype(np.uint8))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``ref`` and ``pred`` of three cases: a stray piece of label 1 in the first, two true pieces of label 2 in the last."""
    truth = np.zeros((3, 8, 8), dtype=np.uint8)
    truth[:, 1:4, 1:4] = 1
    truth[:, 4:6, 1:4] = 2
    stray = truth.copy()
    stray[:, 6:, 6:] = 1
    two = truth.copy()
    two[:, 6:, 6:] = 2
    for name, reference, prediction in (("a", truth, stray), ("b", truth, truth), ("c", two, two)):
        write(tmp_path / "ref", name, reference)
        write(tmp_path / "pred", name, prediction)
    (tmp_path / "pred" / "dataset.json").write_text(json.dumps(dataset_json()))
    (tmp_path / "pred" / "plans.json").write_text(json.dumps(plans()))
    return tmp_path


def test_what_helps_is_kept_and_what_harms_is_not(folders: Path) -> None:
    """Label 1 gains by it; the whole foreground loses a true piece of label 2, and so does label 2."""
    functions, arguments = determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    assert functions == [KEEP_LARGEST]
    assert arguments == [{"labels_or_regions": 1}]
    np.testing.assert_array_equal(read(folders / "pred" / "postprocessed" / "a.nii.gz"), read(folders / "ref" / "a.nii.gz"))
    np.testing.assert_array_equal(read(folders / "pred" / "postprocessed" / "c.nii.gz"), read(folders / "ref" / "c.nii.gz"))
    assert not [path for path in (folders / "pred").iterdir() if path.name.startswith(".tmp")]


def test_the_stored_scores_are_those_of_a_whole_evaluation(folders: Path) -> None:
    determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    stored = load_summary_json(folders / "pred" / "postprocessed" / "summary.json")
    anew = compute_metrics_on_folder(str(folders / "ref"), str(folders / "pred" / "postprocessed"), None, SimpleITKIO(), ".nii.gz", [1, 2])
    assert stored == anew
    told = json.loads((folders / "pred" / "postprocessing.json").read_text())
    assert told["postprocessed"]["foreground_mean"] == anew["foreground_mean"]
    assert told["input_folder"]["mean"]["1"]["Dice"] < told["postprocessed"]["mean"]["1"]["Dice"] == 1
    assert told["postprocessing_fns"] == ["remove_all_but_largest_component_from_segmentation"]


def test_only_cases_that_change_are_scored_again(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)  # leaves summary.json
    scored = []

    def counting(reference: np.ndarray, *arguments: object) -> dict:
        scored.append(1)
        return segmentation_metrics.overlap_metrics(reference, *arguments)

    monkeypatch.setattr(module, "overlap_metrics", counting)
    determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    assert len(scored) == 4  # a and c together; a for label 1; c for label 2: not nine


def test_a_summary_of_other_files_is_not_trusted(folders: Path) -> None:
    determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    (folders / "pred" / "a.nii.gz").unlink()
    functions, _ = determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    assert functions == []
    assert len(load_summary_json(folders / "pred" / "summary.json")["metric_per_case"]) == 2


def test_a_summary_older_than_the_predictions_is_not_trusted(folders: Path) -> None:
    determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    shutil.copy(folders / "ref" / "a.nii.gz", folders / "pred" / "a.nii.gz")
    os.utime(folders / "pred" / "summary.json", (0, 0))
    functions, _ = determine_postprocessing(folders / "pred", folders / "ref", plans(), dataset_json(), 1)
    assert functions == []
    assert load_summary_json(folders / "pred" / "summary.json")["foreground_mean"]["Dice"] == 1


def test_regions_are_decided_one_by_one_and_stay_tuples(folders: Path) -> None:
    """All together the mean rises, but a true voxel of the core is lost and the core falls; the whole alone does not harm."""
    shutil.copy(folders / "pred" / "a.nii.gz", folders / "pred" / "b.nii.gz")
    truth = read(folders / "ref" / "a.nii.gz")
    truth[0, 7, 7] = 2
    write(folders / "ref", "c", truth)
    write(folders / "pred", "c", truth)
    regions = dataset_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    _, arguments = determine_postprocessing(folders / "pred", folders / "ref", plans(), regions, 1, keep_postprocessed_files=False)
    assert arguments == [{"labels_or_regions": (1, 2)}]
    assert not (folders / "pred" / "postprocessed").exists()
    assert load_postprocessing(folders / "pred" / "postprocessing.pkl") == ([KEEP_LARGEST], arguments)


def test_a_label_without_any_dice_does_not_stop_the_others(folders: Path) -> None:
    labels = dataset_json({"background": 0, "organ": 1, "lesion": 2, "absent": 3})
    (folders / "pred" / "c.nii.gz").unlink()  # nothing speaks against the whole foreground then
    _, arguments = determine_postprocessing(folders / "pred", folders / "ref", plans(), labels, 1)
    assert arguments == [{"labels_or_regions": [1, 2, 3]}]


def test_commands_decide_and_apply(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    determine_postprocessing_entry(["-i", str(folders / "pred"), "-ref", str(folders / "ref"), "-np", "1", "--remove_postprocessed"])
    assert not (folders / "pred" / "postprocessed").exists()
    (folders / "pred" / "classification.csv").write_text("identifier\n")
    for kind in ("pkl", "json"):
        apply_postprocessing_entry(
            [
                "-i",
                str(folders / "pred"),
                "-o",
                str(folders / kind),
                "-pp_pkl_file",
                str(folders / "pred" / f"postprocessing.{kind}"),
                "-np",
                "1",
            ]
        )
        for name in "abc":
            np.testing.assert_array_equal(read(folders / kind / f"{name}.nii.gz"), read(folders / "ref" / f"{name}.nii.gz"))
        assert sitk.ReadImage(str(folders / kind / "a.nii.gz")).GetOrigin() == (1.0, 2.0, 3.0)
        assert {"classification.csv", "dataset.json", "plans.json"} <= set(os.listdir(folders / kind))
    (folders / "pred" / "plans.json").unlink()
    with pytest.raises(SystemExit):
        apply_postprocessing_entry(
            [
                "-i",
                str(folders / "pred"),
                "-o",
                str(folders / "x"),
                "-pp_pkl_file",
                str(folders / "pred" / "postprocessing.pkl"),
                "-np",
                "1",
            ]
        )
    assert "-plans_json" in capsys.readouterr().err


def test_functions_of_ones_own_can_be_applied_from_python(folders: Path) -> None:
    apply_postprocessing_to_folder(folders / "pred", folders / "out", [np.negative, np.abs, np.sign], [{}] * 3, num_processes=1)
    assert read(folders / "out" / "a.nii.gz").max() == 1
    load_postprocess_save(str(folders / "pred" / "a.nii.gz"), str(folders / "empty.nii.gz"), SimpleITKIO(), [lambda seg: 0 * seg], [{}])
    assert read(folders / "empty.nii.gz").max() == 0


class _RunsCode:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content",
    [([_RunsCode()], [{}]), ([os.mkdir], [{"path": "executed"}]), ([KEEP_LARGEST], []), {"functions": []}, ([KEEP_LARGEST], [1]), (1, 2)],
    ids=["reduce", "other function", "too few arguments", "no tuple", "no dictionary", "no lists"],
)
def test_a_file_with_anything_else_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="postprocessing.pkl.*nnUNetv2_determine_postprocessing"):
        load_postprocessing(tmp_path / "postprocessing.pkl")
    assert not (tmp_path / "executed").exists()


def test_a_json_with_an_unknown_function_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postprocessing.json").write_text('{"postprocessing_fns": ["system"], "postprocessing_kwargs": [{}]}')
    with pytest.raises(ValueError, match="system"):
        load_postprocessing(tmp_path / "postprocessing.json")
