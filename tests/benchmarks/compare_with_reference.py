#!/usr/bin/env python3
"""Time start, preprocessing and training against the published nnunetv2 on the same files, in alternating runs, and print ratios.

    python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
    python tests/benchmarks/compare_with_reference.py --reference reference-env/bin/python

Each measurement is a process of its own. A ratio is the median of ours divided by the median of the reference; below 1 is faster or
smaller. Only ratios mean anything beyond the machine they were taken on. The images are made up.

    start        --help of the commands, import of the predictor
    resampling   of an image and of labels, 120 x 200 x 200 to 150 x 250 x 250 voxels
    preprocess   the command, cases of which nearly all are resampled, two processes
    step         training steps of nnU-Net's default U-Net, two patches of 48^3
    heads        the same network with classification heads in place of the reference
    one_case     one image with the whole command, with and without mirroring
"""

from __future__ import annotations

import shutil

from alternating import Comparison, Figures, Side, argument_parser
from synthetic_dataset import plan_unet, write_dataset

MEASUREMENTS = ("start", "resampling", "preprocess", "step", "heads", "one_case")
CONFIGURATION = "3d_fullres"
# glibc gives memory back at once: else its leftovers between arrays, which differ from run to run by more than heads take, are measured too
NO_LEFTOVERS = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# default features and convolutions of nnU-Net; narrow ones for a prediction of many tiles
DEFAULT_UNET = {"features": [32, 64, 128, 256, 320], "convolutions": 2}
NARROW_UNET = {"features": [4, 8, 16, 16, 16], "convolutions": 2}
TRAINER = r"""
import json, os, sys, time
import torch
folder, configuration = sys.argv[1:3]
os.environ.setdefault('nnUNet_n_proc_DA', '0')
def build(name):
    from importlib import import_module
    plans = json.load(open(os.path.join(folder, 'nnUNetPlans.json')))
    plans['continue_training'] = False
    torch.manual_seed(1)
    trainer = getattr(import_module('nnunetv2.training.nnUNetTrainer.' + name), name)(
        plans, configuration, 'all', json.load(open(os.path.join(folder, 'dataset.json'))), torch.device('cpu'))
    trainer.initialize()
    return trainer
def report(**figures):
    print('FIGURES', json.dumps(figures), flush=True)
"""
TRAIN_STEP = (
    TRAINER
    + r"""
os.environ['nnUNet_n_proc_DA'] = '0'  # nothing is loaded beside the steps
import nnunetv2.evaluation.evaluate_predictions  # what the validation at the end of a training loads counts in both
trainer = build(sys.argv[3])
train, val = trainer.get_dataloaders()
trainer.set_deep_supervision_enabled(True)
for _ in range(8):  # until the augmentation has loaded all that it uses, which a single batch may not need
    batch = next(train)
trainer.network.train()
trainer.train_step(batch)
start = time.perf_counter()
for _ in range(4):
    trainer.train_step(batch)
seconds = (time.perf_counter() - start) / 4
start = time.perf_counter()
trainer.save_checkpoint(os.path.join(trainer.output_folder, 'checkpoint_latest.pth'))
saving = (time.perf_counter() - start) / (250 * seconds)
from torch.profiler import profile
with profile() as record:
    trainer.train_step(batch)
spent = {event.key: event.self_cpu_time_total for event in record.key_averages()}
report(time=seconds, save=saving, convolutions=sum(t for name, t in spent.items() if 'convolution' in name) / sum(spent.values()))
os._exit(0)
"""
)
SAVE_CHECKPOINT = (
    TRAINER
    + r"""
trainer = build('nnUNetTrainer')
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
import json, sys, time
import numpy as np
from scipy.ndimage import gaussian_filter
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
labels, with_torch = int(sys.argv[1]), len(sys.argv) > 2
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
settings = {'is_seg': bool(labels), 'force_separate_z': None}
resample = resample_torch_fornnunet
if not with_torch:
    settings |= {'order': 1 if labels else 3, 'order_z': 0}
    resample = resample_data_or_seg_to_shape
for size in (2, 1):  # a small part first: what is loaded or compiled on use
    part = volume[tuple(slice(n // size) for n in shape)][None]
    start = time.perf_counter()
    resample(part, [n // size for n in new_shape], (1.25,) * 3, (1,) * 3, **settings)
print('FIGURES', json.dumps({'time': time.perf_counter() - start}), flush=True)
"""


def compare_start(comparison: Comparison) -> None:
    """What a user waits for before anything happens."""
    for command in ("nnUNetv2_predict", "nnUNetv2_train", "nnUNetv2_plan_and_preprocess"):
        comparison.measure("T1", f"{command} --help", lambda side, c=command: side.run(side.command(c), "--help")[1])
    comparison.measure("T2", "predictor imported", lambda side: side.run(side.python, "-c", PREDICTOR)[1])


def compare_resampling(comparison: Comparison) -> None:
    """One array; also against the reference's own resampling with torch, which is linear."""
    for row, name, labels in (("T3", "image", 0), ("T4", "4 labels", 4), ("T4", "60 labels", 60)):
        comparison.measure(row, f"resampling, {name}", lambda side, n=labels: side.script(RESAMPLING, n), ("time",))

        def with_torch(side: Side, labels: int = labels) -> Figures:
            return side.script(RESAMPLING, labels, *(["torch"] if side is comparison.reference else []))

        comparison.measure(row, f"resampling, {name}, reference with torch", with_torch, ("time",))


def compare_preprocess(comparison: Comparison) -> None:
    """The command on a dataset whose cases have voxels of many sizes."""
    number, dataset = 905, "Dataset905_Preprocessing"
    write_dataset(comparison.raw / dataset, 24, (96, 160, 160), spacings=(0.8, 1.25))
    for side in comparison.sides:
        if not (side.folder("preprocessed", dataset) / "nnUNetPlans.json").is_file():
            side.run(side.command("nnUNetv2_plan_and_preprocess"), "-d", number, "--no_pp", "-np", 2)

    def preprocess(side: Side) -> Figures:
        # we would keep what is there
        shutil.rmtree(side.folder("preprocessed", dataset) / f"nnUNetPlans_{CONFIGURATION}", ignore_errors=True)
        arguments = ("-d", number, "-c", CONFIGURATION, "-np", 2)
        return side.run(side.command("nnUNetv2_preprocess"), *arguments, whole_tree=True)[1]

    comparison.measure("T5", "preprocessing, 24 cases, -np 2", preprocess, ("time", "tree"))


def small_dataset(comparison: Comparison) -> str:
    """Some cases with classes for training steps and one prediction, preprocessed by us for both."""
    number, dataset = 906, "Dataset906_Training"
    write_dataset(comparison.raw / dataset, 6, (80, 112, 112), spacings=(0.95, 1.05), classes=("a", "b"))
    ours, theirs = (side.folder("preprocessed", dataset) for side in comparison.sides)
    if not (ours / f"nnUNetPlans_{CONFIGURATION}").is_dir():
        comparison.ours.run(comparison.ours.command("nnUNetv2_plan_and_preprocess"), "-d", number, "-c", CONFIGURATION, "-np", 2)
    if not theirs.is_dir():
        shutil.copytree(ours, theirs)
    return dataset


def compare_steps(comparison: Comparison) -> None:
    """Forward, loss, backward and optimiser on one batch."""
    dataset = small_dataset(comparison)
    for side in comparison.sides:
        plan_unet(side.folder("preprocessed", dataset), 48, **DEFAULT_UNET)

    compare_trainers(comparison, "T7", "training step, default U-Net, two patches of 48^3", dataset, {})


def compare_trainers(comparison: Comparison, row: str, what: str, dataset: str, sides: dict[str, tuple[Side, str]]) -> None:
    """Time of a training step, and memory in runs of their own.

    Args:
        comparison: Prints and keeps.
        row: Of the table.
        what: Words for the table.
        dataset: Preprocessed.
        sides: By name of a side the installation and the trainer in its place; by default itself and ``nnUNetTrainer``.
    """

    def step(side: Side) -> Figures:
        place, trainer = sides.get(side.name, (side, "nnUNetTrainer"))
        return place.script(TRAIN_STEP, place.folder("preprocessed", dataset), CONFIGURATION, trainer)

    comparison.measure(row, what, step, ("time", "convolutions", "save") if row == "T7" else ("time",))
    if row != "T8":  # only there little memory is to be found beside much
        return
    before = [side.environment for side in comparison.sides]
    for side in comparison.sides:
        side.environment = side.environment | NO_LEFTOVERS
    comparison.measure(row, what, step, ("memory",))
    for side, environment in zip(comparison.sides, before, strict=True):
        side.environment = environment


def compare_heads(comparison: Comparison) -> None:
    """Ours with heads against ours without."""
    dataset = small_dataset(comparison)
    ours = comparison.ours
    plan_unet(ours.folder("preprocessed", dataset), 48, **DEFAULT_UNET)

    sides = {"ours": (ours, "nnUNetTrainerMultitask"), "reference": (ours, "nnUNetTrainer")}
    compare_trainers(comparison, "T8", "training step, ours with heads / ours without", dataset, sides)


def compare_one_case(comparison: Comparison) -> None:
    """One image with the whole command."""
    dataset = small_dataset(comparison)
    images = comparison.work / "one_image"
    images.mkdir(exist_ok=True)
    first = sorted((comparison.raw / dataset / "imagesTr").iterdir())[0]
    if not (images / first.name).exists():
        (images / first.name).symlink_to(first)
    models = {}
    for side in comparison.sides:
        folder = side.folder("preprocessed", dataset)
        plan_unet(folder, 48, **NARROW_UNET)
        models[side.name] = side.run(side.python, "-c", SAVE_CHECKPOINT, folder, CONFIGURATION)[0].rsplit("MODEL", 1)[1].strip()

    for name, options in (("with mirroring", ()), ("without mirroring", ("--disable_tta",))):

        def predict(side: Side, options: tuple[str, ...] = options) -> Figures:
            output = comparison.work / side.name / "predictions"
            arguments = ("-i", images, "-o", output, "-m", models[side.name], "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1, *options)
            return side.run(side.command("nnUNetv2_predict_from_modelfolder"), *arguments, whole_tree=True)[1]

        comparison.measure("T11", f"one image, whole command, 5 classes, {name}", predict, ("time", "tree"))


def main() -> None:
    """Run the chosen measurements."""
    args = argument_parser(__doc__, MEASUREMENTS).parse_args()
    comparison = Comparison(args)
    functions = (compare_start, compare_resampling, compare_preprocess, compare_steps, compare_heads, compare_one_case)
    for name, function in zip(MEASUREMENTS, functions, strict=True):
        if name in args.only:
            function(comparison)


if __name__ == "__main__":
    main()
