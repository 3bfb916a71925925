"""``nnUNetv2_plan_and_preprocess``, its three parts (fingerprint, plans, preprocessing), and moving plans."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from nnunetv2.cli.arguments import (
    add_dataset_ids,
    add_no_progress_bar,
    add_scheduler,
    add_verbose,
    dataset_id_or_name,
    number_of_processes,
    positive_number,
    run_command,
)

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
FITTED = "default: nnUNet_def_n_proc, or as many as CPUs and memory carry"


def build_plan_and_preprocess_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_plan_and_preprocess``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plan_and_preprocess", description="Make fingerprint, plans and preprocessed cases of datasets, in one go."
    )
    add_dataset_ids(parser)
    add_fingerprint_options(parser)
    parser.add_argument("-npfp", type=number_of_processes, help=f"processes for the fingerprint ({FITTED})")
    parser.add_argument("--no_pp", action="store_true", help="stop after planning, do not preprocess")
    add_planning_options(parser)
    add_preprocessing_options(parser)
    add_scheduler(parser)
    add_verbose(parser)
    add_no_progress_bar(parser)
    return parser


@run_command
def plan_and_preprocess_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plan_and_preprocess``."""
    parser = build_plan_and_preprocess_parser()
    args = parser.parse_args(argv)
    check_process_numbers(parser, args)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    print("Fingerprint extraction...")
    extract_fingerprints(
        args.d,
        args.fpe,
        asked_processes(args.npfp),
        args.verify_dataset_integrity,
        args.clean,
        args.verbose,
        not args.no_pbar,
        scheduler=args.scheduler,
    )
    print("Experiment planning...")
    plans_name = plan_experiments(
        args.d, args.pl, args.gpu_memory_target, args.preprocessor_name, args.overwrite_target_spacing, args.overwrite_plans_name
    )
    if not args.no_pp:
        print("Preprocessing...")
        preprocess(
            args.d,
            plans_name,
            args.c,
            asked_processes(args.np),
            args.verbose,
            not args.no_pbar,
            start_over=args.start_over,
            scheduler=args.scheduler,
        )


def build_extract_fingerprint_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_extract_fingerprint``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_extract_fingerprint", description="Collect sizes, spacings and intensities of datasets in dataset_fingerprint.json."
    )
    add_dataset_ids(parser)
    add_fingerprint_options(parser)
    parser.add_argument("-np", type=number_of_processes, help=f"processes ({FITTED})")
    add_scheduler(parser)
    add_verbose(parser)
    add_no_progress_bar(parser)
    return parser


@run_command
def extract_fingerprint_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_extract_fingerprint``."""
    args = build_extract_fingerprint_parser().parse_args(argv)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints

    extract_fingerprints(
        args.d,
        args.fpe,
        asked_processes(args.np),
        args.verify_dataset_integrity,
        args.clean,
        args.verbose,
        not args.no_pbar,
        scheduler=args.scheduler,
    )


def build_plan_experiment_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_plan_experiment``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plan_experiment", description="Plan datasets whose fingerprint exists: network, patch size, batch size."
    )
    add_dataset_ids(parser)
    add_planning_options(parser)
    add_verbose(parser)
    return parser


@run_command
def plan_experiment_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_plan_experiment``."""
    args = build_plan_experiment_parser().parse_args(argv)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    plan_experiments(
        args.d, args.pl, args.gpu_memory_target, args.preprocessor_name, args.overwrite_target_spacing, args.overwrite_plans_name
    )


def build_preprocess_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_preprocess``."""
    parser = argparse.ArgumentParser(prog="nnUNetv2_preprocess", description="Preprocess datasets whose plans exist.")
    add_dataset_ids(parser)
    parser.add_argument("-plans_name", "-p", default="nnUNetPlans", metavar="NAME", help="name of the plans (default: %(default)s)")
    add_preprocessing_options(parser)
    parser.add_argument(
        "-num_parts", type=positive_number, default=1, help="over how many runs the cases are spread (default: %(default)s)"
    )
    parser.add_argument("-part_id", type=int, default=0, help="which of them this is, from 0 (default: %(default)s)")
    add_scheduler(parser)
    add_verbose(parser)
    add_no_progress_bar(parser)
    return parser


@run_command
def preprocess_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_preprocess``."""
    parser = build_preprocess_parser()
    args = parser.parse_args(argv)
    check_process_numbers(parser, args)
    if not 0 <= args.part_id < args.num_parts:
        parser.error(f"-part_id is {args.part_id} and -num_parts {args.num_parts}; parts are counted from 0 to num_parts - 1")

    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    parts = {"num_parts": args.num_parts, "part_id": args.part_id}
    preprocess(
        args.d,
        args.plans_name,
        args.c,
        asked_processes(args.np),
        args.verbose,
        not args.no_pbar,
        start_over=args.start_over,
        scheduler=args.scheduler,
        **parts,
    )


def build_move_plans_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_move_plans_between_datasets``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_move_plans_between_datasets", description="Give a dataset the plans of another one, for fine-tuning."
    )
    parser.add_argument("-s", required=True, type=dataset_id_or_name, metavar="DATASET", help="source dataset, id or name")
    parser.add_argument("-t", required=True, type=dataset_id_or_name, metavar="DATASET", help="target dataset, id or name")
    parser.add_argument("-sp", required=True, metavar="NAME", help="name of the source's plans")
    parser.add_argument("-tp", metavar="NAME", help="name of the plans in the target (default: the same)")
    return parser


@run_command
def move_plans_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_move_plans_between_datasets``."""
    args = build_move_plans_parser().parse_args(argv)

    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets

    move_plans_between_datasets(args.s, args.t, args.sp, args.tp)


def add_fingerprint_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-fpe", default="DatasetFingerprintExtractor", metavar="CLASS", help="fingerprint extractor, a class name (default: %(default)s)"
    )
    parser.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="check every file of the dataset first; recommended once for every new dataset",
    )
    parser.add_argument("--clean", action="store_true", help="compute a fingerprint again that exists already")


def add_planning_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-pl",
        default="ExperimentPlanner",
        metavar="CLASS",
        help="planner, a class name (default: %(default)s); nnUNetPlannerResEncM, L, XL for residual encoders, "
        "nnUNetPlannerResEncXS for a first try without a GPU",
    )
    parser.add_argument("-gpu_memory_target", type=float, metavar="GB", help="memory of a training step (default: the planner's own)")
    parser.add_argument(
        "-preprocessor_name", default="DefaultPreprocessor", metavar="CLASS", help="preprocessor, a class name (default: %(default)s)"
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        nargs="+",
        type=float,
        metavar="MM",
        help="voxel size of 3d_fullres, three numbers in the reader's axis order, which is z y x for NIfTI (default: the planner's choice)",
    )
    parser.add_argument("-overwrite_plans_name", metavar="NAME", help="name of the plans (default: the planner's own)")


def add_preprocessing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        nargs="+",
        default=list(DEFAULT_CONFIGURATIONS),
        metavar="CONFIGURATION",
        help=f"configurations to preprocess (default: {' '.join(DEFAULT_CONFIGURATIONS)}); those that the plans lack are skipped",
    )
    parser.add_argument(
        "-np",
        nargs="+",
        type=number_of_processes,
        metavar="N",
        help=f"processes, one number or one for each configuration ({FITTED})",
    )
    parser.add_argument(
        "--start_over",
        action="store_true",
        help="make every case again, also those that are there and whose files and settings are the same",
    )


def asked_processes(given: int | list[int] | None) -> int | list[int] | None:
    """The user's number of processes, from the option or the environment; None: to be chosen."""
    if given is not None or not os.environ.get("nnUNet_def_n_proc", "").strip():
        return given
    from nnunetv2.configuration import default_num_processes  # read on use: a wrong value is a message, not a traceback

    return default_num_processes


def check_process_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A wrong count is found here, before hours of work."""
    if args.np is not None and len(args.np) not in (1, len(args.c)):
        parser.error(f"argument -np: {len(args.np)} numbers for {len(args.c)} configurations (-c); give one, or one for each")
