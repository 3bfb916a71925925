#!/usr/bin/env python3
"""How time and memory grow with the work, against the published nnunetv2 on the same files, in alternating runs.

python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
python tests/benchmarks/growth_with_reference.py --reference reference-env/bin/python

size      predicting one image of 1, 2, 4 and 8 times as many voxels, 5 classes
classes   predicting one image with 2, 10, 60 and 117 classes
cases     preprocessing 10 and 100 small cases
workers   preprocessing 12 cases with one and two processes
"""

from __future__ import annotations

import argparse
import shutil

from alternating import Comparison, Figures, Side, argument_parser
from prediction_with_reference import compare_predict
from synthetic_dataset import write_dataset

SIZES = {1: (48, 64, 64), 2: (96, 64, 64), 4: (96, 128, 64), 8: (96, 128, 128)}
CLASSES = (2, 10, 60, 117)
CASES = (10, 100)
WORKERS = (1, 2)


def grow_size(comparison: Comparison, args: argparse.Namespace) -> None:
    """Voxels of the image."""
    for factor, shape in SIZES.items():
        compare_predict(comparison, args, 5, "size", shape, str(factor))


def grow_classes(comparison: Comparison, args: argparse.Namespace) -> None:
    """Labels of the model."""
    for classes in CLASSES:
        compare_predict(comparison, args, classes, "classes", SIZES[2], str(classes))


def grow_cases(comparison: Comparison, args: argparse.Namespace) -> None:
    """Cases of the dataset."""
    for cases in CASES:
        preprocess(comparison, "cases", str(cases), 1000 - cases, cases, (48, 64, 64), 2)


def grow_workers(comparison: Comparison, args: argparse.Namespace) -> None:
    """Processes that preprocess."""
    for workers in WORKERS:
        preprocess(comparison, "workers", str(workers), 907, 12, (96, 160, 160), workers)


def preprocess(comparison: Comparison, row: str, tag: str, number: int, cases: int, shape: tuple[int, ...], workers: int) -> None:
    """The command on cases with voxels of many sizes."""
    dataset = f"Dataset{number:03d}_Growth"
    write_dataset(comparison.raw / dataset, cases, shape, spacings=(0.8, 1.25))
    for side in comparison.sides:
        if not (side.folder("preprocessed", dataset) / "nnUNetPlans.json").is_file():
            side.run(side.command("nnUNetv2_plan_and_preprocess"), "-d", number, "--no_pp", "-np", 2)

    def run(side: Side) -> Figures:
        # we would keep what is there
        shutil.rmtree(side.folder("preprocessed", dataset) / "nnUNetPlans_3d_fullres", ignore_errors=True)
        arguments = ("-d", number, "-c", "3d_fullres", "-np", workers)
        return side.run(side.command("nnUNetv2_preprocess"), *arguments, whole_tree=True)[1]

    comparison.measure(row, tag, run, ("time", "tree"))


def main() -> None:
    """Measure how costs grow."""
    measurements = {"size": grow_size, "classes": grow_classes, "cases": grow_cases, "workers": grow_workers}
    parser = argument_parser(__doc__, tuple(measurements))
    parser.set_defaults(repeats=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patch", type=int, default=48)
    args = parser.parse_args()
    comparison = Comparison(args)
    for name in args.only:
        measurements[name](comparison, args)


if __name__ == "__main__":
    main()
