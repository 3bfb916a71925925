"""Raw datasets small enough to be planned, preprocessed and trained in a test: an organ with a lesion whose brightness is the class."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SIZE_ZYX = (20, 24, 22)
CLASSES = ("dark", "bright")
PLANNER, PLANS = "nnUNetPlannerResEncXS", "nnUNetResEncUNetXSPlans"

LABELS = {"background": 0, "organ": 1, "lesion": 2}
SUBTYPE = {"classes": list(CLASSES), "evidence": ["lesion"], "context": ["organ"]}
FINDINGS = {"type": "multilabel", "classes": ["bright_lesion", "upper_half"]}
GRADE = {"type": "ordinal", "classes": ["G1", "G2", "G3"], "evidence": ["lesion"]}
SIDE = {"classes": ["left", "right"], "flip_sensitive_axes": [0]}


def write_tiny_dataset(
    folder: Path,
    *,
    classification: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] = LABELS,
    num_cases: int = 10,
    unknown_every: int | None = None,
    ignore_value: int | None = None,
    annotated_every: int | None = None,
    **dataset_json: Any,
) -> list[str]:
    """Write a raw dataset.

    Args:
        folder: New dataset folder, ``DatasetXXX_Name``.
        classification: Of ``dataset.json``; with it a ``labels.csv`` is written.
        labels: Of ``dataset.json``. Voxels are 0, 1 (organ) and 2 (lesion), whatever it says.
        num_cases: Training cases.
        unknown_every: Every n-th case has empty cells instead of classes.
        ignore_value: Marks the border of the image in the annotation.
        annotated_every: Only every n-th slice is annotated, the others have the ignore value.
        dataset_json: Further entries.

    Returns:
        The identifiers.
    """
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    identifiers = [f"case_{index:03d}" for index in range(num_cases)]
    rows = []
    for index, identifier in enumerate(identifiers):
        image, segmentation, facts = tiny_case(index)
        if ignore_value is not None:
            segmentation[:2] = ignore_value
        if annotated_every is not None:
            segmentation[np.arange(len(segmentation)) % annotated_every != 0] = ignore_value
        write_image(image, folder / "imagesTr" / f"{identifier}_0000.nii.gz")
        write_image(segmentation, folder / "labelsTr" / f"{identifier}.nii.gz")
        unknown = unknown_every is not None and index % unknown_every == unknown_every - 1
        rows.append([identifier, *("" if unknown else facts[name] for name in classification or ())])
    content = {
        "channel_names": {"0": "MR"},
        "labels": dict(labels),
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
        **dataset_json,
    }
    if classification is not None:
        content["classification"] = dict(classification)
        with open(folder / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([["identifier", *classification], *rows])
    (folder / "dataset.json").write_text(json.dumps(content))
    return identifiers


def tiny_case(index: int) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Image, segmentation and the cell of each task of case ``index``."""
    generator = np.random.default_rng(index)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE_ZYX), indexing="ij"))
    organ = ball(grid, np.array(SIZE_ZYX) / 2, 8)
    offset = np.array([-3 if index % 3 else 3, 0, 3 if index % 4 < 2 else -3])
    lesion = ball(grid, np.array(SIZE_ZYX) / 2 + offset, 3)
    bright = index % 2
    image = generator.normal(0, 0.1, SIZE_ZYX) + organ + lesion * (3.0 if bright else -2.0)
    segmentation = organ.astype(np.uint8)
    segmentation[lesion] = 2
    findings = [name for name, true in (("bright_lesion", bright), ("upper_half", offset[0] > 0)) if true]
    facts = {
        "subtype": CLASSES[bright],
        "findings": ";".join(findings) or "none",
        "grade": f"G{index % 3 + 1}",
        "side": "left" if offset[2] > 0 else "right",
    }
    return image.astype(np.float32), segmentation, facts


def ball(grid: np.ndarray, centre: Sequence[float], radius: float) -> np.ndarray:
    """Mask of a ball on a grid of coordinates ``(3, Z, Y, X)``."""
    return ((grid - np.asarray(centre)[:, None, None, None]) ** 2).sum(0) < radius**2


def write_image(array: np.ndarray, path: Path) -> None:
    """Write a NIfTI file with a spacing of 1 mm."""
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
