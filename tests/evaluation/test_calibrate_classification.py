from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunetv2.cli.calibrate_classification import main
from nnunetv2.evaluation.calibrate_classification import calibrate_classification
from nnunetv2.utilities.label_handling.class_calibration import ClassCalibration, logits_of, probabilities_of
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv

DATASET = {
    "labels": {"background": 0},
    "classification": {"subtype": {"classes": ["a", "b", "c"]}, "grade": {"type": "ordinal", "classes": ["G1", "G2"]}},
}
TASKS = classification_tasks(DATASET)
NUMBER = 240


def write_model(folder: Path, temperature: float, folds=(0, 1, 3)) -> Path:
    """A model folder whose validation tables are too certain by the temperature, and the labels in its preprocessed dataset."""
    rng = np.random.default_rng(0)
    tables: dict[int, dict] = {fold: {} for fold in folds}
    labels = {}
    for index in range(NUMBER):
        row, labels[f"case_{index:03d}"] = {}, {}
        for name, task in TASKS.items():
            true = rng.dirichlet(np.ones(task.num_classes))
            row[name] = probabilities_of(task.type, logits_of(task.type, true) * temperature)
            labels[f"case_{index:03d}"][name] = int(rng.choice(task.num_classes, p=true))
        tables[folds[index % len(folds)]][f"case_{index:03d}"] = row
    labels["case_000"]["grade"] = None
    model = folder / "results" / "model"
    for fold, rows in tables.items():
        (model / f"fold_{fold}" / "validation").mkdir(parents=True)
        write_classification_csv(model / f"fold_{fold}" / "validation" / "classification.csv", TASKS, rows)
    (model / "dataset.json").write_text(json.dumps(DATASET))
    (model / "plans.json").write_text(json.dumps({"dataset_name": "Dataset998_X"}))
    preprocessed = folder / "preprocessed" / "Dataset998_X"
    preprocessed.mkdir(parents=True)
    CaseLabels(TASKS, labels).write_csv(preprocessed / "labels.csv")
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 5))
    return model


@pytest.fixture
def preprocessed(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path


def test_a_model_that_is_too_certain_is_calibrated(preprocessed) -> None:
    model = write_model(preprocessed, temperature=3.0)
    (model / "fold_all" / "validation").mkdir(parents=True)
    shutil.copytree(model / "fold_0", model / "fold_0_old")  # no fold of the model
    calibration, notes = calibrate_classification(model)
    assert notes == (
        "Of 5 folds 2, 4 have no table; their cases do not count.",
        "Fold all is left out: it validates on its training cases.",
    )
    for name, n in (("subtype", NUMBER), ("grade", NUMBER - 1)):
        report = calibration.tasks[name].report
        assert (report["n"], report["unknown"]) == (n, NUMBER - n)
        assert report["log_loss_after"] < report["log_loss_before"] - 0.1
        assert report["held_out"]["log_loss_after"] < report["held_out"]["log_loss_before"] - 0.1
        # What was fitted without a fold does worse there than what was fitted with it.
        assert report["held_out"]["log_loss_after"] > report["log_loss_after"]
        assert report["held_out"]["folds"] == [0, 1, 3]
        assert calibration.tasks[name].temperatures[0] == pytest.approx(3, rel=0.3)
    read = ClassCalibration.load(model / "classification_calibration.json", TASKS)
    assert read.tasks["subtype"].temperatures == calibration.tasks["subtype"].temperatures
    for name in TASKS:
        assert (model / f"classification_calibration_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_help_on_held_out_folds_is_not_applied(preprocessed, monkeypatch) -> None:
    model = write_model(preprocessed, temperature=3.0)
    reported = iter([1.0, 1.2] * 20)
    monkeypatch.setattr("nnunetv2.evaluation.calibrate_classification.mean_log_loss", lambda *_: next(reported))
    calibration, _ = calibrate_classification(model)
    assert calibration.tasks["subtype"].is_identity
    assert calibration.tasks["subtype"].report["reason"] == "the log loss of held-out folds does not become smaller"


def test_one_fold_says_that_nothing_is_held_out(preprocessed, capsys) -> None:
    model = write_model(preprocessed, temperature=3.0, folds=(0,))
    main(["-m", str(model)])
    printed = capsys.readouterr().out
    assert "only one fold, so that nothing is held out" in printed
    assert "Of 5 folds 1, 2, 3, 4 have no table" in printed
    assert json.loads((model / "classification_calibration.json").read_text())["tasks"]["subtype"]["report"]["held_out"] is None


def test_the_calibration_names_the_checkpoint_it_was_fitted_on(preprocessed, capsys) -> None:
    """The final one; that of --val_best; and a further one, whose tables are used then."""
    model = write_model(preprocessed, temperature=2.0)
    file = model / "classification_calibration.json"
    further = ["-m", str(model), "-chk", "checkpoint_best_joint.pth"]
    with pytest.raises(SystemExit):
        main(further)
    assert "nnUNetv2_train with --val -val_chk checkpoint_best_joint.pth" in capsys.readouterr().err
    main(["-m", str(model)])
    final = json.loads(file.read_text())
    assert final["checkpoint"] == "checkpoint_final.pth"
    sharper = write_model(preprocessed / "sharper", temperature=4.0)
    for fold in (0, 1, 3):
        shutil.copytree(sharper / f"fold_{fold}" / "validation", model / f"fold_{fold}" / "validation_best_joint")
        (model / f"fold_{fold}" / "validation" / "summary.json").write_text('{"checkpoint": "checkpoint_best.pth"}')
    main(["-m", str(model)])
    assert json.loads(file.read_text()) == final | {"checkpoint": "checkpoint_best.pth"}
    main(further)
    fitted = json.loads(file.read_text())
    assert fitted["checkpoint"] == "checkpoint_best_joint.pth"
    assert fitted["tasks"]["subtype"]["temperatures"][0] > 1.5 * final["tasks"]["subtype"]["temperatures"][0]
    (model / "fold_1" / "validation" / "summary.json").unlink()
    with pytest.raises(RuntimeError, match="fold 0: checkpoint_best.pth, fold 1: checkpoint_final.pth"):
        calibrate_classification(model)


def test_labels_can_be_given(preprocessed, monkeypatch, capsys) -> None:
    model = write_model(preprocessed, temperature=2.0)
    reference = preprocessed / "elsewhere.csv"
    (preprocessed / "preprocessed" / "Dataset998_X" / "labels.csv").rename(reference)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(SystemExit):
        main(["-m", str(model)])
    assert "labels of Dataset998_X are not at hand" in capsys.readouterr().err
    main(["-m", str(model), "-ref", str(reference), "--method", "vector"])
    assert "offsets" in capsys.readouterr().out


def test_a_case_of_two_folds_counts_once(preprocessed) -> None:
    model = write_model(preprocessed, temperature=2.0)
    table = (model / "fold_1" / "validation" / "classification.csv").read_text()
    (model / "fold_7" / "validation").mkdir(parents=True)
    (model / "fold_7" / "validation" / "classification.csv").write_text(table)
    calibration, notes = calibrate_classification(model)
    assert calibration.tasks["subtype"].report["n"] == NUMBER
    assert any("80 cases are validated by several folds" in note for note in notes)


def test_a_model_without_tables_says_how_to_get_them(preprocessed) -> None:
    model = write_model(preprocessed, temperature=2.0, folds=(0,))
    (model / "fold_0" / "validation" / "classification.csv").unlink()
    with pytest.raises(FileNotFoundError, match="run nnUNetv2_train with --val"):
        calibrate_classification(model)


@pytest.mark.parametrize(
    "arguments",
    [[], ["-m", "x", "-d", "1"], ["-d", "1"], ["-m", "x", "-c", "2d"], ["-m", "x", "-tr", "t"], ["-m", "x", "-p", "p"]],
)
def test_the_model_is_given_in_one_way(arguments, capsys) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "either by its folder" in capsys.readouterr().err
