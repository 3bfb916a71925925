"""``nnUNetv2_report``: one HTML page about a trained model or about predictions."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from nnunetv2.cli.arguments import number_of_processes, run_command

DEFAULT_WORST = 10


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_report``."""
    from nnunetv2.configuration import default_num_processes  # read on use: a wrong value is a message, not a traceback

    parser = argparse.ArgumentParser(
        prog="nnUNetv2_report",
        description="Write one self-contained HTML page about a trained model (all folds that are validated) or about predictions.",
    )
    parser.add_argument(
        "folder",
        metavar="MODEL_OR_PREDICTIONS",
        help="folder of a model, .../TRAINER__PLANS__CONFIGURATION (also relative to nnUNet_results), or the -o of nnUNetv2_predict",
    )
    parser.add_argument(
        "-o",
        default=None,
        metavar="FILE.html",
        help="page to write (default: report.html in the folder, report_best.html or the like with -chk)",
    )
    parser.add_argument(
        "--reference_labels", default=None, metavar="FILE", help="true classes, in the form of labels.csv (default: those of the dataset)"
    )
    parser.add_argument(
        "--reference_segmentations",
        default=None,
        metavar="FOLDER",
        help="reference segmentations (default: summary.json, else those of the dataset)",
    )
    parser.add_argument(
        "--images",
        default=None,
        metavar="FOLDER",
        help="images, named CASE_0000.ending (default: what was predicted, else the raw dataset)",
    )
    parser.add_argument("-djfile", default=None, metavar="FILE", help="dataset.json (default: the one in the folder)")
    parser.add_argument(
        "-groups",
        default=None,
        metavar="FILE",
        help="which cases belong to one patient (default: groups.csv of the dataset or beside the labels)",
    )
    parser.add_argument(
        "-m", default=None, metavar="FOLDER", help="for predictions: the model that made them; adds its training to the page"
    )
    parser.add_argument(
        "-chk",
        default="checkpoint_final.pth",
        metavar="CHECKPOINT",
        help="for a model: whose validation; others than the default are validated by nnUNetv2_train ... -val_chk (default: %(default)s)",
    )
    parser.add_argument(
        "--worst", type=number_of_processes, default=DEFAULT_WORST, metavar="N", help="cases to show for each task (default: %(default)s)"
    )
    parser.add_argument(
        "-np",
        type=number_of_processes,
        default=default_num_processes,
        metavar="N",
        help="worker processes that compare segmentations (default: %(default)s)",
    )
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_report``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)

    from nnunetv2.report.collect import Sources
    from nnunetv2.report.write_report import write_report

    sources = Sources(
        reference_labels=args.reference_labels,
        reference_segmentations=args.reference_segmentations,
        images=args.images,
        dataset_json_file=args.djfile,
        groups_file=args.groups,
        model_folder=args.m,
        checkpoint=args.chk,
        num_processes=args.np,
    )
    command = shlex.join(["nnUNetv2_report", *arguments])
    output = write_report(args.folder, args.o, sources=sources, worst=args.worst, command=command)
    print(f"Written: {output} ({output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
