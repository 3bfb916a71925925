"""``nnUNetv2_ensemble``: the mean of what several models predict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_processes, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_ensemble``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_ensemble",
        description="Average the predictions of several models for the same images: segmentations (predicted with --save_probabilities) and "
        "classes (--save_cls).",
    )
    parser.add_argument("-i", nargs="+", required=True, metavar="FOLDER", help="folders of predictions, one for each model")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="output folder, created if it does not exist")
    add_processes(parser)
    parser.add_argument("--save_npz", action="store_true", help="also write the averaged probabilities")
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_ensemble``."""
    args = build_parser().parse_args(argv)

    from nnunetv2.ensembling.ensemble import ensemble_folders

    ensemble_folders(args.i, args.o, args.save_npz, args.np)
    print(f"The mean of {len(args.i)} predictions is in {args.o}")


if __name__ == "__main__":
    main()
