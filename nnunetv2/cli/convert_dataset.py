"""``nnUNetv2_convert_MSD_dataset`` and ``nnUNetv2_convert_old_nnUNet_dataset``: datasets of other formats to raw datasets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.cli.arguments import add_processes, add_verbose, run_command


def build_msd_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_convert_MSD_dataset``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_convert_MSD_dataset",
        description="Make a dataset in nnUNet_raw of an unpacked task of the Medical Segmentation Decathlon. The source is not changed.",
    )
    parser.add_argument("-i", required=True, metavar="FOLDER", help="folder TaskXX_Name; tasks of nnU-Net v1 have a command of their own")
    parser.add_argument("-overwrite_id", type=int, default=None, metavar="ID", help="number of the dataset (default: that of the task)")
    add_processes(parser)
    add_verbose(parser)
    return parser


@run_command
def msd_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_convert_MSD_dataset``."""
    args = build_msd_parser().parse_args(argv)

    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    _say_what_is_next(convert_msd_dataset(args.i, args.overwrite_id, args.np))


def build_old_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_convert_old_nnUNet_dataset``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_convert_old_nnUNet_dataset",
        description="Make a dataset in nnUNet_raw of a raw dataset of nnU-Net v1. The source is not changed.",
    )
    parser.add_argument("input_folder", metavar="FOLDER", help="path of the folder TaskXXX_Name, with imagesTr, labelsTr and dataset.json")
    parser.add_argument("output_dataset_name", metavar="DATASET", help="name of the new dataset, DatasetXXX_Name")
    add_verbose(parser)
    return parser


@run_command
def old_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_convert_old_nnUNet_dataset``."""
    args = build_old_parser().parse_args(argv)

    from nnunetv2.dataset_conversion.convert_raw_dataset_from_old_nnunet_format import convert

    _say_what_is_next(convert(args.input_folder, args.output_dataset_name))


def _say_what_is_next(folder: Path) -> None:
    """The new dataset and the command that goes on with it."""
    print(f"Written: {folder}")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {folder.name} --verify_dataset_integrity")
