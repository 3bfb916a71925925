"""``nnUNetv2_export_segmentation_model``: a trained model without its classification heads, for stock nnU-Net."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_model, add_verbose, check_model, fold, model_folder, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_export_segmentation_model``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_export_segmentation_model",
        description="Write the segmentation part of a trained model as a folder that nnU-Net 2.8.1 opens and predicts with. The model is "
        "not changed. Give its folder (-m), or dataset and configuration (-d, -c).",
    )
    add_model(parser)
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("-f", nargs="+", type=fold, default=None, metavar="FOLD", help="folds (default: all that are there)")
    parser.add_argument(
        "-chk", nargs="+", default=["checkpoint_final.pth"], metavar="NAME", help="checkpoints of each fold (default: checkpoint_final.pth)"
    )
    add_verbose(parser)
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_export_segmentation_model``."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_model(parser, args)

    from nnunetv2.model_sharing.export_segmentation_model import export_segmentation_model, summary_text

    print(summary_text(export_segmentation_model(model_folder(args), args.o, args.f, args.chk)))


if __name__ == "__main__":
    main()
