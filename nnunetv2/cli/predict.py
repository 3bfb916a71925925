"""``nnUNetv2_predict`` and ``nnUNetv2_predict_from_modelfolder``: images to segmentations and classes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunetv2.cli.arguments import add_scheduler, add_verbose, dataset_id_or_name, fold, number_of_processes, run_command

if TYPE_CHECKING:
    import torch

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

DEFAULT_FOLDS = (0, 1, 2, 3, 4)
FITTED = "up to 3, as CPUs and memory carry"
AGGREGATIONS = ("evidence", "mean", "max", "top3")
HEAD_SETS = ("refit", "joint")
CITATION = (
    "If you use nnU-Net in your research, please cite: Isensee, F., Jaeger, P. F., Kohl, S. A., Petersen, J., & Maier-Hein, K. H. (2021). "
    "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Nature Methods, 18(2), 203-211."
)


def build_predict_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_predict``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_predict", description="Predict images with a trained model.", epilog=CITATION, allow_abbrev=True
    )
    parser.add_argument("-d", type=dataset_id_or_name, required=True, metavar="DATASET", help="dataset of the model, id or name")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration of the model, such as 3d_fullres")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer of the model (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the model (default: %(default)s)")
    _add_options(parser)
    return parser


@run_command
def predict_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_predict``."""
    parser = build_predict_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)

    from nnunetv2.utilities.file_path_utilities import get_output_folder

    _predict(get_output_folder(args.d, args.tr, args.p, args.c), args)


def build_predict_modelfolder_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_predict_from_modelfolder``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_predict_from_modelfolder",
        description="Predict images with the model in a folder.",
        epilog=CITATION,
        allow_abbrev=True,
    )
    parser.add_argument("-m", required=True, metavar="FOLDER", help="folder of the model, with fold_0, ..., dataset.json and plans.json")
    _add_options(parser)
    return parser


@run_command
def predict_modelfolder_entry(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``nnUNetv2_predict_from_modelfolder``."""
    parser = build_predict_modelfolder_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    _predict(args.m, args)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """What both commands share."""
    parser.add_argument("-i", required=True, metavar="FOLDER", help="input folder; files are named CASE_0000.ending, one per channel")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="output folder, created if it does not exist")
    parser.add_argument("-f", nargs="+", type=fold, default=DEFAULT_FOLDS, metavar="FOLD", help="folds to average (default: 0 1 2 3 4)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint of each fold (default: %(default)s)")
    parser.add_argument(
        "-step_size", type=_step_size, default=0.5, metavar="SHARE", help="distance of tiles as a share of the tile (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: up to 8 times faster, slightly less accurate")
    parser.add_argument(
        "--save_probabilities", "--save", action="store_true", help="also write the probabilities of the segmentation, for ensembles"
    )
    parser.add_argument("--continue_prediction", "--c", action="store_true", help="keep complete results of an earlier run")
    parser.add_argument(
        "-npp",
        type=number_of_processes,
        default=_processes("nnUNet_npp"),
        metavar="N",
        help=f"worker processes that read and preprocess images; 0: none (default: {FITTED})",
    )
    parser.add_argument(
        "-nps",
        type=number_of_processes,
        default=_processes("nnUNet_nps"),
        metavar="N",
        help=f"threads that resample and write results; 0: none (default: {FITTED})",
    )
    parser.add_argument(
        "-prev_stage_predictions",
        default=None,
        metavar="FOLDER",
        help="segmentations of the first stage, which the second stage of a cascade needs",
    )
    parser.add_argument(
        "-num_parts", type=int, default=1, metavar="N", help="spread the cases over N runs, for example on N GPUs (default: %(default)s)"
    )
    parser.add_argument("-part_id", type=int, default=0, metavar="N", help="which of these runs this is, from 0 (default: %(default)s)")
    parser.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default=None, help="where to compute (default: cuda where there is one, else cpu)"
    )
    parser.add_argument("--disable_progress_bar", action="store_true", help="draw no progress bars, for log files")
    parser.add_argument("--not_on_device", action="store_true", help="collect results in the CPU's memory: slower, needs less GPU memory")
    parser.add_argument(
        "--save_cls",
        nargs="?",
        const=True,
        default=None,
        metavar="FILE",
        help="write classes: classification.csv in the output folder, or FILE",
    )
    parser.add_argument("--cls_only", action="store_true", help="classes alone, without segmentations; needs --save_cls")
    parser.add_argument(
        "--cls_heads",
        choices=HEAD_SETS,
        default=None,
        help="heads trained after the segmentation, or together with it (default: refit, where there are any)",
    )
    parser.add_argument(
        "--cls_aggregation", choices=AGGREGATIONS, default=None, help="how the tiles of an image vote for its class (default: evidence)"
    )
    parser.add_argument(
        "--save_saliency",
        action="store_true",
        help="write a map of where each class was seen, a NIfTI file per case and task in the subfolder saliency; implies --save_cls",
    )
    parser.add_argument("--cls_no_calibration", action="store_true", help="raw class probabilities, though the model has a calibration")
    add_scheduler(parser)
    add_verbose(parser)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What contradicts itself; ends with a message like a misspelled option."""
    if args.num_parts < 1 or not 0 <= args.part_id < args.num_parts:
        parser.error(f"-part_id is {args.part_id} and -num_parts {args.num_parts}; parts are counted from 0 to num_parts - 1")
    if args.save_saliency and args.save_cls is None:
        args.save_cls = True  # a map explains a class, which stands in the table
    if args.save_cls is None:
        given = [f"--{name}" for name in ("cls_only", "cls_heads", "cls_aggregation", "cls_no_calibration") if getattr(args, name)]
        if given:
            parser.error(f"{', '.join(given)} can be used with --save_cls only")
    if args.cls_only and args.save_probabilities:
        parser.error("--save_probabilities needs the segmentations that --cls_only leaves out")
    if args.cls_only and args.cls_aggregation == "evidence":
        parser.error("--cls_aggregation evidence needs the segmentations that --cls_only leaves out; use mean, max or top3")


def _predict(model_folder: str, args: argparse.Namespace) -> None:
    """Check folders and files, then load the model and predict."""
    from nnunetv2.inference.data_iterators import case_identifier
    from nnunetv2.inference.prediction_files import check_different_folders, existing_checkpoints, find_input_cases
    from nnunetv2.utilities.file_io import load_json

    # Everything that can be known now, before torch is imported and anything is loaded.
    existing_checkpoints(model_folder, args.f, args.chk)
    check_different_folders(args.i, args.o)
    file_ending = load_json(os.path.join(model_folder, "dataset.json"))["file_ending"]
    cases = find_input_cases(args.i, file_ending)[args.part_id :: args.num_parts]

    from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=args.step_size,
        use_gaussian=True,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=not args.not_on_device,
        # with a cluster this process only loads the model, to know its classes
        device=_device(args.device if args.scheduler == "local" else "cpu"),
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
    )
    predictor.initialize_from_trained_model_folder(model_folder, args.f, args.chk, classification_heads=args.cls_heads)
    options = None
    if args.save_cls is not None:
        options = ClassificationOptions(
            aggregation=args.cls_aggregation or "evidence",
            only=args.cls_only,
            calibrated=not args.cls_no_calibration,
            saliency=args.save_saliency,
        )
        predictor.check_classification_possible(options)
    if args.scheduler == "local":
        _fit_processes(predictor, {case_identifier(files, file_ending): files for files in cases}, args)
    predictor.predict_from_files(
        args.i,
        args.o,
        save_probabilities=args.save_probabilities,
        overwrite=not args.continue_prediction,
        num_processes_preprocessing=args.npp or 0,
        num_processes_segmentation_export=args.nps or 0,
        folder_with_segs_from_prev_stage=args.prev_stage_predictions,
        num_parts=args.num_parts,
        part_id=args.part_id,
        save_classification=False if args.save_cls is None else args.save_cls,
        classification_options=options,
        scheduler=args.scheduler,
        device_of_workers=args.device,
    )
    print(f"Predictions are in {args.o}")


def _fit_processes(predictor: nnUNetPredictor, images: dict[str, list[str]], args: argparse.Namespace) -> None:
    """Numbers of processes where the user gave none; says what was chosen and why."""
    from nnunetv2.inference.worker_plan import largest_need, plan_prediction_workers

    if not images:  # a part without cases
        return
    managers = (predictor.plans_manager, predictor.configuration_manager)
    way = {
        "folds": len(predictor.list_of_parameters),
        "in_slabs": predictor.works_in_slabs(args.save_probabilities),
        "with_maps": predictor.measures_structures(),
    }
    heads = predictor.label_manager.num_segmentation_heads
    need = largest_need(images, *managers, heads, args.save_probabilities, **way)
    workers = plan_prediction_workers(need, len(images), args.npp, args.nps)
    args.npp, args.nps = workers.reading, workers.writing
    if workers.message:
        print(workers.message)


def _device(name: str | None) -> torch.device:
    """The device asked for, or the best there is."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu":
            print("No CUDA device found; predicting on the CPU.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise RuntimeError(f"This machine has no {name} device that torch can use. Predict with -device cpu.")
    if name == "cuda":
        return torch.device("cuda", 0)
    return torch.device(name)


def _step_size(text: str) -> float:
    """A fraction larger than 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range; the step size is larger than 0 and at most 1")
    return value


def _processes(variable: str) -> int | None:
    """Number of processes from the environment; what is no number counts as unset."""
    try:
        return max(0, int(os.environ.get(variable, "")))
    except ValueError:
        return None
