"""Options of nnUNetv2_train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_datasets import PLANS

from nnunetv2.cli.train import build_parser, main


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
        (["-num_gpus", "2"], "not part of this release yet"),
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
    assert message in capsys.readouterr().err
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
