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
    growth       the same with --few and with --many classes: how much more memory these take
    calls        small 2D images through predict_single_npy_array and predict_from_list_of_npy_arrays, without and with the time in the network
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from alternating import Comparison, Figures, Side, argument_parser

MEASUREMENTS = ("accumulate", "export", "probabilities", "predict", "growth", "calls")

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
logits = network.logits.detach()[0]
with Stopwatch() as copying:  # what no way of adding up can do without: each value into fresh memory, each sum changed once
    sums = torch.from_numpy(np.zeros((len(logits), *setting['shape']), dtype=np.float32))
    for slicer in p._internal_get_sliding_window_slicers(tuple(setting['shape'])):
        sums[slicer].copy_(logits)
    sums.neg_()
spent = watch.wall - alone.wall
report(cpu=(watch.cpu - alone.cpu) / tiles, time=spent / tiles, copying=copying.wall / spent)
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
report(cpu=watch.cpu, time=watch.wall, memory=watch.memory)
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
    in_network = 0.0
    def count(seconds):
        global in_network
        in_network += seconds
    network.register_forward_pre_hook(lambda *_: count(-time.perf_counter()))
    network.register_forward_hook(lambda *_: count(time.perf_counter()))
    images = [np.random.default_rng(i).normal(size=(1, 1, *setting['shape'])).astype(np.float32) for i in range(setting['number'])]
    properties = [{'spacing': [999.0, 1.0, 1.0]} for _ in images]
    p.predict_single_npy_array(images[0], properties[0])
    in_network = 0.0
    with Stopwatch() as watch:
        for image, about in zip(images, properties):
            p.predict_single_npy_array(image, about)
    figures = {'single_time': watch.wall - in_network, 'single_with_network': watch.wall}
    in_network = 0.0
    with Stopwatch() as watch:
        p.predict_from_list_of_npy_arrays(images, None, properties, None, 1, num_processes_segmentation_export=1)
    figures |= {'list_time': watch.wall - in_network, 'list_with_network': watch.wall}
    report(**{name: seconds / len(images) for name, seconds in figures.items()})
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


def compare_accumulate(comparison: Comparison, args: argparse.Namespace) -> None:
    """Tiles added up."""
    content = {"plans": plans(args.classes, [args.patch] * 3), "dataset": dataset(args.classes), "shape": list(args.shape)}
    what = f"adding up a tile of {args.patch}^3, {args.classes} classes"
    comparison.measure("T9", what, lambda side: run(side, ACCUMULATE, content, args.threads), ("time", "cpu", "copying"))


def run(side: Side, code: str, setting: dict, threads: int, *, whole_tree: bool = False) -> Figures:
    """One script with its setting."""
    return side.script(COMMON + code, json.dumps(setting | {"threads": threads}), threads=threads, whole_tree=whole_tree)


def compare_export(comparison: Comparison, args: argparse.Namespace, probabilities: bool) -> None:
    """Labels, or labels and probabilities, of blobs and of noise, on a grid 1.5 times as fine."""
    original = [round(1.5 * n) for n in args.shape]
    for kind, write in (("blobs", write_logits), ("noise", write_noise))[: 1 if probabilities else 2]:
        file = comparison.work / f"{kind}.npy"
        write(file, args.classes, args.shape)
        for torch_resampling in (False, True)[: 2 if kind == "blobs" and not probabilities else 1]:

            def export(side: Side, file: Path = file, torch_resampling: bool = torch_resampling) -> Figures:
                # What each side's own predictor makes: the reference adds up in float16. Its torch resampling is asked of the reference alone.
                is_reference = side is comparison.reference
                setting = {
                    "plans": plans(args.classes, [32] * 3, 1.5, torch_resampling=torch_resampling and is_reference),
                    "dataset": dataset(args.classes),
                    "logits": str(file),
                    "half": is_reference,
                    "original_shape": original,
                    "labels": str(comparison.work / f"labels_{side.name}.npy"),
                    "probabilities": probabilities,
                }
                return run(side, EXPORT, setting, args.threads)

            kinds = f"{kind}{' with probabilities' if probabilities else ''}{', reference with torch' if torch_resampling else ''}"
            what = f"export, {args.classes} classes, {kinds}"
            comparison.measure("T10", what, export, ("time", "cpu", "memory"))
            labels = [np.load(comparison.work / f"labels_{side.name}.npy") for side in comparison.sides]
            print(f"{what}, labels that differ: {(labels[0] != labels[1]).mean():.2e}", flush=True)


def compare_predict(
    comparison: Comparison, args: argparse.Namespace, heads: int, row: str, shape: Sequence[int], tag: str = ""
) -> dict[str, Figures]:
    """Peak memory and time of predicting one image whose grid is 1.5 times as fine as the network's."""
    model = comparison.work / f"model_{heads}"
    shutil.rmtree(model, ignore_errors=True)
    write_model(model, heads, [args.patch] * 3)
    images = comparison.work / ("images_" + "_".join(map(str, shape)))
    if not images.is_dir():
        write_image(images, [round(1.5 * n) for n in shape])

    def predict(side: Side) -> Figures:
        output = comparison.work / f"predicted_{heads}_{side.name}"
        shutil.rmtree(output, ignore_errors=True)
        setting = {"model": str(model), "images": str(images), "output": str(output)}
        return run(side, PREDICT, setting, args.threads, whole_tree=True)

    what = tag or f"one image to its file, {heads} classes, no mirroring"
    return comparison.measure(row, what, predict, ("time", "cpu", "tree"))


def compare_growth(comparison: Comparison, args: argparse.Namespace) -> None:
    """How much more memory many classes take."""
    shape = [2 * args.shape[0], args.shape[1] // 2, args.shape[2] // 2]  # deep: most of a body is
    few, many = (compare_predict(comparison, args, heads, "T12", shape) for heads in (args.few, args.many))
    growth = {name: [many[name]["tree"] - few[name]["tree"]] for name in many}
    comparison.keep("T12", f"more memory with {args.many} than with {args.few} classes", "tree", growth)


def compare_calls(comparison: Comparison, args: argparse.Namespace) -> None:
    """Small images, one call each and as a list, without and with the time of the network."""
    content = {"plans": plans(3, [args.image_size] * 2, features=4), "dataset": dataset(3), "number": args.images}
    content["shape"] = [args.image_size] * 2
    figures = [f"{name}_{key}" for name in ("single", "list") for key in ("time", "with_network")]
    what = f"{args.images} images of {args.image_size}^2"
    comparison.measure("T13", what, lambda side: run(side, CALLS, content, args.threads), figures)


def main() -> None:
    """Run the chosen measurements."""
    parser = argument_parser(__doc__, MEASUREMENTS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--classes", type=int, default=61)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 128, 128), help="voxels on the network's grid")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--images", type=int, default=100, help="number of small 2D images")
    parser.add_argument("--image_size", type=int, default=32)
    args = parser.parse_args()
    comparison = Comparison(args)
    if "accumulate" in args.only:
        compare_accumulate(comparison, args)
    if "export" in args.only:
        compare_export(comparison, args, probabilities=False)
    if "probabilities" in args.only:
        compare_export(comparison, args, probabilities=True)
    if "predict" in args.only:
        compare_predict(comparison, args, args.classes, "T11", args.shape)
    if "growth" in args.only:
        compare_growth(comparison, args)
    if "calls" in args.only:
        compare_calls(comparison, args)


if __name__ == "__main__":
    main()
