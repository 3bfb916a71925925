"""Options of nnUNetv2_train."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_datasets import PLANS
from tiny_trainings import CPU

from nnunetv2.cli.train import build_parser, main
from nnunetv2.run.run_training import get_trainer_from_args


def test_defaults_are_those_of_nnunet() -> None:
    args = build_parser().parse_args(["Dataset004_Hippocampus", "3d_fullres", "all"])
    assert (args.tr, args.p, args.fold, args.num_gpus) == ("nnUNetTrainer", "nnUNetPlans", "all", 1)
    assert args.pretrained_weights is args.seed is args.epochs is args.iterations_per_epoch is args.device is None
    assert not (args.npz or args.c or args.val or args.val_best or args.disable_checkpointing)


@pytest.mark.parametrize("arguments", [["x"], ["-1"], ["1.5"], [""]])
def test_a_fold_is_a_number_or_all(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["4", "2d", "--", *arguments])
    assert "is no fold; expected 0 or a higher whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--c", "--val"], "exclude each other"),
        (["--c", "-pretrained_weights", "x.pth"], "exclude each other"),
        (["--val_best", "--disable_checkpointing"], "--val_best needs"),
        (["--refit_heads", "--c"], "--refit_heads .* excludes --c. Leave it out"),
        (["--refit_heads", "--val", "--disable_checkpointing"], "excludes --val, --disable_checkpointing. Leave them out"),
        (["--refit_heads", "--head_refit", "none"], "--head_refit none exclude each other"),
        (["-num_gpus", "0"], "needs one GPU"),
        (["-pretrained_weights", "nowhere.pth"], "nowhere.pth does not exist"),
    ],
)
def test_options_that_do_not_fit_stop_before_anything_is_written(
    options: list[str], message: str, tiny_training: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["2", "2d", "0", "-p", PLANS, "-device", "cpu", *options])
    assert stopped.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tiny_training["results"].iterdir())


def test_unplanned_dataset_is_named(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (nnunet_folders["preprocessed"] / "Dataset004_Hippocampus").mkdir()
    with pytest.raises(SystemExit):
        main(["Dataset004_Hippocampus", "2d", "0", "-device", "cpu"])
    assert "nnUNetv2_plan_and_preprocess -d Dataset004_Hippocampus" in capsys.readouterr().err


def test_help_does_not_import_torch_or_numpy() -> None:
    code = (
        "import sys\nfrom nnunetv2.cli.train import main\n"
        "try:\n    main(['-h'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def training_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What nnUNetv2_train says last when it stops; its exit status must be 1."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-p", PLANS, "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "1"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("Error: ") :]


@pytest.fixture
def own_preprocessed(tiny_training: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A preprocessed dataset that may be changed."""
    folder = tmp_path / "preprocessed"
    for name in ("Dataset001_Classes", "Dataset002_Plain"):
        shutil.copytree(tiny_training["preprocessed"] / name, folder / name)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    return folder / "Dataset002_Plain"


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_plans_of_another_dataset_train_nothing(own_preprocessed: Path, tiny_training: dict[str, Path], capsys) -> None:
    shutil.copy(own_preprocessed.parent / "Dataset001_Classes" / f"{PLANS}.json", own_preprocessed)
    assert "were made for Dataset001_Classes" in training_error(capsys, "2", "3d_fullres", "0")
    assert not list(tiny_training["results"].iterdir())


def test_plans_for_other_channels_train_nothing(own_preprocessed: Path, capsys) -> None:
    change(own_preprocessed / "dataset.json", channel_names={"0": "MR", "1": "T2"})
    said = training_error(capsys, "2", "3d_fullres", "0")
    assert "normalise 1 channel in configuration 3d_fullres, dataset.json of Dataset002_Plain names 2" in said


def test_cases_that_other_plans_preprocessed_are_refused(own_preprocessed: Path, tiny_training: dict[str, Path], capsys) -> None:
    plans = json.loads((own_preprocessed / f"{PLANS}.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    change(own_preprocessed / f"{PLANS}.json", **plans)
    said = training_error(capsys, "2", "3d_fullres", "0")
    assert "spacing: [1.0, 1.0, 1.0] in the data, [2.0, 2.0, 2.0] in the plans" in said
    assert f"nnUNetv2_preprocess -d Dataset002_Plain -plans_name {PLANS}" in said
    assert not list(tiny_training["results"].iterdir())


def test_cases_of_an_interrupted_preprocessing_are_refused(own_preprocessed: Path, capsys) -> None:
    change(own_preprocessed / f"{PLANS}_3d_fullres.settings.json", complete=False)
    assert "was interrupted or failed for some cases" in training_error(capsys, "2", "3d_fullres", "0")


def test_cases_without_a_note_of_their_settings_are_taken_as_they_are(own_preprocessed: Path) -> None:
    (own_preprocessed / f"{PLANS}_3d_fullres.settings.json").unlink()
    get_trainer_from_args(2, "3d_fullres", 0, "nnUNetTrainer", PLANS, device=CPU)


def test_a_splits_file_that_holds_no_folds_is_named(own_preprocessed: Path, capsys) -> None:
    (own_preprocessed / "splits_final.json").write_text('{"a": 1}')
    assert "splits_final.json does not hold folds" in training_error(capsys, "2", "3d_fullres", "0")


def test_a_fold_beyond_the_file_is_a_warning(tiny_training: dict[str, Path], capsys) -> None:
    get_trainer_from_args(2, "3d_fullres", 7, "nnUNetTrainer", PLANS, device=CPU).do_split()
    assert "WARNING: fold 7 is not among the 5 folds" in capsys.readouterr().out


def test_checkpoints_of_which_none_can_be_read_are_kept(tiny_training: dict[str, Path], capsys) -> None:
    fold = tiny_training["results"] / "Dataset002_Plain" / f"nnUNetTrainer__{PLANS}__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").write_bytes(b"half a file")
    said = training_error(capsys, "2", "3d_fullres", "0", "--c")
    assert "None of the checkpoints in" in said and "checkpoint_latest.pth" in said
    assert (fold / "checkpoint_latest.pth").read_bytes() == b"half a file"


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_a_missing_environment_variable_is_named(variable: str, tiny_training: dict[str, Path], monkeypatch, capsys) -> None:
    monkeypatch.delenv(variable)
    assert f"The environment variable {variable} is not set" in training_error(capsys, "Dataset002_Plain", "3d_fullres", "0")


def test_an_ambiguous_id_names_its_datasets(tiny_training: dict[str, Path], capsys) -> None:
    (tiny_training["raw"] / "Dataset002_Other").mkdir()
    assert "More than one dataset has the id 2: Dataset002_Other, Dataset002_Plain" in training_error(capsys, "2", "3d_fullres", "0")
