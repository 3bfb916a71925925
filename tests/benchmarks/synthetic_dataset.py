"""A raw dataset of made-up images: smooth structures with noise, four labels one within another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, zoom

LABELS = {"background": 0, "organ": 1, "duct": 2, "vessel": 3, "lesion": 4}
COARSENESS = 8  # voxels between the values that the structures are interpolated from


def write_dataset(
    folder: Path,
    cases: int,
    shape: Sequence[int],
    *,
    channels: int = 1,
    spacings: tuple[float, float] = (1.0, 1.0),
    classes: Sequence[str] = (),
) -> None:
    """Write the dataset; nothing if it is there.

    Args:
        folder: Raw dataset.
        cases: Number of images.
        shape: Voxels by axis; multiples of 8.
        channels: Of each image.
        spacings: Smallest and largest voxel size in mm; cases lie evenly between them.
        classes: Of a task ``subtype``, given to the cases in turn; none: no classes.
    """
    if (folder / "dataset.json").is_file():
        return
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for case, spacing in enumerate(np.linspace(*spacings, cases)):
        coarse = gaussian_filter(rng.normal(size=[n // COARSENESS for n in shape]), 1.5)
        field = zoom(coarse / coarse.std(), COARSENESS, order=1)
        labels = np.digitize(field, [0.7, 1.1, 1.5, 1.9]).astype(np.uint8)
        for channel in range(channels):
            image = 100 * field + 40 * labels * (channel + 1) + 20 * rng.normal(size=field.shape)
            _write(image.astype(np.float32), float(spacing), folder / "imagesTr" / f"case_{case:03d}_{channel:04d}.nii.gz")
        _write(labels, float(spacing), folder / "labelsTr" / f"case_{case:03d}.nii.gz")
    names = {str(channel): f"MR{channel}" for channel in range(channels)}
    description = {"channel_names": names, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    if classes:
        description["classification"] = {"subtype": {"classes": list(classes), "evidence": ["lesion"]}}
        rows = [f"case_{case:03d},{classes[case % len(classes)]}" for case in range(cases)]
        (folder / "labels.csv").write_text("\n".join(["identifier,subtype", *rows, ""]))
    (folder / "dataset.json").write_text(json.dumps(description))


def _write(array: np.ndarray, spacing: float, file: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    sitk.WriteImage(image, str(file))


def plan_unet(preprocessed: Path, patch: int, features: Sequence[int], convolutions: int) -> None:
    """Cubic patches and a plain U-Net of chosen width in the plans of a preprocessed dataset."""
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [patch] * 3, "batch_size": 2}
    stages = len(features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3] * 3] * stages,
        "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
    }
    file.write_text(json.dumps(plans))
