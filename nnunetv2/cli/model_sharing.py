"""``nnUNetv2_export_model_to_zip``, ``nnUNetv2_install_pretrained_model_from_zip``, ``nnUNetv2_download_pretrained_model_by_url``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import add_verbose, dataset_id_or_name, fold, run_command

LICENSE_NOTE = (
    "Note: trained models have terms of their own, often those of the data that they were trained on (for example no commercial use). "
    "Look them up where you got the model."
)


def build_export_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_export_model_to_zip``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_export_model_to_zip", description="Write trained models of a dataset into one zip file, to install them elsewhere."
    )
    parser.add_argument("-d", required=True, type=dataset_id_or_name, metavar="DATASET", help="dataset id or name")
    parser.add_argument("-o", required=True, metavar="FILE", help="zip file to write; one that is there is replaced")
    parser.add_argument(
        "-c",
        nargs="+",
        default=["3d_lowres", "3d_fullres", "2d", "3d_cascade_fullres"],
        metavar="CONFIGURATION",
        help="configurations (default: 3d_lowres 3d_fullres 2d 3d_cascade_fullres)",
    )
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer of the models (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the models (default: %(default)s)")
    parser.add_argument("-f", nargs="+", type=fold, default=[0, 1, 2, 3, 4], metavar="FOLD", help="folds, or all (default: 0 1 2 3 4)")
    parser.add_argument(
        "-chk", nargs="+", default=["checkpoint_final.pth"], metavar="NAME", help="checkpoints of each fold (default: checkpoint_final.pth)"
    )
    parser.add_argument("--not_strict", action="store_true", help="leave out configurations, folds and checkpoints that are missing")
    parser.add_argument("--exp_cv_preds", action="store_true", help="export the predictions of the validation cases too")
    add_verbose(parser)
    return parser


@run_command
def export_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_export_model_to_zip``."""
    args = build_export_parser().parse_args(argv)

    from nnunetv2.model_sharing.model_export import export_pretrained_model, summary_text

    exported = export_pretrained_model(
        args.d,
        args.o,
        configurations=args.c,
        trainer=args.tr,
        plans_identifier=args.p,
        folds=args.f,
        strict=not args.not_strict,
        save_checkpoints=args.chk,
        export_crossval_predictions=args.exp_cv_preds,
    )
    print(summary_text(exported))


def build_install_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_install_pretrained_model_from_zip``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_install_pretrained_model_from_zip",
        description="Install a zip file of nnUNetv2_export_model_to_zip into nnUNet_results. Nothing in it is executed.",
    )
    parser.add_argument("zip", metavar="FILE", help="the zip file")
    add_install_options(parser)
    return parser


@run_command
def install_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_install_pretrained_model_from_zip``."""
    args = build_install_parser().parse_args(argv)

    from nnunetv2.model_sharing.model_import import install_model_from_zip_file, summary_text

    print(LICENSE_NOTE)
    print(summary_text(install_model_from_zip_file(args.zip, args.overwrite, args.sha256)))


def build_download_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_download_pretrained_model_by_url``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_download_pretrained_model_by_url",
        description="Download a zip file with trained models and install it into nnUNet_results. Nothing in it is executed.",
    )
    parser.add_argument("url", metavar="URL", help="address of the zip file, https://...")
    add_install_options(parser)
    return parser


@run_command
def download_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_download_pretrained_model_by_url``."""
    args = build_download_parser().parse_args(argv)

    from nnunetv2.model_sharing.model_download import download_and_install_from_url
    from nnunetv2.model_sharing.model_import import summary_text

    print(LICENSE_NOTE)
    print(summary_text(download_and_install_from_url(args.url, args.overwrite, args.sha256)))


def add_install_options(parser: argparse.ArgumentParser) -> None:
    """Options of both ways to install a model."""
    parser.add_argument("--overwrite", action="store_true", help="replace models of the same name, with all of their folds")
    parser.add_argument("-sha256", default=None, metavar="HEX", help="SHA-256 that the file must have, as its author says")
    add_verbose(parser)
