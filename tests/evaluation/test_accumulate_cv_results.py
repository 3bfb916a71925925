from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_cross_validations import DATASET, FULL, TinyCrossValidation, write_cross_validation
from tiny_datasets import FINDINGS, SUBTYPE

from nnunetv2.cli.evaluate_classification import main as evaluate_classification
from nnunetv2.cli.find_best_configuration import accumulate_crossval_results_entry
from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results, validated_checkpoint
from nnunetv2.evaluation.classification_metrics import classification_summary
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.evaluation.validation_tables import heads_and_aggregation
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv, write_classification_csv

FOLDS = ["-f", "0", "1", "2"]


@pytest.fixture
def plain(nnunet_folders: dict[str, Path]) -> TinyCrossValidation:
    return write_cross_validation(nnunet_folders, models={FULL: 1.0})


@pytest.fixture
def joint(nnunet_folders: dict[str, Path]) -> TinyCrossValidation:
    return write_cross_validation(
        nnunet_folders,
        models={FULL: 1.0},
        classification={"subtype": SUBTYPE, "findings": FINDINGS},
        certainty={FULL: {"refit": 0.9, "joint": 0.2}},
    )


def copy_fold(model: Path, source: int | str, target: int | str) -> None:
    shutil.copytree(model / f"fold_{source}", model / f"fold_{target}")


def test_every_case_is_there_once_and_scored(plain) -> None:
    accumulate_crossval_results_entry(["1", "-c", "3d_fullres", *FOLDS])
    merged = plain.results / FULL / "crossval_results_folds_0_1_2"
    summary = load_summary_json(merged / "summary.json")
    assert [os.path.basename(case["prediction_file"]) for case in summary["metric_per_case"]] == [f"{i}.nii.gz" for i in plain.identifiers]
    by_fold = [load_summary_json(plain.results / FULL / f"fold_{fold}" / "validation" / "summary.json") for fold in range(3)]
    dice = [case["metrics"][1]["Dice"] for one in by_fold for case in one["metric_per_case"]]
    assert summary["mean"][1]["Dice"] == pytest.approx(sum(dice) / len(dice))
    assert sorted(os.listdir(merged)) == sorted(
        [*(f"{i}.nii.gz" for i in plain.identifiers), "cross_validation.json", "dataset.json", "plans.json", "summary.json"]
    )
    assert load_json(merged / "cross_validation.json")["fold_of"] == {i: n % 3 for n, i in enumerate(plain.identifiers)}


def test_class_tables_are_pooled_by_heads_and_scored(joint) -> None:
    accumulate_cv_results(joint.results / FULL, joint.results / "out", (0, 1, 2), 1)
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    summaries = load_json(joint.results / "out" / "classification_summary.json")
    assert list(summaries) == ["refit", "joint"]
    for name, heads in (("classification.csv", "refit"), ("classification_joint.csv", "joint")):
        rows = read_classification_csv(joint.results / "out" / name, tasks)
        assert sorted(rows) == list(joint.identifiers)
        expected = classification_summary(tasks, rows, CaseLabels.load(joint.raw, load_json(joint.raw / "dataset.json")))
        assert summaries[heads] == json.loads(json.dumps(expected))
    assert summaries["refit"]["case_score"] > summaries["joint"]["case_score"]
    evaluate_classification(
        [str(joint.results / "out" / "classification.csv"), str(joint.raw / "labels.csv"), "-djfile",
         str(joint.results / "out" / "dataset.json"), "-o", str(joint.results / "scores")]
    )  # fmt: skip
    scored = load_json(joint.results / "scores" / "classification_metrics.json")
    assert scored["case_score"] == summaries["refit"]["case_score"]


def test_votes_of_tiles_that_all_folds_have_are_pooled_too(joint, capsys) -> None:
    tasks = classification_tasks(load_json(joint.raw / "dataset.json"))
    for fold in range(3):
        validation = joint.results / FULL / f"fold_{fold}" / "validation"
        rows = read_classification_csv(validation / "classification_joint.csv", tasks)
        for aggregation in ("mean", "max")[: 1 if fold == 2 else 2]:
            write_classification_csv(validation / f"classification_joint_{aggregation}.csv", tasks, rows)
    accumulate_cv_results(joint.results / FULL, joint.results / "out", (0, 1, 2), 1)
    assert list(load_json(joint.results / "out" / "classification_summary.json")) == ["refit", "joint", "joint_mean"]
    assert "classification_joint_max.csv is left out" in capsys.readouterr().out
    assert [heads_and_aggregation(name) for name in ("refit", "joint_mean")] == [("refit", "evidence"), ("joint", "mean")]


def test_classes_that_a_fold_lacks_are_left_out_with_a_reason(joint, capsys) -> None:
    validation = joint.results / FULL / "fold_1" / "validation"
    (validation / "classification.csv").rename(validation / "elsewhere")
    accumulate_cv_results(joint.results / FULL, joint.results / "out", (0, 1, 2), 1)
    assert "fold 1 has no validation/classification.csv" in capsys.readouterr().out
    assert not (joint.results / "out" / "classification.csv").exists()
    (validation / "elsewhere").rename(validation / "classification.csv")
    (validation / "classification_joint.csv").unlink()
    save_json({"other": {}}, validation / "classification_summary.json")
    accumulate_cv_results(joint.results / FULL, joint.results / "out", (0, 1, 2), 1)
    assert "different heads (fold 0: refit and joint, fold 1: other" in capsys.readouterr().out
    assert not (joint.results / "out" / "classification.csv").exists()


def test_without_labels_on_this_machine_classes_are_pooled_and_not_scored(joint, monkeypatch, capsys, tmp_path) -> None:
    for folder in (joint.raw, joint.preprocessed):
        (folder / "labels.csv").unlink()
    accumulate_cv_results(joint.results / FULL, joint.results / "out", (0, 1, 2), 1)
    assert "not on this machine" in capsys.readouterr().out
    assert (joint.results / "out" / "classification_joint.csv").is_file()


def test_problems_of_folds_are_named(plain, capsys) -> None:
    model, output = plain.results / FULL, plain.results / "out"
    with pytest.raises(RuntimeError, match="fold 3 has no .*--val"):
        accumulate_cv_results(model, output, (0, 3), 1)
    copy_fold(model, 0, 3)
    with pytest.raises(RuntimeError, match="2 cases stand in the validation of several folds: case_000 in fold 0 and fold 3"):
        accumulate_cv_results(model, output, (0, 3), 1)
    assert not output.exists()
    (model / "fold_1" / "validation" / "case_004.nii.gz").unlink()
    accumulate_cv_results(model, output, (0, 1), 1)
    assert "1 validation cases have no prediction and do not count: case_004 (fold 1)" in capsys.readouterr().out


def test_fold_all_can_be_accumulated_and_is_no_cross_validation(plain, capsys) -> None:
    copy_fold(plain.results / FULL, 0, "all")
    accumulate_crossval_results_entry(["1", "-c", "3d_fullres", "-f", "all"])
    assert "training cases" in capsys.readouterr().out
    merged = plain.results / FULL / "crossval_results_folds_all"
    assert len(load_summary_json(merged / "summary.json")["metric_per_case"]) == 2


def test_an_output_folder_with_something_in_it_is_not_touched(plain, tmp_path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        accumulate_crossval_results_entry(["1", "-c", "3d_fullres", *FOLDS, "-o", str(tmp_path / "mine")])
    assert "is not empty" in capsys.readouterr().err
    for folder in (plain.results / FULL, plain.results, plain.results / FULL / "fold_0"):
        with pytest.raises(ValueError, match="would be replaced"):
            accumulate_cv_results(plain.results / FULL, folder, (0, 1, 2), 1)
    assert len(list((plain.results / FULL / "fold_0" / "validation").glob("*.nii.gz"))) == 2


def test_without_overwriting_what_is_there_stays(plain) -> None:
    output = plain.results / "out"
    accumulate_cv_results(plain.results / FULL, output, (0, 1), 1)
    summary = (output / "summary.json").read_text().replace('"FN"', '"FN" ')
    (output / "summary.json").write_text(summary)
    (output / "case_000.nii.gz").write_bytes((output / "case_003.nii.gz").read_bytes())
    accumulate_cv_results(plain.results / FULL, output, (0, 1), 1, overwrite=False)
    assert (output / "summary.json").read_text() == summary
    accumulate_cv_results(plain.results / FULL, output, (0, 1, 2), 1, overwrite=False)  # other cases: scored again
    assert (output / "case_000.nii.gz").read_bytes() == (output / "case_003.nii.gz").read_bytes()
    assert len(load_summary_json(output / "summary.json")["metric_per_case"]) == 6
    accumulate_cv_results(plain.results / FULL, output, (0,), 1)
    assert len(load_summary_json(output / "summary.json")["metric_per_case"]) == 2


def test_annotations_are_found_in_the_preprocessed_dataset_as_well(plain, monkeypatch) -> None:
    shutil.rmtree(plain.raw / "labelsTr")
    accumulate_cv_results(plain.results / FULL, plain.results / "out", (0,), 1)
    monkeypatch.delenv("nnUNet_raw")
    shutil.rmtree(plain.references)
    with pytest.raises(FileNotFoundError, match=f"annotations of {DATASET} were not found"):
        accumulate_cv_results(plain.results / FULL, plain.results / "out", (0,), 1)


def test_the_checkpoint_that_was_validated_is_known(plain) -> None:
    model = plain.results / FULL
    assert validated_checkpoint(model, (0, 1)) == "checkpoint_final.pth"
    for fold in range(2):
        file = model / f"fold_{fold}" / "validation" / "summary.json"
        save_json({**load_json(file), "checkpoint": "checkpoint_best.pth"}, file)
    assert validated_checkpoint(model, (0, 1)) == "checkpoint_best.pth"
    with pytest.raises(RuntimeError, match="fold 0: checkpoint_best.pth, fold 2: checkpoint_final.pth"):
        validated_checkpoint(model, (0, 2))


def test_another_checkpoint_that_was_validated_has_a_folder_of_its_own(plain, capsys) -> None:
    model = plain.results / FULL
    command = ["1", "-c", "3d_fullres", *FOLDS, "-chk", "checkpoint_best_joint.pth"]
    with pytest.raises(SystemExit):
        accumulate_crossval_results_entry(command)
    assert "nnUNetv2_train with --val -val_chk checkpoint_best_joint.pth" in capsys.readouterr().err
    for fold in range(3):
        shutil.copytree(model / f"fold_{fold}" / "validation", model / f"fold_{fold}" / "validation_best_joint")
    accumulate_crossval_results_entry(command)
    (pooled,) = model.glob("crossval_results_folds_*")
    assert pooled.name == "crossval_results_folds_0_1_2_best_joint"
    assert len(load_summary_json(pooled / "summary.json")["metric_per_case"]) == 6
    with pytest.raises(ValueError, match="no name of a checkpoint"):
        accumulate_cv_results(model, plain.results / "out", (0,), 1, checkpoint="../checkpoint_best.pth")


def test_a_missing_model_is_explained(plain, capsys) -> None:
    with pytest.raises(SystemExit):
        accumulate_crossval_results_entry(["1", "-c", "2d", *FOLDS])
    assert "nnUNetTrainer__nnUNetPlans__2d is no folder of a trained model" in capsys.readouterr().err
