"""What DA5 consists of and returns; with stock nnU-Net 2.8.1 (``NNUNET_REFERENCE``) how often and how strongly it changes a patch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stock_nnunet import run_reference_program

from nnunetv2.training.data_augmentation.default_augmentation import restrict_axis_swaps
from nnunetv2.training.data_augmentation.strong_augmentation import (
    axis_swaps,
    gradient_strength,
    local_gamma,
    local_width,
    strong_training_transforms,
)

ROOT = Path(__file__).parents[3]
SCALES = [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5)]


def sample(shape: tuple[int, ...], channels: int = 2, cascade: bool = False) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = np.zeros((1 + cascade, *shape), dtype=np.int16)
    labels[(slice(None), *(slice(n // 4, n // 2) for n in shape))] = 1
    labels[(slice(None), *(slice(n // 3, n // 2) for n in shape))] = 2
    labels[..., -4:] = -1
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    return {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(labels)}


def names(transforms) -> list[str]:
    return [type(getattr(step, "transform", step)).__name__ for step in transforms.transforms]


def test_order_and_probabilities_of_the_steps() -> None:
    pipeline = strong_training_transforms((16, 32, 32), (-1, 1), SCALES, (0, 1), True, [True], True, [1, 2], [(1, 2), 2], 3)
    assert names(pipeline) == [
        "Convert3DTo2DTransform", "FastSpatialTransform", "Convert2DTo3DTransform", "Rot90Transform", "TransposeAxesTransform",
        "OneOfTransform", "GaussianNoiseTransform", "BrightnessAdditiveTransform", "OneOfTransform", "SimulateLowResolutionTransform",
        "FastGammaTransform", "FastGammaTransform", "MirrorTransform", "BlankRectangleTransform", "BrightnessGradientAdditiveTransform",
        "LocalGammaTransform", "SharpeningTransform", "MaskImageTransform", "RemoveLabelTransform", "MoveSegAsOneHotToDataTransform",
        "RandomBinaryOperatorTransform", "RemoveRandomComponentTransform", "ConvertSegmentationToRegionsTransform",
        "DownsampleSegForDSTransform",
    ]  # fmt: skip
    probabilities = [step.apply_probability for step in pipeline.transforms if hasattr(step, "apply_probability")]
    assert probabilities == [0.5, 0.5, 0.1, 0.1, 0.15, 0.1, 0.1, 0.4, 0.3, 0.3, 0.2, 0.4, 0.2]
    choices = [step for step in pipeline.transforms if type(step).__name__ == "OneOfTransform"]
    assert [[choice.apply_probability for choice in step.list_of_transforms] for step in choices] == [[0.2, 0.2], [0.2, 0.2]]


@pytest.mark.parametrize(
    ("patch_size", "axes"), [((16, 32, 32), {1, 2}), ((24, 24, 24), {0, 1, 2}), ((24, 24), {0, 1}), ((16, 24, 32), None), ((24, 20), None)]
)
def test_only_axes_of_one_length_are_swapped(patch_size, axes) -> None:
    assert [step.transform.allowed_axes for step in axis_swaps(patch_size)] == ([axes, axes] if axes else [])


@pytest.mark.parametrize("dummy_2d", [False, True])
@pytest.mark.parametrize("patch_size", [(16, 24, 24), (4, 5, 18)])  # also patches with fewer voxels than a rectangle is wide
def test_shapes_types_and_values_in_3d(dummy_2d: bool, patch_size: tuple[int, ...]) -> None:
    pipeline = strong_training_transforms(patch_size, (-1, 1), SCALES, (0, 1, 2), dummy_2d, [True, False], True, [1, 2])
    for seed in range(30):
        np.random.seed(seed), torch.manual_seed(seed)
        result = pipeline(**sample((patch_size[0] if dummy_2d else 26, 40, 36), cascade=True))
        assert result["image"].shape == (4, *patch_size) and result["image"].dtype == torch.float32
        assert torch.isfinite(result["image"]).all(), seed
        assert [tuple(target.shape[1:]) for target in result["segmentation"]] == [patch_size, tuple(round(n / 2) for n in patch_size)]
        assert all(target.dtype == torch.int16 and set(target.unique().tolist()) <= {0, 1, 2} for target in result["segmentation"])


def test_shapes_in_2d() -> None:
    pipeline = strong_training_transforms((24, 24), (-3, 3), [(1, 1), (0.5, 0.5)], (0, 1), False)
    for seed in range(20):
        np.random.seed(seed), torch.manual_seed(seed)
        result = pipeline(**sample((40, 36)))
        assert result["image"].shape == (2, 24, 24) and result["segmentation"][1].shape == (1, 12, 12)


def test_a_sample_depends_on_the_random_states_alone() -> None:
    pipeline = strong_training_transforms((16, 24, 24), (-1, 1), None, (0, 1, 2), False, None, True, [1, 2])

    def augmented(seed: int) -> torch.Tensor:
        np.random.seed(seed), torch.manual_seed(seed)
        return pipeline(**sample((26, 40, 36), cascade=True))["image"]

    alone = [augmented(seed) for seed in range(16)]
    for seed in reversed(range(16)):
        assert torch.equal(augmented(seed), alone[seed]), seed


def test_local_changes_are_as_wide_and_strong_as_nnunets() -> None:
    np.random.seed(0)
    widths = np.log([local_width((16, 32, 64), 1) for _ in range(4000)])
    assert np.log(5) <= widths.min() and widths.max() <= np.log(32)
    assert widths.mean() == pytest.approx((np.log(5) + np.log(32)) / 2, abs=0.05)
    assert local_width((3, 1), 1) == 1 and 1 <= local_width((3, 1), 0) <= 3
    strengths = np.array([gradient_strength() for _ in range(4000)])
    assert (np.abs(strengths) >= 1).all() and (np.abs(strengths) <= 5).all()
    assert strengths.mean() == pytest.approx(0, abs=0.2) and np.abs(strengths).mean() == pytest.approx(3, abs=0.1)
    gammas = np.array([local_gamma() for _ in range(4000)])
    assert gammas.min() >= 0.01 and gammas.max() <= 4 and not ((gammas > 0.8) & (gammas < 1.5)).any()
    assert (gammas < 1).mean() == pytest.approx(0.5, abs=0.03)


def test_a_flip_sensitive_axis_is_not_swapped_either() -> None:
    pipeline = strong_training_transforms((12, 12, 12), (0, 0), None, (0, 1), False)
    assert restrict_axis_swaps(pipeline, (2,))
    swaps = [
        step.transform
        for step in pipeline.transforms
        if type(getattr(step, "transform", None)).__name__ in ("Rot90Transform", "TransposeAxesTransform")
    ]
    assert [swap.allowed_axes for swap in swaps] == [{0, 1}] * 2
    restrict_axis_swaps(pipeline, (1, 2))
    assert "Rot90Transform" not in names(pipeline) and "TransposeAxesTransform" not in names(pipeline)
    assert names(pipeline).count("OneOfTransform") == 2


# --- with stock nnU-Net, a program that is run and nothing more

DRAW = r"""
import importlib, json, sys
import numpy as np, torch
module = importlib.import_module('nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5')
torch.set_num_threads(1)
results = {}
for patch, dummy, number in (((16, 24, 24), False, 700), ((6, 24, 24), True, 500), ((24, 24), False, 700)):
    pipeline = module.nnUNetTrainerDA5.get_training_transforms(
        patch, (-0.5, 0.5), None, tuple(range(len(patch))), dummy, use_mask_for_norm=[False])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n if dummy and i == 0 else n + 12) for i, n in enumerate(patch)], indexing='ij'))
    smooth = sum(np.sin(3 * (i + 1) * axis + i) for i, axis in enumerate(grid))
    image = torch.from_numpy((smooth + 0.3 * np.random.default_rng(0).normal(size=smooth.shape))[None].astype(np.float32))
    labels = torch.from_numpy(((grid + 0.2) ** 2).sum(0)[None] < 0.5).to(torch.int16)
    values = []
    for seed in range(number):
        np.random.seed(seed); torch.manual_seed(seed + 1)
        out = pipeline(image=image.clone(), segmentation=labels.clone())
        x, y = out['image'][0].double(), out['segmentation'][0]
        fine = (x[..., 1:] - x[..., :-1]).abs().mean()
        flat = (x[..., 1:] == x[..., :-1]).double().mean()
        values.append([x.mean(), x.std(), x.min(), x.max(), fine, flat, (y > 0).double().mean(), x.flatten()[0], x.flatten()[-1]])
    results[str(patch)] = np.array(values, dtype=float).tolist()
print('RESULT', json.dumps(results))
"""


SETTINGS = r"""
import importlib, json
module = importlib.import_module('nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5')

def plain(value):
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, (set, list, tuple)):
        return [plain(entry) for entry in (sorted(value) if isinstance(value, set) else value)]
    if callable(value):  # by its settings, such as a range
        return {name: plain(entry) for name, entry in getattr(value, '__dict__', {}).items()}
    return value

def settings(step):
    children = [getattr(step, 'transform', None), *getattr(step, 'transforms', ()), *getattr(step, 'list_of_transforms', ())]
    own = {name: plain(value) for name, value in vars(step).items() if name[0] != '_' and not name.startswith(('transform', 'list_of'))}
    return [type(step).__name__, own, [settings(child) for child in children if child is not None]]

results = []
for name in ('nnUNetTrainerDA5', 'nnUNetTrainerDA5ord0', 'nnUNetTrainerDA5Segord0'):
    for patch, dummy in (((16, 32, 32), True), ((20, 24, 28), False), ((24, 24), False)):
        pipeline = getattr(module, name).get_training_transforms(
            patch, (-1, 1), [[1] * len(patch)], tuple(range(len(patch))), dummy, use_mask_for_norm=[True, False], is_cascaded=True,
            foreground_labels=[1, 2], regions=[(1, 2), 2], ignore_label=3)
        results.append(settings(pipeline))
text = json.dumps(results)
for ours, theirs in (('FastSpatial', 'Spatial'), ('FastGamma', 'Gamma'), ('"RandomBinary', '"ApplyRandomBinary'),
                     ('RemoveRandomComponentTransform', 'RemoveRandomConnectedComponentFromOneHotEncodingTransform')):
    text = text.replace(ours, theirs)
print('RESULT', text)
"""


def told_by(printed: str) -> Any:
    return json.loads(next(line for line in printed.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


def result_here(program: str) -> Any:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return told_by(done.stdout)


def result_there(program: str, reference: Path) -> Any:
    return told_by(run_reference_program(reference, program))


@pytest.mark.slow
def test_da5_has_the_settings_of_stock_nnunet(reference: Path) -> None:
    assert result_here(SETTINGS) == result_there(SETTINGS, reference)


@pytest.mark.slow
def test_da5_draws_from_the_distributions_of_stock_nnunet(reference: Path) -> None:
    from scipy.stats import ks_2samp

    ours, theirs = result_here(DRAW), result_there(DRAW, reference)
    names = ("mean", "deviation", "minimum", "maximum", "roughness", "flatness", "foreground", "first voxel", "last voxel")
    assert list(ours) == list(theirs)
    problems = []
    for patch in ours:
        for name, own, other in zip(names, zip(*ours[patch], strict=True), zip(*theirs[patch], strict=True), strict=True):
            # 27 comparisons: by chance one in 370 runs has one below this
            p_value = ks_2samp(own, other).pvalue
            if p_value < 1e-4:
                problems.append(f"{name} of patches {patch}: p = {p_value:.1e}")
    assert not problems
