"""``nnUNetv2_plan_and_preprocess``, its three parts (fingerprint, plans, preprocessing), and moving plans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2.cli.arguments import (
    add_dataset_ids,
    add_no_progress_bar,
    add_processes,
    add_verbose,
    dataset_id_or_name,
    number_of_processes,
    run_command,
)

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
FINGERPRINT_PROCESSES = 8


def build_plan_and_preprocess_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_plan_and_preprocess``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_plan_and_preprocess", description="Make fingerprint, plans and preprocessed cases of datasets, in one go."
    )
    add_dataset_ids(parser)
    add_fingerprint_options(parser)
    parser.add_argument(
        "-npfp",
        type=number_of_processes,
        default=FINGERPRINT_PROCESSES,
        metavar="N",
        help="worker processes for the fingerprint (default: %(default)s)",
    )
    parser.add_argument("--no_pp", action="store_true", help="stop after planning, do not preprocess")
    add_planning_options(parser)
    add_preprocessing_options(parser)
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
        default_processes,
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    print("Fingerprint extraction...")
    extract_fingerprints(args.d, args.fpe, args.npfp, args.verify_dataset_integrity, args.clean, args.verbose, not args.no_pbar)
    print("Experiment planning...")
    plans_name = plan_experiments(
        args.d, args.pl, args.gpu_memory_target, args.preprocessor_name, args.overwrite_target_spacing, args.overwrite_plans_name
    )
    if not args.no_pp:
        print("Preprocessing...")
        processes = default_processes(args.c) if args.np is None else args.np
        preprocess(args.d, plans_name, args.c, processes, args.verbose, not args.no_pbar, resume=args.resume)


def build_extract_fingerprint_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_extract_fingerprint``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_extract_fingerprint", description="Collect sizes, spacings and intensities of datasets in dataset_fingerprint.json."
    )
    add_dataset_ids(parser)
    add_fingerprint_options(parser)
    add_processes(parser)
    add_verbose(parser)
    add_no_progress_bar(parser)
    return parser


@run_command
def extract_fingerprint_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_extract_fingerprint``."""
    args = build_extract_fingerprint_parser().parse_args(argv)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints

    extract_fingerprints(args.d, args.fpe, args.np, args.verify_dataset_integrity, args.clean, args.verbose, not args.no_pbar)


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
    add_verbose(parser)
    add_no_progress_bar(parser)
    return parser


@run_command
def preprocess_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_preprocess``."""
    parser = build_preprocess_parser()
    args = parser.parse_args(argv)
    check_process_numbers(parser, args)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import default_processes, preprocess

    processes = default_processes(args.c) if args.np is None else args.np
    preprocess(args.d, args.plans_name, args.c, processes, args.verbose, not args.no_pbar, resume=args.resume)


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
        help="worker processes, one number or one for each configuration (default: 2d 8, 3d_fullres 4, 3d_lowres 8, others 4)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the preprocessed cases that an earlier run with the same settings has finished and whose files are unchanged",
    )


def check_process_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A wrong count is found here, before hours of work."""
    if args.np is not None and len(args.np) not in (1, len(args.c)):
        parser.error(f"argument -np: {len(args.np)} numbers for {len(args.c)} configurations (-c); give one, or one for each")
