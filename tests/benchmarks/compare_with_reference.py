#!/usr/bin/env python3
"""Time every stage against the published nnunetv2 on the same files, in alternating runs, and print ratios.

    python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
    python tests/benchmarks/compare_with_reference.py --reference reference-env/bin/python --raw RAW_FOLDER --dataset 4

Each measurement is a process of its own. A ratio is the median of ours divided by the median of the reference; below 1 is faster or
smaller. Only ratios mean anything beyond the machine they were taken on.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TRAINER = r"""
import json, os, sys, time
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder, configuration = sys.argv[1:3]
plans = json.load(open(os.path.join(folder, 'nnUNetPlans.json')))
plans['continue_training'] = False
torch.manual_seed(1)
torch.set_num_threads(os.cpu_count())
trainer = nnUNetTrainer(plans, configuration, 'all', json.load(open(os.path.join(folder, 'dataset.json'))), torch.device('cpu'))
trainer.initialize()
"""
LOADER = (
    TRAINER
    + r"""
train, val = trainer.get_dataloaders()
for _ in range(8):
    next(train)
start = time.perf_counter()
for _ in range(40):
    next(train)
print('SECONDS', (time.perf_counter() - start) / 40)
os._exit(0)
"""
)
TRAIN_STEP = (
    TRAINER
    + r"""
os.environ['nnUNet_n_proc_DA'] = '0'
train, val = trainer.get_dataloaders()
trainer.set_deep_supervision_enabled(True)
batch = next(train)
trainer.network.train()
trainer.train_step(batch)
start = time.perf_counter()
for _ in range(3):
    trainer.train_step(batch)
print('SECONDS', (time.perf_counter() - start) / 3)
os._exit(0)
"""
)
SAVE_CHECKPOINT = (
    TRAINER
    + r"""
trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
for name in ('plans.json', 'dataset.json'):
    source = 'nnUNetPlans.json' if name == 'plans.json' else name
    json.dump(json.load(open(os.path.join(folder, source))), open(os.path.join(trainer.output_folder_base, name), 'w'))
trainer.save_checkpoint(os.path.join(trainer.output_folder, 'checkpoint_final.pth'))
print('MODEL', trainer.output_folder_base)
"""
)

PREDICTOR = """
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
nnUNetPredictor(device=torch.device('cpu'))
"""
# 120 x 200 x 200 to 150 x 250 x 250 voxels; every label is the region around a point
RESAMPLING = r"""
import sys, time
import numpy as np
from scipy.ndimage import gaussian_filter
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
labels = int(sys.argv[1])
shape, new_shape = (120, 200, 200), (150, 250, 250)
random = np.random.RandomState(0)
if labels:
    nearest, volume = np.full(shape, np.inf, dtype=np.float32), np.zeros(shape, dtype=np.int16)
    for label in range(labels):
        x, y, z = (np.arange(n, dtype=np.float32) - random.uniform(0, n) for n in shape)
        distance = x[:, None, None] ** 2 + y[:, None] ** 2 + z ** 2
        volume[distance < nearest] = label
        np.minimum(nearest, distance, out=nearest)
else:
    volume = gaussian_filter(random.normal(size=shape).astype(np.float32), 2)
settings = {'is_seg': bool(labels), 'order': 1 if labels else 3, 'order_z': 0, 'force_separate_z': None}
for size in (2, 1):  # a small part first: what is loaded or compiled on use
    part = volume[tuple(slice(n // size) for n in shape)][None]
    start = time.perf_counter()
    resample_data_or_seg_to_shape(part, [n // size for n in new_shape], (1.25,) * 3, (1,) * 3, **settings)
print('SECONDS', time.perf_counter() - start)
"""


@dataclass
class Side:
    """One installation, with folders of its own."""

    name: str
    python: Path
    raw: Path
    work: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = dict(
            os.environ,
            nnUNet_raw=str(self.raw),
            nnUNet_preprocessed=str(self.work / self.name / "preprocessed"),
            nnUNet_results=str(self.work / self.name / "results"),
            nnUNet_compile="f",
            nnUNet_n_proc_DA="2",
            PATH=f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
        )
        for key in ("nnUNet_preprocessed", "nnUNet_results"):
            Path(self.environment[key]).mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, dataset: str) -> Path:
        return Path(self.environment[f"nnUNet_{kind}"]) / dataset

    def run(self, *command: str | Path) -> tuple[str, float, float]:
        """Standard output, wall seconds and peak memory in MiB of the largest process."""
        start = time.perf_counter()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [str(c) for c in command], env=self.environment, stdout=output, stderr=subprocess.STDOUT, cwd=self.work
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - start
            output.seek(0)
            text = output.read()
        if process.returncode:
            sys.exit(f"{self.name}: {' '.join(map(str, command))[:200]}\n{text[-3000:]}")
        return text, seconds, _peak_mib(usage)

    def script(self, code: str, *arguments: str | Path) -> tuple[float, float]:
        """The figure that a script prints after SECONDS, and its peak memory in MiB."""
        text, _, peak = self.run(self.python, "-c", code, *arguments)
        return float(text.rsplit("SECONDS", 1)[1].split()[0]), peak


def _peak_mib(usage: resource.struct_rusage) -> float:
    """Linux reports KiB, macOS bytes."""
    return usage.ru_maxrss / (1024 if sys.platform.startswith("linux") else 1024**2)


def compare(name: str, sides: list[Side], repeats: int, measure: Callable[[Side], tuple[float, float]]) -> None:
    """Measure both sides in turn and print the ratios of the medians."""
    figures: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):  # neither side always runs on a warmer machine
            figures[side.name].append(measure(side))
    ours, reference = ([statistics.median(column) for column in zip(*figures[side.name], strict=True)] for side in sides)
    print(f"{name:<34} {ours[0] / reference[0]:8.2f} {ours[1] / reference[1]:12.2f}", flush=True)


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=Path(sys.executable), help="Python with this package")
    parser.add_argument("--reference", type=Path, required=True, help="Python with nnunetv2==2.8.1")
    parser.add_argument("--raw", type=Path, required=True, help="folder with raw datasets")
    parser.add_argument("--dataset", type=int, required=True)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=None, help="folder for all outputs; a temporary one if not given")
    args = parser.parse_args()
    work = (args.work or Path(tempfile.mkdtemp(prefix="nnunet-benchmark-"))).absolute()
    raw = args.raw.absolute()
    dataset = next(p.name for p in sorted(raw.iterdir()) if p.name.startswith(f"Dataset{args.dataset:03d}_"))
    # absolute, not resolved: a virtual environment's python is a link that must stay one
    sides = [Side("ours", args.ours.absolute(), raw, work), Side("reference", args.reference.absolute(), raw, work)]

    images = work / "images"
    images.mkdir(parents=True, exist_ok=True)
    first = sorted((raw / dataset / "imagesTr").iterdir())[0]
    (images / first.name).unlink(missing_ok=True)
    (images / first.name).symlink_to(first)

    print(f"{dataset}, {args.configuration}, {args.repeats} alternating runs, ours / nnunetv2 2.8.1")
    print(f"{'':<34} {'time':>8} {'peak memory':>12}")
    for command in ("nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"):
        compare(f"{command} --help", sides, args.repeats, lambda side, c=command: side.run(side.python.parent / c, "--help")[1:])
    compare("predictor imported", sides, args.repeats, lambda side: side.run(side.python, "-c", PREDICTOR)[1:])
    for name, labels in (("image", 0), ("4 labels", 4), ("60 labels", 60)):
        compare(f"resampling, {name}", sides, args.repeats, lambda side, n=labels: side.script(RESAMPLING, str(n)))
    for side in sides:
        side.run(side.python.parent / "nnUNetv2_plan_and_preprocess", "-d", str(args.dataset), "--no_pp", "-np", "2")

    def preprocess(side: Side) -> tuple[float, float]:
        # we would keep what is there
        shutil.rmtree(side.folder("preprocessed", dataset) / f"nnUNetPlans_{args.configuration}", ignore_errors=True)
        options = ("-d", str(args.dataset), "-c", args.configuration, "-np", "2")
        return side.run(side.python.parent / "nnUNetv2_preprocess", *options)[1:]

    compare("nnUNetv2_preprocess", sides, args.repeats, preprocess)
    arguments = {side.name: (side.folder("preprocessed", dataset), args.configuration) for side in sides}
    compare("loader, seconds per batch", sides, args.repeats, lambda side: side.script(LOADER, *arguments[side.name]))
    compare("training step", sides, args.repeats, lambda side: side.script(TRAIN_STEP, *arguments[side.name]))
    models = {
        side.name: side.run(side.python, "-c", SAVE_CHECKPOINT, *arguments[side.name])[0].rsplit("MODEL", 1)[1].strip() for side in sides
    }

    def predict(side: Side) -> tuple[float, float]:
        output = work / side.name / "predictions"
        options = ("-f", "all", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar")
        program = side.python.parent / "nnUNetv2_predict_from_modelfolder"
        return side.run(program, "-i", images, "-o", output, "-m", models[side.name], *options)[1:]

    compare("predicting one case, whole command", sides, args.repeats, predict)


if __name__ == "__main__":
    main()
