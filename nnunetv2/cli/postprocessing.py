"""``nnUNetv2_determine_postprocessing`` and ``nnUNetv2_apply_postprocessing``: all but the largest component, where it helps."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_processes, run_command


def build_determine_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_determine_postprocessing``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_determine_postprocessing",
        description="Find out whether predictions are better without all but the largest component of their structures. Writes "
        "postprocessing.pkl and postprocessing.json into the folder of the predictions.",
    )
    parser.add_argument("-i", required=True, metavar="FOLDER", help="folder of predictions")
    parser.add_argument("-ref", required=True, metavar="FOLDER", help="folder of reference segmentations of the same cases")
    _add_common(parser)
    parser.add_argument("--remove_postprocessed", action="store_true", help="do not keep the postprocessed segmentations")
    return parser


@run_command
def determine_postprocessing_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_determine_postprocessing``."""
    args = build_determine_parser().parse_args(argv)

    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

    plans, dataset_json = (_file(given, args.i, name) for given, name in ((args.plans_json, "plans"), (args.dataset_json, "dataset")))
    determine_postprocessing(args.i, args.ref, plans, dataset_json, args.np, not args.remove_postprocessed)
    print(f"Written: postprocessing.pkl and postprocessing.json in {args.i}")


def build_apply_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_apply_postprocessing``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_apply_postprocessing", description="Postprocess predictions as nnUNetv2_determine_postprocessing has found best."
    )
    parser.add_argument("-i", required=True, metavar="FOLDER", help="folder of predictions")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="output folder, created if it does not exist")
    parser.add_argument("-pp_pkl_file", required=True, metavar="FILE", help="postprocessing.pkl, or the postprocessing.json beside it")
    _add_common(parser)
    return parser


@run_command
def apply_postprocessing_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_apply_postprocessing``."""
    args = build_apply_parser().parse_args(argv)

    from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing_to_folder, load_postprocessing

    functions, arguments = load_postprocessing(args.pp_pkl_file)
    if not functions:
        print("Nothing is to be removed: the segmentations stay as they are.")
    apply_postprocessing_to_folder(args.i, args.o, functions, arguments, args.plans_json, args.dataset_json, args.np)
    print(f"Postprocessed predictions are in {args.o}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What both commands share."""
    add_processes(parser)
    parser.add_argument("-plans_json", default=None, metavar="FILE", help="plans of the model (default: plans.json in the folder -i)")
    parser.add_argument("-dataset_json", default=None, metavar="FILE", help="dataset.json of the model (default: that in the folder -i)")


def _file(given: str | None, folder: str, name: str) -> str:
    """The file that was given, or the one beside the predictions."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}. Give a folder of predictions.")
    file = os.path.join(folder, f"{name}.json") if given is None else given
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file} does not exist. Give the file of the model that made the predictions with -{name}_json.")
    return file


if __name__ == "__main__":
    determine_postprocessing_entry()
