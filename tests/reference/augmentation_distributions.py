"""Whether our augmentation and that of the published nnunetv2 2.8.1 draw from the same distributions, transform by transform.

    python tests/reference/augmentation_distributions.py --reference REFERENCE/bin/python

Both sides make ``nnUNetTrainer.get_training_transforms`` for a 3D, an anisotropic and a 2D configuration, apply each transform and the whole
pipeline many times to the same image, with random numbers of their own, and tell figures of every result: where corners come from, grey values,
gradients, label counts. Each figure's two samples are compared by a Kolmogorov-Smirnov test; the level is divided by the number of tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import ks_2samp

LEVEL = 0.01  # for all tests together
ROUNDING = 1e-4  # a figure that varies less, of its size, is a constant (as the deviation after gamma): what is left is rounding

SAMPLER = r"""
import json, sys
import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
count, seed, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
CONFIGURATIONS = {
    '3d': ((12, 16, 14), (22, 26, 24), (-0.52, 0.52), (0, 1, 2), False),
    'anisotropic': ((4, 20, 18), (4, 30, 30), (-3.14, 3.14), (0, 1, 2), True),
    '2d': ((24, 20), (34, 34), (-3.14, 3.14), (0, 1), False),
}

def sample_of(shape, smooth):
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing='ij'))
    waves = np.sin(places[-1] / 3) + np.cos(places[-2] / 4)
    image = places + 100 if smooth else np.stack([waves + 0.3 * rng.normal(size=shape), np.exp(0.5 * rng.normal(size=shape))])
    labels = np.digitize(waves, [-0.8, 0.2, 1.0])
    labels[..., :3] = -1
    return {'image': torch.from_numpy(image.astype(np.float32)), 'segmentation': torch.from_numpy(labels[None].astype(np.int16))}

def figures(before, after):
    image = after['image'].numpy()
    told = {}
    for channel, values in enumerate(image.astype(np.float64)):
        told[f'channel {channel} mean'] = values.mean()
        told[f'channel {channel} deviation'] = values.std()
        told[f'channel {channel} lowest'] = values.min()
        told[f'channel {channel} highest'] = values.max()
        told[f'channel {channel} third moment'] = ((values - values.mean()) ** 3).mean()
        for axis in range(values.ndim):
            told[f'channel {channel} gradient {axis}'] = np.abs(np.diff(values, axis=axis)).mean()
        told[f'channel {channel} first corner'] = values[(0,) * values.ndim]
        told[f'channel {channel} last corner'] = values[(-1,) * values.ndim]
        told[f'channel {channel} middle'] = values[tuple(n // 2 for n in values.shape)]
    labels = after['segmentation']
    labels = labels[0] if isinstance(labels, list) else labels
    for label in range(-1, 4):
        told[f'voxels of label {label}'] = float((labels == label).sum())
    return told

result = {}
np.random.seed(seed)
torch.manual_seed(seed)
for name, (patch, initial, rotation, axes, dummy_2d) in CONFIGURATIONS.items():
    scales = [[1.0] * len(patch), [0.5] * len(patch)]
    pipeline = nnUNetTrainer.get_training_transforms(patch, rotation, scales, axes, dummy_2d, use_mask_for_norm=[True, False])
    steps = list(pipeline.transforms)
    spatial = 3 if dummy_2d else 1
    parts = [('rotation and scaling', steps[:spatial], initial, True)]
    for number, step in enumerate(steps[spatial:-1]):  # the last one makes a list of scales
        inner = getattr(step, 'transform', step)
        title = type(inner).__name__.replace('Fast', '').replace('Multiplicative', '').replace('Simulate', '')
        parts.append((f'{number} {title}', [step], patch, title == 'MirrorTransform'))
    parts.append(('all', steps, initial, False))
    for title, chosen, shape, smooth in parts:
        told = {}
        for _ in range(count):
            before = sample_of(shape, smooth)
            after = {key: tensor.clone() for key, tensor in before.items()}
            for step in chosen:
                after = step(**after)
            for key, value in figures(before, after).items():
                told.setdefault(key, []).append(float(value))
        result.update({f'{name}, {title}: {key}': values for key, values in told.items()})
json.dump(result, open(out, 'w'))
"""


def sampled(python: str | Path, count: int, seed: int, folder: Path, *, before: str = "") -> dict[str, list[float]]:
    """Figures of ``count`` results by transform, of the package that this Python has. ``before`` is code that runs first."""
    file = folder / f"figures_{seed}.json"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [str(python), "-c", before + SAMPLER, str(count), str(seed), str(file)]
    done = subprocess.run(
        command, env=environment, cwd=folder, check=False, capture_output=True, text=True
    )  # not in a folder with a package
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr[-3000:]}")
    return json.loads(file.read_text())


def differences(ours: dict[str, list[float]], theirs: dict[str, list[float]], level: float = LEVEL) -> tuple[list[str], int]:
    """Figures whose distributions differ, worst first, and the number of tests."""
    if list(ours) != list(theirs):
        raise ValueError(f"The sides tell different figures: {sorted(set(ours) ^ set(theirs))[:10]}")
    values = {key: 1.0 if _is_constant(ours[key] + theirs[key]) else ks_2samp(ours[key], theirs[key]).pvalue for key in ours}
    found = sorted((p, key) for key, p in values.items() if p < level / len(values))
    return [f"{key}: p = {p:.2g}" for p, key in found], len(values)


def _is_constant(values: list[float]) -> bool:
    return max(values) - min(values) <= ROUNDING * max(map(abs, values))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default=sys.executable, help="Python with this package")
    parser.add_argument("--reference", required=True, help="Python with nnunetv2==2.8.1")
    parser.add_argument("--samples", type=int, default=1000, help="results of each transform")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = sampled(arguments.ours, arguments.samples, 1, Path(folder))
        theirs = sampled(arguments.reference, arguments.samples, 2, Path(folder))
    found, tests = differences(ours, theirs)
    print("\n".join(found) or "No figure differs.")
    print(f"{len(found)} of {tests} figures differ, {arguments.samples} results each, level {LEVEL} over all tests")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
