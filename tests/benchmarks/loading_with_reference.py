#!/usr/bin/env python3
"""Batches per second of loading and augmentation, against the published nnunetv2 on the same raw images, in alternating runs.

    python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
    python tests/benchmarks/loading_with_reference.py --reference reference-env/bin/python

The images are made up: smooth structures with noise, four labels. Both sides load patches of 64^3 and of 128^3 voxels, two per batch, with two
workers, from copies of the same preprocessed files (ours), through ``nnUNetTrainer.get_dataloaders``. Each measurement is a process of its own.
Wall time needs a machine with nothing else to do; the CPU time of one process (``--workers 0``) is less sensitive to others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from compare_with_reference import TRAINER, Side
from scipy.ndimage import gaussian_filter, zoom

LABELS = {"background": 0, "organ": 1, "duct": 2, "vessel": 3, "lesion": 4}
BATCH_SIZE = 2
LOAD = (
    """
import os, sys, time
import numpy as np
os.environ['nnUNet_n_proc_DA'] = sys.argv[3]
"""
    + TRAINER
    + """
torch.set_num_threads(1)
warm_up, batches = int(sys.argv[4]), int(sys.argv[5])
np.random.seed(int(sys.argv[6]))
torch.manual_seed(int(sys.argv[6]))
trainer.seed = int(sys.argv[6])
train, val = trainer.get_dataloaders()
for _ in range(warm_up):
    next(train)
start, cpu = time.perf_counter(), time.process_time()
for _ in range(batches):
    next(train)
print('WALL', (time.perf_counter() - start) / batches, 'CPU', (time.process_time() - cpu) / batches)
sys.stdout.flush()
os._exit(0)
"""
)


def write_dataset(folder: Path, cases: int, size: int, channels: int) -> None:
    """A raw dataset of made-up images with four labels, one within another."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        coarse = gaussian_filter(rng.normal(size=(size // 8,) * 3), 1.5)
        field = zoom(coarse / coarse.std(), 8, order=1)
        labels = np.digitize(field, [0.7, 1.1, 1.5, 1.9]).astype(np.uint8)
        for channel in range(channels):
            image = (100 * field + 40 * labels * (channel + 1) + 20 * rng.normal(size=field.shape)).astype(np.float32)
            sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"case_{case}.nii.gz"))
    names = {str(channel): f"MR{channel}" for channel in range(channels)}
    description = {"channel_names": names, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def set_patch_size(side: Side, dataset: str, patch: int) -> None:
    """Plans of a shallow network, which costs nothing to build, with cubic patches."""
    file = side.folder("preprocessed", dataset) / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [patch] * 3, "batch_size": BATCH_SIZE}
    architecture = configuration["architecture"]["arch_kwargs"]
    stages = 5
    architecture |= {"n_stages": stages, "features_per_stage": [4] * stages}
    for key in ("kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder"):
        length = stages - (key == "n_conv_per_stage_decoder")
        fill = {"kernel_sizes": [3] * 3, "strides": [2] * 3}.get(key, 1)
        architecture[key] = ([[1] * 3] + [fill] * (length - 1)) if key == "strides" else [fill] * length
    file.write_text(json.dumps(plans))


def measured(side: Side, dataset: str, workers: int, batches: int, seed: int) -> tuple[float, float]:
    """Wall and CPU seconds per batch."""
    arguments = (side.folder("preprocessed", dataset), "3d_fullres", workers, 8 if workers else 2, batches, seed)
    words = side.run(side.python, "-c", LOAD, *(str(a) for a in arguments))[0].split()
    return float(words[words.index("WALL") + 1]), float(words[words.index("CPU") + 1])


def main() -> None:
    """Measure every patch size and number of channels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=Path(sys.executable), help="Python with this package")
    parser.add_argument("--reference", type=Path, required=True, help="Python with nnunetv2==2.8.1")
    parser.add_argument("--patches", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further run has the next one")
    parser.add_argument("--workers", type=int, default=2, help="0: CPU time of one process")
    parser.add_argument("--batches", type=int, default=40, help="per measurement")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--work", type=Path, default=None, help="folder for all files, used again; a temporary one if not given")
    args = parser.parse_args()
    work = (args.work or Path(tempfile.mkdtemp(prefix="nnunet-loading-"))).absolute()
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    sides = [Side("ours", args.ours.absolute(), raw, work), Side("reference", args.reference.absolute(), raw, work)]
    print(f"batch size {BATCH_SIZE}, {args.workers} workers, medians of {args.repeats} alternating runs of {args.batches} batches")
    print(f"{'patch':>6} {'channels':>8} {'ours s/batch':>13} {'reference':>10} {'times faster':>13}")
    for channels in args.channels:
        dataset = f"Dataset{900 + channels}_Loading"
        if not (raw / dataset / "dataset.json").is_file():
            write_dataset(raw / dataset, cases=5, size=args.image_size, channels=channels)
        ours, theirs = (side.folder("preprocessed", dataset) for side in sides)
        if not (ours / "nnUNetPlans_3d_fullres").is_dir():
            command = sides[0].python.parent / "nnUNetv2_plan_and_preprocess"
            sides[0].run(command, "-d", str(900 + channels), "-c", "3d_fullres", "-np", "2")
        if not theirs.is_dir():
            shutil.copytree(ours, theirs)
        for patch in args.patches:
            figures: dict[str, list[float]] = {side.name: [] for side in sides}
            for side in sides:
                set_patch_size(side, dataset, patch)
            for repeat in range(args.repeats):
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    wall, cpu = measured(side, dataset, args.workers, args.batches, args.seed + repeat)
                    figures[side.name].append(wall if args.workers else cpu)
            seconds, reference = (statistics.median(figures[side.name]) for side in sides)
            print(f"{patch:>6} {channels:>8} {seconds:>13.4f} {reference:>10.4f} {reference / seconds:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
