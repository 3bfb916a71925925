"""Trained models' folders as a cross-validation with ``--npz`` leaves them, made without training anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_datasets import LABELS, write_tiny_dataset
from tiny_models import plans
from tiny_reports import class_rows

from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.file_io import load_json, save_json, save_pickle
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv
from nnunetv2.utilities.label_handling.label_handling import LabelManager

DATASET = "Dataset001_Tiny"
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}
TWO, FULL = "nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres"
LOWRES, CASCADE = "nnUNetTrainer__nnUNetPlans__3d_lowres", "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"


@dataclass(frozen=True, kw_only=True)
class TinyCrossValidation:
    """Where everything is."""

    raw: Path
    preprocessed: Path
    results: Path  # of the dataset
    identifiers: tuple[str, ...]

    @property
    def references(self) -> Path:
        return self.preprocessed / "gt_segmentations"


def write_cross_validation(
    folders: Mapping[str, Path],
    *,
    models: Mapping[str, float] = {TWO: 1.6, FULL: 1.4},
    labels: Mapping[str, Any] = LABELS,
    classification: Mapping[str, Any] | None = None,
    certainty: Mapping[str, Mapping[str, float]] | None = None,
    num_cases: int = 6,
    num_folds: int = 3,
    blobs: Sequence[int] = (1, 2),
    **dataset_json: Any,
) -> TinyCrossValidation:
    """Write raw and preprocessed dataset, and models whose folds are validated, with probabilities.

    Args:
        folders: ``nnunet_folders``.
        models: Folder name and how noisy its predictions are.
        labels: Of dataset.json.
        classification: Of dataset.json; None: no classes.
        certainty: By model and set of heads how often the classes are right, 0 to 1; the first set counts.
        num_cases: Training cases.
        num_folds: Of the split.
        blobs: Labels that also appear in a corner of every other case, where nothing is.
        dataset_json: Further entries.
    """
    raw, preprocessed, results = (folders[name] / DATASET for name in ("raw", "preprocessed", "results"))
    identifiers = write_tiny_dataset(raw, labels=labels, classification=classification, num_cases=num_cases, **dataset_json)
    (preprocessed / "gt_segmentations").mkdir(parents=True)
    for case in identifiers:
        (preprocessed / "gt_segmentations" / f"{case}.nii.gz").write_bytes((raw / "labelsTr" / f"{case}.nii.gz").read_bytes())
    for name in ("dataset.json", "labels.csv"):
        if (raw / name).is_file():
            (preprocessed / name).write_bytes((raw / name).read_bytes())
    held_out = [identifiers[fold::num_folds] for fold in range(num_folds)]
    save_json(
        [{"train": [c for c in identifiers if c not in cases], "val": cases} for cases in held_out], preprocessed / "splits_final.json"
    )
    plans_content = {**plans(), "dataset_name": DATASET}
    full = plans_content["configurations"]["3d_fullres"]
    plans_content["configurations"] |= {
        "2d": {**full, "patch_size": [16, 16], "spacing": [1.0, 1.0], "median_image_size_in_voxels": [20.0, 20.0]},
        "3d_lowres": {**full, "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    save_json(plans_content, preprocessed / "nnUNetPlans.json")
    content = load_json(raw / "dataset.json")
    for index, (model, noise) in enumerate(models.items()):
        (results / model).mkdir(parents=True)
        save_json(content, results / model / "dataset.json")
        save_json(plans_content, results / model / "plans.json")
        for fold, cases in enumerate(held_out):
            write_validation(
                results / model / f"fold_{fold}" / "validation", cases, preprocessed / "gt_segmentations", content, noise, index, blobs
            )
            if classification is not None:
                sets = (certainty or {}).get(model, {"joint": 0.5})
                write_classes(results / model / f"fold_{fold}" / "validation", cases, content, preprocessed, sets)
    return TinyCrossValidation(raw=raw, preprocessed=preprocessed, results=results, identifiers=tuple(identifiers))


def write_validation(
    folder: Path, cases: Sequence[str], references: Path, dataset: Mapping[str, Any], noise: float, seed: int, blobs: Sequence[int]
) -> None:
    """Segmentations, probabilities and properties of some cases, and ``summary.json``."""
    folder.mkdir(parents=True)
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    structures = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    channels = structures if manager.has_regions else manager.all_labels
    for number, case in enumerate(cases):
        reference, properties = SimpleITKIO().read_seg(str(references / f"{case}.nii.gz"))
        generator = np.random.default_rng([seed, int(case[-3:])])
        seen = reference[0].copy()
        if number % 2 == 0:
            for blob in blobs:
                seen[1:3, 2 * blob : 2 * blob + 2, 1:3] = blob
        logits = np.stack([4.0 * np.isin(seen, channel) - 2 for channel in channels])
        logits += generator.normal(0, noise, logits.shape)
        if manager.has_regions:
            probabilities = 1 / (1 + np.exp(-logits))
        else:
            probabilities = np.exp(logits) / np.exp(logits).sum(0)
        probabilities = probabilities.astype(np.float32)
        SimpleITKIO().write_seg(
            manager.convert_probabilities_to_segmentation(probabilities).astype(np.uint8), str(folder / f"{case}.nii.gz"), properties
        )
        np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
        save_pickle(properties, folder / f"{case}.pkl")
    compute_metrics_on_folder(
        str(references), str(folder), str(folder / "summary.json"), SimpleITKIO(), ".nii.gz", structures, manager.ignore_label
    )


def write_classes(
    validation: Path, cases: Sequence[str], dataset: Mapping[str, Any], labels_folder: Path, sets: Mapping[str, float]
) -> None:
    """The class tables of a fold, one for each set of heads."""
    tasks = classification_tasks(dataset)
    truth = CaseLabels.load(labels_folder, dataset)
    for number, (heads, certainty) in enumerate(sets.items()):
        table = validation / f"classification{f'_{heads}' if number else ''}.csv"
        write_classification_csv(table, tasks, class_rows(tasks, truth, cases, certainty))
    save_json({heads: {} for heads in sets}, validation / "classification_summary.json")
