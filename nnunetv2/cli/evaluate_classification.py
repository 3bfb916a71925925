"""``nnUNetv2_evaluate_classification``: scores of predicted classes with intervals and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_evaluate_classification``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_evaluate_classification",
        description="Score predicted classes: a table on the screen; JSON, CSV and pictures in a folder.",
    )
    parser.add_argument("predictions", metavar="PRED.csv", help="classification.csv of a prediction")
    parser.add_argument("reference", metavar="REF.csv", help="what is true, in the form of labels.csv")
    parser.add_argument("-djfile", required=True, metavar="FILE", help="dataset.json that declares the classes")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="folder to write to, created if it does not exist")
    parser.add_argument(
        "-groups",
        default=None,
        metavar="FILE",
        help="which cases belong to one patient, for the intervals (default: case_groups of the dataset, or groups.csv beside REF.csv)",
    )
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_evaluate_classification``."""
    args = build_parser().parse_args(argv)

    from nnunetv2.evaluation.evaluate_classification import evaluate_classification, summary_text

    print(summary_text(evaluate_classification(args.predictions, args.reference, args.djfile, args.o, args.groups)))
    print(f"Written: classification_metrics.json, classification_metrics.csv and pictures in {args.o}")


if __name__ == "__main__":
    main()
