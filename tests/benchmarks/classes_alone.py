#!/usr/bin/env python3
"""Time prediction of classes alone (``--cls_only``) against both, on the demo's network and images, in alternating runs.

    python tests/benchmarks/classes_alone.py

Weights are random: they cost the same. A ratio is the median time of classes alone divided by that of segmentations and classes, from image
files to written results, and for the network alone. Only ratios mean anything beyond the machine they were taken on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DATASET, CONFIGURATION = "Dataset001_Phantom", "3d_fullres"
PLANNER, PLANS = "nnUNetPlannerResEncXS", "nnUNetResEncUNetXSPlans"  # those of the demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=4, help="images of the demo (default: %(default)s)")
    parser.add_argument("-device", default="cpu", help="cpu or cuda (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(folder, name))
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    import torch

    from nnunetv2.demo.phantom import write_phantom_dataset
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor

    raw = folder / "raw" / DATASET
    write_phantom_dataset(raw, num_training=6, num_test=args.cases, seed=0)
    extract_fingerprints([DATASET], num_processes=1, verbose=False, show_progress_bar=False)
    plan_experiments([DATASET], PLANNER)
    predictor = nnUNetPredictor(device=torch.device(args.device), allow_tqdm=False)
    predictor.manual_initialization(*model(folder / "preprocessed" / DATASET))
    shape = predictor.configuration_manager.patch_size
    image = torch.randn(1, *shape)

    def files(only: bool) -> None:
        options = ClassificationOptions(aggregation="mean", only=only)
        output = str(folder / f"out_{only}")
        predictor.predict_from_files_sequential(str(raw / "imagesTs"), output, save_classification=True, classification_options=options)

    def network(only: bool) -> None:
        predictor.predict_logits_and_classes_from_preprocessed_data(image, ClassificationOptions(aggregation="mean", only=only))

    report(f"{args.cases} images of the demo, from files to files", files, args.repeats)
    report(f"the network on one tile of {tuple(shape)} voxels and its mirrored copies", network, args.repeats)


def model(preprocessed: Path) -> tuple:
    """The arguments of ``nnUNetPredictor.manual_initialization``: the planned network with heads."""
    from nnunetv2.inference.trained_model import build_network
    from nnunetv2.network_architecture.classification_heads import build_heads, encoder_channels
    from nnunetv2.network_architecture.joint_network import with_classification_heads
    from nnunetv2.utilities.file_io import load_json
    from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset_json, plans = load_json(preprocessed / "dataset.json"), PlansManager(str(preprocessed / f"{PLANS}.json"))
    configuration = plans.get_configuration(CONFIGURATION)
    network = build_network("nnUNetTrainerMultitask", plans, configuration, dataset_json)
    heads = build_heads(classification_tasks(dataset_json), encoder_channels(network), labels=dataset_json["labels"])
    joint = with_classification_heads(network, heads).eval()
    return joint, plans, configuration, None, dataset_json, "nnUNetTrainerMultitask", (0, 1, 2)


def report(title: str, predict: Callable[[bool], None], repeats: int) -> None:
    """Median seconds of both ways and the quotient of each pair of runs."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for only in seconds:
        predict(only)  # not counted: first calls set things up
    for _ in range(repeats):
        for only, times in seconds.items():
            start = time.perf_counter()
            predict(only)
            times.append(time.perf_counter() - start)
    pairs = [alone / both for alone, both in zip(seconds[True], seconds[False], strict=True)]
    alone, both = (statistics.median(seconds[only]) for only in (True, False))
    print(f"{title}: classes alone {alone:.2f} s, both {both:.2f} s, ratio {alone / both:.2f} ({min(pairs):.2f} to {max(pairs):.2f})")


if __name__ == "__main__":
    main()
