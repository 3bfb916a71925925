"""Entry point of ``nnUNetv2_demo``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.cli.arguments import positive_number, run_command


def build_parser() -> argparse.ArgumentParser:
    """Options of ``nnUNetv2_demo``."""
    parser = argparse.ArgumentParser(
        description="Simulate a small 3D dataset (organ, lesion, three lesion subtypes) and take it through the real commands: verify, "
        "plan, preprocess, train, predict and evaluate. Needs no data and no environment variables; takes a few minutes on two CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("-o", type=Path, default=None, help="empty or new folder for everything the demo makes; a temporary one if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulated data and of the training")
    parser.add_argument("--epochs", type=positive_number, default=20, help="training epochs")
    parser.add_argument("--iterations_per_epoch", type=positive_number, default=80, help="training steps in an epoch")
    parser.add_argument("--num_training", type=positive_number, default=60, help="simulated cases to train on (five folds, so one in five validates)")
    parser.add_argument("--num_test", type=positive_number, default=30, help="simulated cases held out for the scores at the end")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default=None, help="where to train and predict; found out if not given")
    return parser


@run_command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options and run the demo."""
    args = build_parser().parse_args(argv)
    from nnunetv2.demo.walkthrough import DemoSettings, run_demo

    folder = args.o if args.o is not None else Path(tempfile.mkdtemp(prefix="nnUNetv2_demo_"))
    run_demo(
        DemoSettings(
            folder=folder.absolute(),
            seed=args.seed,
            num_training=args.num_training,
            num_test=args.num_test,
            epochs=args.epochs,
            iterations_per_epoch=args.iterations_per_epoch,
            device=args.device,
        )
    )
