"""Entry point of ``nnUNetv2_benchmark``: what limits a training on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2.cli.arguments import add_verbose, dataset_id_or_name, fold, run_command

DEFAULT_SECONDS = 60.0


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_benchmark``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_benchmark",
        description="Measure reading, augmentation, loading and the network of a training on a preprocessed dataset, and say what limits it.",
    )
    parser.add_argument("-d", type=dataset_id_or_name, required=True, metavar="DATASET", help="dataset, id or name, preprocessed")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: %(default)s)")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration, such as 3d_fullres")
    parser.add_argument("-f", type=fold, default=0, metavar="FOLD", help="fold whose training cases are read (default: %(default)s)")
    parser.add_argument("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer (default: %(default)s)")
    parser.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="where the network runs (default: cuda where there is one, else cpu)",
    )
    parser.add_argument(
        "-seconds",
        type=_seconds,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="time to measure for; starting up comes on top (default: %(default)s)",
    )
    parser.add_argument("-o", type=Path, default=None, metavar="FILE.json", help="also write the numbers to this file")
    add_verbose(parser)
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = build_parser().parse_args(argv)

    import torch

    from nnunetv2.benchmark.bottleneck import find_bottleneck, report_lines
    from nnunetv2.benchmark.training_speed import measure_training_speed
    from nnunetv2.run.run_training import get_trainer_from_args

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    make_trainer = partial(get_trainer_from_args, args.d, args.c, args.f, args.tr, args.p, False, torch.device(device))
    speed = measure_training_speed(make_trainer, args.seconds)
    bottleneck = find_bottleneck(speed)
    print("\n".join(["", *report_lines(speed, bottleneck)]))
    if args.o is not None:
        _write(args.o, speed, bottleneck)


def _write(file: Path, speed: object, bottleneck: object) -> None:
    """The numbers and the verdict."""
    from dataclasses import asdict

    from nnunetv2.utilities.file_io import save_json
    from nnunetv2.utilities.versions import package_version

    file.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: package_version(name) for name in ("nnunetv2", "torch")}
    save_json({**asdict(speed), "epoch_seconds": speed.epoch_seconds, "bottleneck": asdict(bottleneck), "versions": versions}, file)


def _seconds(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} seconds are not possible, give more than 0")
    return value
