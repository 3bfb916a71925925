"""``nnUNetv2_calibrate_classification``: probabilities of classes that mean what they say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_model, check_model, model_folder, run_command

METHODS = ("temperature", "vector")


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_calibrate_classification``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_calibrate_classification",
        description="Calibrate the class probabilities of a model on the validation cases of its folds. Writes "
        "classification_calibration.json into the model folder; predictions with the same checkpoint use it from then on.",
    )
    add_model(parser)
    parser.add_argument(
        "-chk",
        default="checkpoint_final.pth",
        metavar="CHECKPOINT",
        help="whose validation; others than the default are validated by nnUNetv2_train ... -val_chk (default: %(default)s)",
    )
    parser.add_argument("-ref", default=None, metavar="REF.csv", help="labels of the cases (default: those of the preprocessed dataset)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="temperature",
        help="temperature: one number, for multilabel one for each class; vector: also shifts classes, needs more cases "
        "(default: %(default)s)",
    )
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_calibrate_classification``."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_model(parser, args)

    from nnunetv2.evaluation.calibrate_classification import calibrate_classification, summary_text

    folder = model_folder(args)
    calibration, notes = calibrate_classification(folder, args.ref, args.method, checkpoint=args.chk)
    print(summary_text(calibration, notes))
    print(f"\nWritten: classification_calibration.json and reliability plots in {folder}")


if __name__ == "__main__":
    main()
