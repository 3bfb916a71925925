"""A trained model's folder, its dataset and predictions as a training would leave them, made without training anything."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tiny_datasets import FINDINGS, GRADE, LABELS, SUBTYPE, tiny_case, write_image, write_tiny_dataset
from tiny_models import plans

from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.report.content import structures_of
from nnunetv2.utilities.checkpoint_io import save_checkpoint_file
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv

DATASET = "Dataset001_Tiny"
MODEL = "nnUNetTrainerMultitask__nnUNetPlans__3d_fullres"
ONE_TASK = {"subtype": SUBTYPE}
ALL_TYPES = {"subtype": SUBTYPE, "findings": FINDINGS, "grade": GRADE}
EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class TinyMaterial:
    """Where everything is."""

    raw: Path
    preprocessed: Path
    model: Path
    identifiers: tuple[str, ...]


def write_material(
    folders: Mapping[str, Path],
    *,
    classification: Mapping[str, Any] | None = ONE_TASK,
    labels: Mapping[str, Any] = LABELS,
    num_cases: int = 12,
    num_folds: int = 2,
    patients: bool = True,
    refit: bool = True,
    unknown_every: int | None = None,
    **dataset_json: Any,
) -> TinyMaterial:
    """Write raw and preprocessed dataset and a model whose folds are validated.

    Args:
        folders: ``nnunet_folders``.
        classification: Of dataset.json; None: a plain nnU-Net model.
        labels: Of dataset.json.
        num_cases: Training cases.
        num_folds: Of the split; all of them are validated.
        patients: Whether two cases each are one patient.
        refit: Whether there are refitted heads beside the joint ones.
        unknown_every: Every n-th case has no class.
        dataset_json: Further entries.
    """
    raw, preprocessed = folders["raw"] / DATASET, folders["preprocessed"] / DATASET
    identifiers = write_tiny_dataset(
        raw, classification=classification, labels=labels, num_cases=num_cases, unknown_every=unknown_every, **dataset_json
    )
    content = load_json(raw / "dataset.json")
    if classification is not None and patients:
        with open(raw / "groups.csv", "w", newline="") as file:
            csv.writer(file).writerows([["identifier", "group"], *([case, f"patient{i // 2}"] for i, case in enumerate(identifiers))])
    (preprocessed / "gt_segmentations").mkdir(parents=True)
    for name in ("dataset.json", "labels.csv", "groups.csv"):
        if (raw / name).is_file():
            (preprocessed / name).write_bytes((raw / name).read_bytes())
    for case in identifiers:
        (preprocessed / "gt_segmentations" / f"{case}.nii.gz").write_bytes((raw / "labelsTr" / f"{case}.nii.gz").read_bytes())
    held_out = [[case for i, case in enumerate(identifiers) if i // 2 % num_folds == fold] for fold in range(num_folds)]
    splits = [{"train": [c for c in identifiers if c not in cases], "val": cases} for cases in held_out]
    save_json(splits, preprocessed / "splits_final.json")

    model = folders["results"] / DATASET / MODEL
    model.mkdir(parents=True)
    save_json(content, model / "dataset.json")
    save_json({**plans(), "dataset_name": DATASET}, model / "plans.json")
    for fold, cases in enumerate(held_out):
        write_fold(model / f"fold_{fold}", content, cases, reference=preprocessed / "gt_segmentations", refit=refit, labels_folder=raw)
    return TinyMaterial(raw=raw, preprocessed=preprocessed, model=model, identifiers=tuple(identifiers))


def write_fold(fold: Path, dataset: Mapping[str, Any], cases: Sequence[str], *, reference: Path, refit: bool, labels_folder: Path) -> None:
    """A finished and validated fold: checkpoint with curves, ``debug.json``, predictions and their scores."""
    validation = fold / "validation"
    write_predictions(validation, cases, reference)
    structures = structures_of(dataset)
    compute_metrics_on_folder(
        str(reference), str(validation), str(validation / "summary.json"), SimpleITKIO(), ".nii.gz", list(structures.values())
    )
    tasks = classification_tasks(dataset)
    if tasks:
        truth = CaseLabels.load(labels_folder, dataset)
        sets = {"refit": 0.8, "joint": 0.4} if refit else {"joint": 0.4}
        for number, (heads, certainty) in enumerate(sets.items()):
            table = validation / f"classification{f'_{heads}' if number else ''}.csv"
            write_classification_csv(table, tasks, class_rows(tasks, truth, cases, certainty))
        save_json({heads: {} for heads in sets}, validation / "classification_summary.json")
    write_checkpoint(fold, tasks, refit=refit)


def write_predictions(folder: Path, cases: Sequence[str], reference: Path) -> None:
    """Segmentations that are the reference moved by a voxel or two."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(cases):
        image = sitk.ReadImage(str(reference / f"{case}.nii.gz"))
        moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 1 + index % 2, axis=2))
        moved.CopyInformation(image)
        sitk.WriteImage(moved, str(folder / f"{case}.nii.gz"))


def class_rows(
    tasks: Mapping[str, ClassificationTask], truth: CaseLabels, cases: Sequence[str], certainty: float
) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities that favour what is true in most cases; the higher the certainty, the more."""
    rows = {}
    for index, case in enumerate(cases):
        generator = np.random.default_rng(index)
        rows[case] = {}
        for name, task in tasks.items():
            target = truth.target(case, name)
            hot = (
                np.zeros(task.num_classes)
                if target is None
                else np.asarray(target)
                if task.is_multilabel
                else np.eye(task.num_classes)[target]
            )
            noise = generator.dirichlet(np.ones(task.num_classes)) if not task.is_multilabel else generator.random(task.num_classes)
            mixed = certainty * hot + (1 - certainty) * noise if target is not None else noise
            rows[case][name] = mixed if task.is_multilabel else mixed / mixed.sum()
    return rows


def write_checkpoint(fold: Path, tasks: Mapping[str, ClassificationTask], *, refit: bool = False, epochs: int = EPOCHS) -> None:
    """``checkpoint_final.pth`` with curves and settings, without weights, and ``debug.json``."""
    fold.mkdir(parents=True, exist_ok=True)
    falling = [1 / (1 + epoch) for epoch in range(epochs)]
    curves: dict[str, list[Any]] = {
        "train_losses": falling,
        "val_losses": [value + 0.1 for value in falling],
        "mean_fg_dice": [1 - value for value in falling],
        "ema_fg_dice": [1 - value for value in falling],
        "epoch_end_timestamps": [1.7e9 + epoch for epoch in range(epochs)],
    }
    for name in tasks:
        curves |= {f"classification/{name}/{key}": falling for key in ("train_loss", "val_loss", "macro_f1", "auroc")}
    entry = {"pooling": "mean_max", "stages": [1, 2], "level": "patch"} if tasks else None
    checkpoint = {
        "logging": curves,
        "trainer_name": "nnUNetTrainerMultitask",
        "init_args": {"configuration": "3d_fullres", "fold": fold.name[5:]},
        "current_epoch": epochs,
        "classification": entry,
        "refitted_heads": {"classification": {**entry, "level": "case"}} if refit and entry else None,
        "training_state": {"seed": 7, "run_options": {"num_epochs": epochs}},
    }
    save_checkpoint_file(checkpoint, fold / "checkpoint_final.pth")
    save_json({"torch_version": "2.9.9", "device": "cpu", "hostname": "secret"}, fold / "debug.json")


def write_test_predictions(folder: Path, dataset: Mapping[str, Any], *, num_cases: int = 6, with_classes: bool = True) -> Path:
    """A folder of predictions, with ``images``, ``references`` and ``labels.csv`` of these cases beside it; returns the folder."""
    tasks = classification_tasks(dataset) if with_classes else {}
    root = folder.parent
    for name in ("images", "references"):
        (root / name).mkdir(parents=True)
    cases, rows = [f"new_{index}" for index in range(num_cases)], []
    for index, case in enumerate(cases):
        image, segmentation, facts = tiny_case(100 + index)
        write_image(image, root / "images" / f"{case}_0000.nii.gz")
        write_image(segmentation, root / "references" / f"{case}.nii.gz")
        rows.append([case, *(facts[name] for name in tasks)])
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["identifier", *tasks], *rows])
    write_predictions(folder, cases, root / "references")
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps({**plans(), "dataset_name": DATASET}))
    if tasks:
        truth = CaseLabels.read_csv(root / "labels.csv", tasks)
        write_classification_csv(folder / "classification.csv", tasks, class_rows(tasks, truth, cases, 0.6))
    return folder
