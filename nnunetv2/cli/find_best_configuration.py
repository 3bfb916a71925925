"""``nnUNetv2_find_best_configuration`` and ``nnUNetv2_accumulate_crossval_results``: what the folds of trained models say together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_processes, dataset_id_or_name, fold, run_command

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
DEFAULT_FOLDS = (0, 1, 2, 3, 4)
DEFAULT_TRAINER, DEFAULT_PLANS = "nnUNetTrainer", "nnUNetPlans"


def build_find_best_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_find_best_configuration``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_find_best_configuration",
        description="Score trained models and pairs of them in cross-validation, find the best and its postprocessing, and write the commands "
        "that predict with it.",
    )
    parser.add_argument("dataset_name_or_id", type=dataset_id_or_name, help="dataset of the models, id or name")
    parser.add_argument("-p", nargs="+", default=[DEFAULT_PLANS], metavar="PLANS", help=f"plans to compare (default: {DEFAULT_PLANS})")
    parser.add_argument(
        "-c",
        nargs="+",
        default=list(DEFAULT_CONFIGURATIONS),
        metavar="CONFIGURATION",
        help=f"configurations to compare (default: {' '.join(DEFAULT_CONFIGURATIONS)}, as far as the plans have them)",
    )
    parser.add_argument(
        "-tr", nargs="+", default=[DEFAULT_TRAINER], metavar="TRAINER", help=f"trainers to compare (default: {DEFAULT_TRAINER})"
    )
    add_processes(parser)
    _add_folds(parser)
    parser.add_argument("--disable_ensembling", action="store_true", help="single models only, which needs no probabilities (--npz)")
    parser.add_argument(
        "--no_overwrite", action="store_true", help="keep what an earlier run has pooled and averaged, even if it is outdated"
    )
    return parser


@run_command
def find_best_configuration_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_find_best_configuration``."""
    args = build_find_best_parser().parse_args(argv)

    from nnunetv2.model_selection.find_best_configuration import (
        dumb_trainer_config_plans_to_trained_models_dict,
        find_best_configuration,
    )

    find_best_configuration(
        args.dataset_name_or_id,
        dumb_trainer_config_plans_to_trained_models_dict(args.tr, args.c, args.p),
        allow_ensembling=not args.disable_ensembling,
        num_processes=args.np,
        overwrite=not args.no_overwrite,
        folds=args.f,
    )


def build_accumulate_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_accumulate_crossval_results``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_accumulate_crossval_results",
        description="Copy the validation predictions of all folds into one folder and score them together, segmentations and classes.",
    )
    parser.add_argument("dataset_name_or_id", type=dataset_id_or_name, help="dataset of the model, id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration of the model, such as 3d_fullres")
    parser.add_argument(
        "-o", default=None, metavar="FOLDER", help="output folder, empty or new (default: crossval_results_folds_X in the model's folder)"
    )
    _add_folds(parser)
    parser.add_argument(
        "-chk",
        default="checkpoint_final.pth",
        metavar="CHECKPOINT",
        help="whose validation; others than the default are validated by nnUNetv2_train ... -val_chk (default: %(default)s)",
    )
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans of the model (default: %(default)s)")
    parser.add_argument("-tr", default=DEFAULT_TRAINER, metavar="TRAINER", help="trainer of the model (default: %(default)s)")
    return parser


@run_command
def accumulate_crossval_results_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_accumulate_crossval_results``."""
    args = build_accumulate_parser().parse_args(argv)

    from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results, default_output_folder
    from nnunetv2.evaluation.evaluate_predictions import foreground_dice, load_summary_json
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    model = get_output_folder(args.dataset_name_or_id, args.tr, args.p, args.c)
    output = default_output_folder(model, args.f, args.chk) if args.o is None else args.o
    if args.o is not None and os.path.isdir(output) and os.listdir(output):
        raise FileExistsError(f"The folder {output} is not empty. Give a new one with -o, or leave -o out.")
    accumulate_cv_results(model, output, args.f, checkpoint=args.chk)
    summary = load_summary_json(os.path.join(output, "summary.json"))
    print(f"{len(summary['metric_per_case'])} cases, mean foreground Dice {foreground_dice(summary):.4f}. Written: {output}")


def _add_folds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", nargs="+", type=fold, default=DEFAULT_FOLDS, metavar="FOLD", help="folds, or all (default: 0 1 2 3 4)")


if __name__ == "__main__":
    find_best_configuration_entry()
