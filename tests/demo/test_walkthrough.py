"""The scores that the demo shows are those of whole cases that were never trained on; how it ends when something is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn import metrics

from nnunetv2.cli.demo import main
from nnunetv2.demo import walkthrough
from nnunetv2.demo.phantom import FILE_ENDING, LABELS, SUBTYPES, write_phantom_dataset
from nnunetv2.demo.walkthrough import DemoSettings, demo_commands
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv


def test_held_out_cases_are_predicted_and_evaluated(tmp_path: Path) -> None:
    settings = DemoSettings(folder=tmp_path)
    _, train, predict, evaluate = demo_commands(settings)
    assert train[:4] == ["nnUNetv2_train", "001", "3d_fullres", "0"]
    assert predict[predict.index("-i") + 1] == str(settings.dataset_folder / "imagesTs")
    assert evaluate[1:3] == [str(settings.dataset_folder / "labelsTs"), predict[predict.index("-o") + 1]]


def test_the_table_shows_the_scores_of_the_held_out_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = DemoSettings(folder=tmp_path, num_training=3, num_test=6)
    held_out = write_phantom_dataset(settings.dataset_folder, num_training=3, num_test=6, seed=0)
    settings.predictions.mkdir()
    for file in sorted((settings.dataset_folder / "labelsTs").glob(f"*{FILE_ENDING}")):
        shutil.copy(file, settings.predictions)
    first = settings.predictions / f"{min(held_out)}{FILE_ENDING}"
    mask = sitk.ReadImage(str(first))
    without_lesion = sitk.GetImageFromArray(np.minimum(sitk.GetArrayFromImage(mask), LABELS["organ"]))
    without_lesion.CopyInformation(mask)
    sitk.WriteImage(without_lesion, str(first))
    compute_metrics_on_folder(
        str(settings.dataset_folder / "labelsTs"), str(settings.predictions), str(settings.predictions / "summary.json"), SimpleITKIO(),
        FILE_ENDING, [1, 2], None, num_processes=1,
    )  # fmt: skip
    tasks = classification_tasks(load_json(settings.dataset_folder / "dataset.json"))
    classes = list(tasks["subtype"].classes)
    decided = {identifier: classes[0] if index < 2 else subtype for index, (identifier, subtype) in enumerate(held_out.items())}
    rows = {identifier: {"subtype": np.where(np.array(classes) == name, 0.6, 0.2)} for identifier, name in decided.items()}
    write_classification_csv(settings.predictions / "classification.csv", tasks, rows)

    scores = walkthrough._report(settings)

    truth = list(held_out.values())
    assert set(classes) == set(SUBTYPES)
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, list(decided.values()), average="macro"))
    assert scores["macro_f1"] < 1
    assert scores["dice_lesion"] == pytest.approx(5 / 6)
    assert "Scores on 6 cases that were never trained on" in capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    assert stopped.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in error_of(capsys, "-o", str(tmp_path))
    assert "is a file" in error_of(capsys, "-o", str(tmp_path / "mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_command_that_fails_ends_the_demo_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a single training case has one class only, which the verification refuses
    said = error_of(capsys, "-o", str(tmp_path / "demo"), "--num_training", "1", "--num_test", "1")
    assert "nnUNetv2_plan_and_preprocess failed (exit status 1)" in said


def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--epochs", "0"])
    assert stopped.value.code == 2
    assert "not a whole number of at least 1" in capsys.readouterr().err
