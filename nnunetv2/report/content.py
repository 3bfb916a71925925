"""What a report is made of, wherever it came from: a trained model or a folder of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.evaluation.segmentation_metrics import LabelOrRegion
from nnunetv2.evaluation.validation_tables import VALIDATION
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

MODEL, PREDICTIONS = "model", "predictions"

ClassRows = Mapping[str, Mapping[str, np.ndarray]]  # probabilities (K,) by identifier and task


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where the files of one case are; None or empty: nowhere."""

    images: tuple[str, ...] = ()  # one for each channel, in order
    reference: str | None = None
    prediction: str | None = None
    saliency_folders: tuple[Path, ...] = ()  # hold <case>_<task>.nii.gz


@dataclass(frozen=True, kw_only=True)
class FoldTraining:
    """What the checkpoint of a fold, and the files beside it, say about its training."""

    fold: str
    curves: Mapping[str, Sequence[Any]]  # by key one value per epoch, as the trainer's logger keeps them
    trainer: str
    configuration: str
    epochs: int
    seed: int | None = None
    run_options: Mapping[str, int] = field(default_factory=dict)  # lengths that were asked for on the command line
    heads: Mapping[str, Any] = field(default_factory=dict)  # the checkpoint's entry `classification`
    refit: Mapping[str, Any] = field(default_factory=dict)  # the same of the heads that were refitted afterwards
    machine: Mapping[str, str] = field(default_factory=dict)  # device and versions, by their name in debug.json


@dataclass(kw_only=True)
class ReportContent:
    """Everything that the page shows, before it is scored and drawn."""

    kind: str  # MODEL or PREDICTIONS
    folder: Path
    dataset_json: Mapping[str, Any]
    plans: Mapping[str, Any]  # empty if there are none
    tasks: Mapping[str, ClassificationTask]
    structures: Mapping[str, LabelOrRegion]  # foreground, by name
    folds: tuple[str, ...] = ()  # that were pooled
    validation_name: str = VALIDATION  # folder in each fold
    fold_of: Mapping[str, str] = field(default_factory=dict)  # by identifier
    identifiers: tuple[str, ...] = ()  # of all predicted cases
    splits: Sequence[Mapping[str, Sequence[str]]] | None = None
    case_labels: CaseLabels | None = None
    groups: Mapping[str, str] | None = None
    class_tables: Mapping[str, ClassRows] = field(default_factory=dict)  # by set of heads; the first is the one that counts
    raw_class_rows: ClassRows | None = None  # before calibration, where the table that counts is calibrated
    calibration: Mapping[str, Any] | None = None  # content of classification_calibration.json
    failed: Mapping[str, str] = field(default_factory=dict)  # error by identifier
    overlaps: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)  # metrics by identifier and structure
    overlap_source: str = ""  # where they come from, for people
    recorded_references: dict[str, str] = field(default_factory=dict)  # reference file by identifier, as summary.json names it
    files: Mapping[str, CaseFiles] = field(default_factory=dict)
    reader: Any = None  # of images and segmentations; None if it is not known
    trainings: Sequence[FoldTraining] = ()
    seen_in_training: Sequence[str] = ()  # identifiers of scored cases that a network was trained on
    shared_groups: Sequence[str] = ()  # groups with cases on both sides of a split
    overlap_unknown: bool = False  # whether nothing is known about what the model was trained on
    recorded_arguments: Mapping[str, Any] = field(default_factory=dict)  # of the prediction
    notes: list[str] = field(default_factory=list)  # what is special about this material
    missing: dict[str, str] = field(default_factory=dict)  # by section a sentence about what it lacks

    @property
    def dataset_name(self) -> str:
        """``Dataset004_Name``, or what dataset.json calls itself."""
        return str(self.plans.get("dataset_name") or self.dataset_json.get("name") or "unknown dataset")

    @property
    def class_rows(self) -> ClassRows:
        """The table that counts; empty without classes."""
        return next(iter(self.class_tables.values()), {})

    def group_of(self, identifier: str) -> str:
        """Group of a case; itself where there are no groups."""
        return identifier if self.groups is None else self.groups.get(identifier, identifier)


def structures_of(dataset_json: Mapping[str, Any]) -> dict[str, LabelOrRegion]:
    """Structures other than background and ignore label by name, a region as the tuple of its values."""
    found: dict[str, LabelOrRegion] = {}
    for name, value in dataset_json.get("labels", {}).items():
        values = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
        if name != "ignore" and values != (0,):
            found[str(name)] = values if len(values) > 1 else values[0]
    return found


def by_structure(
    metrics: Mapping[LabelOrRegion, Mapping[str, float]], structures: Mapping[str, LabelOrRegion]
) -> dict[str, Mapping[str, float]]:
    """Metrics by name of the structure instead of by label; what has no name keeps its label as one."""
    normalised = {_plain_key(label): values for label, values in metrics.items()}
    named = {name: normalised.pop(_plain_key(label)) for name, label in structures.items() if _plain_key(label) in normalised}
    return named | {f"label {label}": values for label, values in normalised.items()}


def _plain_key(label: LabelOrRegion) -> LabelOrRegion:
    """A region of one label is that label."""
    if isinstance(label, (list, tuple)):
        return tuple(sorted(int(v) for v in label)) if len(label) > 1 else int(label[0])
    return int(label)
