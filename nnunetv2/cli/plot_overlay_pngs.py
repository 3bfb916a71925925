"""``nnUNetv2_plot_overlay_pngs``: one picture for each case, with its labels in colour."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_verbose, dataset_id_or_name, number_of_processes, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_plot_overlay_pngs``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plot_overlay_pngs",
        description="Write a PNG for each training case: the slice that shows most of all labels, the labels in colour. Spacing is not "
        "regarded.",
    )
    parser.add_argument("-d", required=True, type=dataset_id_or_name, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="folder for the pictures")
    parser.add_argument("-np", type=number_of_processes, default=8, metavar="N", help="worker processes (default: %(default)s)")
    parser.add_argument("-channel_idx", type=int, default=0, metavar="N", help="channel to show, 0 for _0000 (default: %(default)s)")
    parser.add_argument("--use_raw", action="store_true", help="the raw images instead of the preprocessed ones")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the preprocessed images (default: %(default)s)")
    parser.add_argument(
        "-c", default=None, metavar="CONFIGURATION", help="configuration of the preprocessed images (default: 3d_fullres, else 2d)"
    )
    parser.add_argument(
        "-overlay_intensity", type=_share, default=0.6, metavar="SHARE", help="how strong the colours are, 0 to 1 (default: %(default)s)"
    )
    add_verbose(parser)
    return parser


def _share(text: str) -> float:
    """A number from 0 to 1, as argparse type."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plot_overlay_pngs``."""
    args = build_parser().parse_args(argv)

    from nnunetv2.report.overlay_plots import generate_overlays_from_preprocessed, generate_overlays_from_raw

    if args.use_raw:
        generate_overlays_from_raw(args.d, args.o, args.np, args.channel_idx, args.overlay_intensity)
    else:
        generate_overlays_from_preprocessed(args.d, args.o, args.np, args.channel_idx, args.c, args.p, args.overlay_intensity)
    print(f"Written: {args.o}")


if __name__ == "__main__":
    main()
