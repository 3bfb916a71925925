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
    )
    parser.add_argument(
        "-o", type=Path, default=None, metavar="FOLDER", help="empty or new folder for all that the demo makes (default: a temporary one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the simulated data and of the training (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive_number, default=20, metavar="N", help="training epochs (default: %(default)s)")
    parser.add_argument(
        "--iterations_per_epoch", type=positive_number, default=80, metavar="N", help="training steps in an epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--num_training",
        type=positive_number,
        default=60,
        metavar="N",
        help="simulated cases to train on; in five folds, so that one in five validates (default: %(default)s)",
    )
    parser.add_argument(
        "--num_test",
        type=positive_number,
        default=30,
        metavar="N",
        help="simulated cases held out for the scores at the end (default: %(default)s)",
    )
    parser.add_argument(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default=None,
        help="where to train and predict (default: cuda where there is one, else cpu)",
    )
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
