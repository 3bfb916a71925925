"""``nnUNetv2_calibrate_classification``: probabilities of classes that mean what they say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import dataset_id_or_name, run_command

METHODS = ("temperature", "vector")
TRAINER, PLANS = "nnUNetTrainerMultitask", "nnUNetPlans"


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_calibrate_classification``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_calibrate_classification",
        description="Calibrate the class probabilities of a model on the validation cases of its folds. Writes "
        "classification_calibration.json into the model folder; predictions use it from then on.",
    )
    parser.add_argument("-m", default=None, metavar="FOLDER", help="folder of the model; or give -d, -c, -tr and -p")
    parser.add_argument("-d", type=dataset_id_or_name, default=None, metavar="DATASET", help="dataset of the model, id or name")
    parser.add_argument("-c", default=None, metavar="CONFIGURATION", help="configuration of the model, such as 3d_fullres")
    parser.add_argument("-tr", default=None, metavar="TRAINER", help=f"trainer of the model (default: {TRAINER})")
    parser.add_argument("-p", default=None, metavar="PLANS", help=f"plans of the model (default: {PLANS})")
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
    check_options(parser, args)

    from nnunetv2.evaluation.calibrate_classification import calibrate_classification, summary_text
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    folder = args.m if args.m is not None else get_output_folder(args.d, args.tr or TRAINER, args.p or PLANS, args.c)
    calibration, notes = calibrate_classification(folder, args.ref, args.method)
    print(summary_text(calibration, notes))
    print(f"\nWritten: classification_calibration.json and reliability plots in {folder}")


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What contradicts itself; ends with a message like a misspelled option."""
    if args.m is None and (args.d is None or args.c is None):
        parser.error("give the model either by its folder, -m, or by -d and -c")
    given = [option for option, value in {"-d": args.d, "-c": args.c, "-tr": args.tr, "-p": args.p}.items() if value is not None]
    if args.m is not None and given:
        parser.error(f"give the model either by its folder, -m, or by -d and -c: -m names it already; leave out {', '.join(given)}")


if __name__ == "__main__":
    main()
