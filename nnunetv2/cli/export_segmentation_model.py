"""``nnUNetv2_export_segmentation_model``: a trained model without its classification heads, for stock nnU-Net."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_verbose, dataset_id_or_name, fold, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_export_segmentation_model``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_export_segmentation_model",
        description="Write the segmentation part of a trained model as a folder that nnU-Net 2.8.1 opens and predicts with. The model is "
        "not changed. Give its folder (-m), or dataset and configuration (-d, -c).",
    )
    parser.add_argument("-m", default=None, metavar="FOLDER", help="folder of the model, with fold_0, ..., dataset.json and plans.json")
    parser.add_argument("-d", type=dataset_id_or_name, default=None, metavar="DATASET", help="dataset of the model, id or name")
    parser.add_argument("-c", default=None, metavar="CONFIGURATION", help="configuration of the model, such as 3d_fullres")
    parser.add_argument("-tr", default=None, metavar="TRAINER", help="trainer of the model (default: nnUNetTrainerMultitask)")
    parser.add_argument("-p", default=None, metavar="PLANS", help="plans of the model (default: nnUNetPlans)")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("-f", nargs="+", type=fold, default=None, metavar="FOLD", help="folds (default: all that are there)")
    parser.add_argument(
        "-chk", nargs="+", default=["checkpoint_final.pth"], metavar="NAME", help="checkpoints of each fold (default: checkpoint_final.pth)"
    )
    add_verbose(parser)
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a message unless the model is named in exactly one way."""
    by_name = {"-d": args.d, "-c": args.c, "-tr": args.tr, "-p": args.p}
    given = [option for option, value in by_name.items() if value is not None]
    if args.m is not None and given:
        parser.error(f"-m names the model already; leave out {', '.join(given)}")
    if args.m is None and (args.d is None or args.c is None):
        parser.error("give the folder of the model (-m), or its dataset (-d) and configuration (-c)")


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_export_segmentation_model``."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)

    if args.m is None:
        from nnunetv2.utilities.file_path_utilities import get_output_folder

        args.m = get_output_folder(args.d, args.tr or "nnUNetTrainerMultitask", args.p or "nnUNetPlans", args.c)

    from nnunetv2.model_sharing.export_segmentation_model import export_segmentation_model, summary_text

    print(summary_text(export_segmentation_model(args.m, args.o, args.f, args.chk)))


if __name__ == "__main__":
    main()
