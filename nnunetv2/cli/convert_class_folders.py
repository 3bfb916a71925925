"""``nnUNetv2_convert_class_folders``: folders with one subfolder for each class to a raw dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_convert_class_folders``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_convert_class_folders",
        description="Make a dataset in nnUNet_raw of train/CLASS/CASE_0000.nii.gz and CASE.nii.gz, validation/CLASS/... and "
        "test/CASE_0000.nii.gz. The source is not changed.",
    )
    parser.add_argument("source", metavar="FOLDER", help="folder with train, validation and test")
    parser.add_argument("-d", required=True, metavar="DATASET", help="name of the new dataset, such as Dataset101_Pancreas")
    parser.add_argument("-labels", nargs="+", required=True, metavar="NAME", help="names of the label values 0, 1, ...: background lesion")
    parser.add_argument("-channels", nargs="+", required=True, metavar="NAME", help="names of the channels; CT chooses CT normalization")
    parser.add_argument("-task", default="subtype", metavar="NAME", help="name of the classification task (default: %(default)s)")
    parser.add_argument("-classes", nargs="+", default=None, metavar="NAME", help="order of the classes (default: alphabetical)")
    parser.add_argument("-evidence", nargs="+", default=(), metavar="NAME", help="labels that show the class (default: the whole image)")
    parser.add_argument("-context", nargs="+", default=(), metavar="NAME", help="labels around them, with weak evidence")
    parser.add_argument("-ending", default=".nii.gz", metavar="ENDING", help="ending of all files (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies: no space needed, same file system only")
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_convert_class_folders``."""
    args = build_parser().parse_args(argv)

    from nnunetv2.dataset_conversion.convert_class_folders import convert_class_folders, summary_text

    folder, found = convert_class_folders(
        args.source,
        args.d,
        task_name=args.task,
        label_names=args.labels,
        channel_names=args.channels,
        class_names=args.classes,
        evidence=args.evidence,
        context=args.context,
        file_ending=args.ending,
        hard_links=args.link,
    )
    print(summary_text(found))
    print(f"Written: {folder}")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {args.d} --verify_dataset_integrity")


if __name__ == "__main__":
    main()
