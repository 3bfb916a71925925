#!/usr/bin/env python3
"""Time and memory of prediction and export against the published nnunetv2, in alternating runs on the same synthetic inputs.

    python -m venv reference-env && reference-env/bin/pip install nnunetv2==2.8.1
    python tests/benchmarks/prediction_with_reference.py --reference reference-env/bin/python

Every measurement is a process of its own. A ratio is the median of ours divided by the median of the reference; below 1 is faster or
smaller. CPU seconds count all threads and child processes and hardly depend on what else runs; wall seconds need an idle machine.

    accumulate   adding up the tiles of a sliding window, without a network, per tile
    export       logits to labels on a finer grid; also against the reference's own torch resampling; compares the labels
    probabilities  the same with --save_probabilities
    predict      images to files, the whole command, peak memory of all its processes (proportional set size)
    growth       the same: how much more memory --many classes take than --few
    calls        small 2D images through predict_single_npy_array and predict_from_list_of_npy_arrays, without the network's own time
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

MEASUREMENTS = ("accumulate", "export", "probabilities", "predict", "growth", "calls")
SECONDS_BETWEEN_SAMPLES = 0.1

COMMON = r"""
import json, os, resource, sys, time
import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
setting = json.loads(sys.argv[1])
torch.set_num_threads(setting['threads'])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

class Stopwatch:
    def __enter__(self):
        self.memory, self.wall, self.cpu = peak(), time.perf_counter(), self.now()
        return self
    def __exit__(self, *error):
        self.cpu, self.wall, self.memory = self.now() - self.cpu, time.perf_counter() - self.wall, peak() - self.memory
    @staticmethod
    def now():
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system

def report(**figures):
    print('FIGURES', json.dumps(figures), flush=True)

def managers():
    plans, dataset = setting['plans'], setting['dataset']
    manager = PlansManager(plans)
    configuration = manager.get_configuration(next(iter(plans['configurations'])))
    return manager, configuration, manager.get_label_manager(dataset), dataset

def predictor(network, **options):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    result = nnUNetPredictor(device=torch.device('cpu'), allow_tqdm=False, perform_everything_on_device=False, **options)
    manager, configuration, _, dataset = managers()
    axes = tuple(range(len(configuration.patch_size)))
    result.manual_initialization(network, manager, configuration, [network.state_dict()], dataset, 'nnUNetTrainer', axes)
    return result
"""
ACCUMULATE = r"""
class Fixed(torch.nn.Module):
    def __init__(self, heads, patch):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(1, heads, *patch))
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return self.logits.detach().clone()
manager, configuration, labels, dataset = managers()
network = Fixed(labels.num_segmentation_heads, configuration.patch_size)
p = predictor(network, use_mirroring=False)
image = torch.zeros(1, *setting['shape'])
p.predict_sliding_window_return_logits(image)
network.calls = 0
with Stopwatch() as watch:
    p.predict_sliding_window_return_logits(image)
tiles = network.calls
x = torch.zeros(1, 1, *configuration.patch_size)
with Stopwatch() as alone:
    for _ in range(tiles):
        network(x)
report(cpu=(watch.cpu - alone.cpu) / tiles, wall=(watch.wall - alone.wall) / tiles)
"""
EXPORT = r"""
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape as convert
logits = torch.from_numpy(np.load(setting['logits']))
if setting['half']:
    logits = logits.half()
manager, configuration, labels, _ = managers()
shape = setting['original_shape']
def properties(shape):
    box = [[0, n] for n in shape]
    return {'spacing': [1.0, 1.0, 1.0], 'shape_before_cropping': tuple(shape), 'bbox_used_for_cropping': box,
            'shape_after_cropping_and_before_resampling': tuple(shape)}
convert(logits[:, :6, :6, :6].contiguous(), manager, configuration, labels, properties((9, 9, 9)), setting['probabilities'])
with Stopwatch() as watch:
    result = convert(logits, manager, configuration, labels, properties(shape), setting['probabilities'])
np.save(setting['labels'], result[0] if setting['probabilities'] else result)
report(cpu=watch.cpu, wall=watch.wall, memory=watch.memory)
"""
PREDICT = r"""
if __name__ == '__main__':
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    p = nnUNetPredictor(device=torch.device('cpu'), allow_tqdm=False, perform_everything_on_device=False, use_mirroring=False)
    p.initialize_from_trained_model_folder(setting['model'], (0,))
    p.predict_from_files(setting['images'], setting['output'], num_processes_preprocessing=1, num_processes_segmentation_export=1)
"""
CALLS = r"""
if __name__ == '__main__':
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    manager, configuration, labels, dataset = managers()
    network = get_network_from_plans(configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import, 1, labels.num_segmentation_heads, deep_supervision=False).eval()
    p = predictor(network)
    images = [np.random.default_rng(i).normal(size=(1, 1, *setting['shape'])).astype(np.float32) for i in range(setting['number'])]
    properties = [{'spacing': [999.0, 1.0, 1.0]} for _ in images]
    p.predict_single_npy_array(images[0], properties[0])
    with Stopwatch() as single:
        for image, about in zip(images, properties):
            p.predict_single_npy_array(image, about)
    with Stopwatch() as several:
        p.predict_from_list_of_npy_arrays(images, None, properties, None, 1, num_processes_segmentation_export=1)
    x = torch.zeros(1, 1, *configuration.patch_size)
    with torch.inference_mode(), Stopwatch() as alone:
        for _ in range(setting['number'] * 4):  # four mirrored copies of one tile
            network(x)
    n = setting['number']
    report(single_cpu=(single.cpu - alone.cpu) / n, single_wall=(single.wall - alone.wall) / n, list_cpu=(several.cpu - alone.cpu) / n,
           list_wall=(several.wall - alone.wall) / n, network_cpu=alone.cpu / n, single_total_cpu=single.cpu / n)
    os._exit(0)
"""


def plans(heads: int, patch: Sequence[int], spacing: float = 1.0, features: int = 8, torch_resampling: bool = False) -> dict:
    """A plan with one configuration and a small U-Net of two stages."""
    axes = len(patch)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [float(n) for n in patch],
        "spacing": [spacing] * axes,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_torch_fornnunet" if torch_resampling else "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "force_separate_z": None}
        if torch_resampling
        else {**resampling, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [features, 2 * features],
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": [[3] * axes] * 2,
                "strides": [[1] * axes, [2] * axes],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [100, 100, 100],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d" if axes == 2 else "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def dataset(heads: int) -> dict:
    """Labels 0 to ``heads`` - 1."""
    labels = {"background": 0, **{f"label{index}": index for index in range(1, heads)}}
    return {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def write_logits(file: Path, heads: int, shape: Sequence[int]) -> None:
    """Logits of blobs, one for each label, noisy, on a background that wins elsewhere."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=0.5, size=(heads, *shape)).astype(np.float32) - 8
    logits[0] += 10
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    for channel in logits[1:]:
        centre, radius = [random.uniform(0, n) for n in shape], random.uniform(0.1, 0.25) * min(shape)
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
        channel += np.clip(1.5 * (radius - distance) + 10, -10, 25).astype(np.float32)
    np.save(file, logits)


def write_noise(file: Path, heads: int, shape: Sequence[int]) -> None:
    """The worst case: no channel can be left out."""
    np.save(file, np.random.default_rng(0).normal(size=(heads, *shape)).astype(np.float32))


def write_model(folder: Path, heads: int, patch: Sequence[int]) -> Path:
    """A model folder with random weights that both sides read."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    content, labels = plans(heads, patch, spacing=1.5), dataset(heads)
    arguments = dict(content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"])
    arguments |= {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    torch.manual_seed(0)
    network = PlainConvUNet(input_channels=1, num_classes=heads, deep_supervision=False, **arguments)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"plans": content, "configuration": "3d_fullres", "fold": 0, "dataset_json": labels},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    (folder / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(labels))
    return folder


def write_image(folder: Path, shape: Sequence[int]) -> Path:
    """One image of 1 mm voxels."""
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=tuple(shape)).astype(np.float32))
    sitk.WriteImage(image, str(folder / "case_0000.nii.gz"))
    return folder


def run(python: Path, code: str, setting: dict, work: Path) -> dict[str, float]:
    """What a script reports, its CPU seconds with all children, and the peak memory of its tree of processes in MiB."""
    environment = dict(os.environ, nnUNet_raw=str(work), nnUNet_preprocessed=str(work), nnUNet_results=str(work), nnUNet_compile="f")
    environment["OMP_NUM_THREADS"] = str(setting["threads"])
    script = work / "script.py"  # a file, because spawned workers import it again
    script.write_text(COMMON + code)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(python), str(script), json.dumps(setting)], env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=work
        )
        peaks = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        watcher.join()
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{python}:\n{text[-3000:]}")
    figures = {"total_cpu": usage.ru_utime + usage.ru_stime, "total_wall": seconds, "tree": peaks[0]}
    return figures | (json.loads(text.rsplit("FIGURES", 1)[1].splitlines()[0]) if "FIGURES" in text else {})


def _watch(process: subprocess.Popen, peaks: list[float]) -> None:
    """Keep the largest sum of proportional set sizes (Linux) while the process runs."""
    while process.returncode is None:
        peaks[0] = max(peaks[0], sum(_proportional_set_size(number) for number in _tree(process.pid)))
        time.sleep(SECONDS_BETWEEN_SAMPLES)


def _tree(number: int) -> list[int]:
    """A process and its descendants."""
    numbers = [number]
    for parent in numbers:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                numbers += [int(child) for child in file.read_text().split()]
            except OSError:  # ended meanwhile
                continue
    return numbers


def _proportional_set_size(number: int) -> float:
    """MiB of a process, shared pages counted in part; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class Comparison:
    """Measures both sides in turn and prints ratios of medians."""

    def __init__(self, ours: Path, reference: Path, repeats: int, work: Path, threads: int) -> None:
        self._sides = {"ours": ours, "reference": reference}
        self._repeats = repeats
        self._work = work
        self._threads = threads
        print(f"{repeats} alternating runs, {threads} threads; ours / nnunetv2 2.8.1, medians", flush=True)

    def run(self, name: str, code: str, setting: Callable[[str], dict], keys: Sequence[str]) -> dict[str, dict[str, float]]:
        """Print the ratio of every key, with both figures; returns the medians by side."""
        found: dict[str, list[dict[str, float]]] = {side: [] for side in self._sides}
        for repeat in range(self._repeats):
            for side in list(self._sides)[:: 1 if repeat % 2 == 0 else -1]:  # neither side always runs on a warmer machine
                found[side].append(run(self._sides[side], code, setting(side) | {"threads": self._threads}, self._work))
        medians = {side: {key: statistics.median(r[key] for r in runs) for key in keys} for side, runs in found.items()}
        for key in keys:
            self.show(f"{name}, {key}", medians["ours"][key], medians["reference"][key])
        return medians

    @staticmethod
    def show(name: str, ours: float, reference: float) -> None:
        """One line of the table."""
        ratio = f"{ours / reference:8.3f}" if reference else "       -"
        print(f"{name:<58} {ratio}   {ours:10.4g} / {reference:.4g}", flush=True)


def compare_export(comparison: Comparison, args: argparse.Namespace, work: Path, probabilities: bool) -> None:
    """Labels, or labels and probabilities, of blobs and of noise, on a grid 1.5 times as fine."""
    original = [round(1.5 * n) for n in args.shape]
    for kind, write in (("blobs", write_logits), ("noise", write_noise))[: 1 if probabilities else 2]:
        file = work / f"{kind}.npy"
        write(file, args.classes, args.shape)

        for torch_resampling in (False, True)[: 1 if probabilities else 2]:

            def setting(side: str, file: Path = file, torch_resampling: bool = torch_resampling) -> dict:
                # What each side's own predictor makes: the reference adds up in float16. Its torch resampling is asked of the reference alone.
                content = plans(args.classes, [32] * 3, 1.5, torch_resampling=torch_resampling and side == "reference")
                return {
                    "plans": content,
                    "dataset": dataset(args.classes),
                    "logits": str(file),
                    "half": side == "reference",
                    "original_shape": original,
                    "labels": str(work / f"labels_{side}.npy"),
                    "probabilities": probabilities,
                }

            what = f"export{' with probabilities' if probabilities else ''}, {kind}{', reference with torch' if torch_resampling else ''}"
            comparison.run(what, EXPORT, setting, ("cpu", "wall", "memory"))
            labels = [np.load(work / f"labels_{side}.npy") for side in ("ours", "reference")]
            print(f"{what}, labels that differ: {(labels[0] != labels[1]).mean():.2e}", flush=True)


def compare_predict(comparison: Comparison, args: argparse.Namespace, work: Path, heads: int, name: str) -> dict[str, dict[str, float]]:
    """Peak memory and time of predicting one image."""
    model = write_model(work / f"model_{heads}_{name}", heads, [args.patch] * 3)
    images = work / "images"
    if not images.is_dir():
        write_image(images, [round(1.5 * n) for n in args.shape])

    def setting(side: str) -> dict:
        return {"model": str(model), "images": str(images), "output": str(work / f"predicted_{heads}_{side}")}

    return comparison.run(f"{name}, {heads} classes", PREDICT, setting, ("total_cpu", "total_wall", "tree"))


def main() -> None:
    """Run the chosen measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=Path(sys.executable), help="Python with this package")
    parser.add_argument("--reference", type=Path, required=True, help="Python with nnunetv2==2.8.1")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--classes", type=int, default=61)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 128, 128), help="voxels on the network's grid")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--images", type=int, default=100, help="number of small 2D images")
    parser.add_argument("--image_size", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nnunet-benchmark-") as folder:
        work = Path(folder)
        # absolute, not resolved: a virtual environment's python is a link that must stay one
        comparison = Comparison(args.ours.absolute(), args.reference.absolute(), args.repeats, work, args.threads)
        print(f"{args.classes} classes, network's grid {args.shape}, tiles {args.patch}^3", flush=True)
        if "accumulate" in args.only:
            content = {"plans": plans(args.classes, [args.patch] * 3), "dataset": dataset(args.classes), "shape": list(args.shape)}
            comparison.run("accumulate, per tile", ACCUMULATE, lambda side: content, ("cpu", "wall"))
        for name in ("export", "probabilities"):
            if name in args.only:
                compare_export(comparison, args, work, name == "probabilities")
        if "predict" in args.only:
            compare_predict(comparison, args, work, args.classes, "predict")
        if "growth" in args.only:
            few, many = (compare_predict(comparison, args, work, heads, "growth") for heads in (args.few, args.many))
            growths = [many[side]["tree"] - few[side]["tree"] for side in ("ours", "reference")]
            comparison.show(f"growth of memory, {args.few} to {args.many} classes", *growths)
        if "calls" in args.only:
            content = {"plans": plans(3, [args.image_size] * 2, features=4), "dataset": dataset(3), "number": args.images}
            content["shape"] = [args.image_size] * 2
            keys = ("single_cpu", "single_wall", "list_cpu", "list_wall", "network_cpu", "single_total_cpu")
            comparison.run(f"calls, {args.images} images of {args.image_size}^2", CALLS, lambda side: content, keys)


if __name__ == "__main__":
    main()
