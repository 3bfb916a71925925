"""``nnUNetv2_evaluate_folder`` and ``nnUNetv2_evaluate_simple``: Dice and counts of predicted segmentations."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.cli.arguments import add_processes, run_command


def build_evaluate_folder_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_evaluate_folder``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_evaluate_folder", description="Score predicted segmentations, with the labels of a dataset.json."
    )
    _add_folders(parser)
    parser.add_argument("-djfile", required=True, metavar="FILE", help="dataset.json: labels and file ending")
    parser.add_argument("-pfile", required=True, metavar="FILE", help="plans.json of the model")
    _add_common(parser)
    return parser


@run_command
def evaluate_folder_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_evaluate_folder``."""
    args = build_evaluate_folder_parser().parse_args(argv)

    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2

    _report(compute_metrics_on_folder2(args.gt_folder, args.pred_folder, args.djfile, args.pfile, args.o, args.np, chill=args.chill), args)


def build_evaluate_simple_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_evaluate_simple``."""
    parser = argparse.ArgumentParser(prog="nnUNetv2_evaluate_simple", description="Score predicted segmentations for given labels.")
    _add_folders(parser)
    parser.add_argument("-l", type=int, nargs="+", required=True, metavar="LABEL", help="labels to score")
    parser.add_argument("-il", type=int, default=None, metavar="LABEL", help="ignore label: voxels with it in the reference do not count")
    _add_common(parser)
    return parser


@run_command
def evaluate_simple_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_evaluate_simple``."""
    args = build_evaluate_simple_parser().parse_args(argv)

    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple

    _report(compute_metrics_on_folder_simple(args.gt_folder, args.pred_folder, args.l, args.o, args.np, args.il, chill=args.chill), args)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gt_folder", help="folder of reference segmentations")
    parser.add_argument("pred_folder", help="folder of predicted segmentations with the same file names")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", default=None, metavar="FILE", help="file to write (default: summary.json in the folder of predictions)")
    add_processes(parser)
    parser.add_argument("--chill", action="store_true", help="accept references without a prediction")


def _report(results: Mapping[str, Any], args: argparse.Namespace) -> None:
    """The means on the screen and where the rest is."""
    print(f"{len(results['metric_per_case'])} cases")
    for label, values in results["mean"].items():
        print(f"  {label!s:<12} Dice {values['Dice']:.4f}  IoU {values['IoU']:.4f}")
    if results["foreground_mean"]:
        print(f"  {'mean':<12} Dice {results['foreground_mean']['Dice']:.4f}  IoU {results['foreground_mean']['IoU']:.4f}")
    print(f"Written: {args.o or args.pred_folder.rstrip('/') + '/summary.json'}")
