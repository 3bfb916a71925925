"""What is asked of a prediction beside the segmentation, and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunetv2.inference.case_classification import AGGREGATIONS, TaskPrediction
from nnunetv2.utilities.label_handling.class_calibration import ClassCalibration
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv

SECONDS_BETWEEN_TABLES = 10  # classification.csv is written at most this often while cases are predicted


@dataclass(frozen=True, kw_only=True)
class CasePrediction:
    """What is known about one case."""

    segmentation: np.ndarray  # (X, Y, Z) in the axis order of the reader
    probabilities: np.ndarray | None  # (heads, X, Y, Z) float32; None if not asked for
    classification: dict[str, TaskPrediction]  # by task; empty for a model without heads
    # By task (X, Y, Z) float32, 0 to 1, like the segmentation: where the class was seen. Empty if not asked for.
    saliency: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """How classes are predicted."""

    aggregation: str = "evidence"  # how tiles vote: one of AGGREGATIONS
    only: bool = False  # no segmentations: the decoder is not run
    calibrated: bool = True  # apply the calibration of the model, if there is one
    saliency: bool = False  # also a map of where the class of each task was seen, see nnunetv2.inference.saliency

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"{self.aggregation!r} is not possible. Choose one of {', '.join(AGGREGATIONS)}.")

    @property
    def effective_aggregation(self) -> str:
        """Without segmentations there is no evidence to weight by."""
        return "mean" if self.only and self.aggregation == "evidence" else self.aggregation


@dataclass(kw_only=True)
class ClassificationTable:
    """Rows of ``classification.csv`` while they come in; written now and then, so that a crash costs little."""

    file: Path
    tasks: Mapping[str, ClassificationTask]
    calibration: ClassCalibration | None = None
    rows: dict[str, Mapping[str, np.ndarray] | str] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def add(self, identifier: str, row: Mapping[str, np.ndarray] | str) -> None:
        """Add a case: its probabilities by task, not calibrated, or the text of its error."""
        self.rows[identifier] = row
        if time.monotonic() - self._written > SECONDS_BETWEEN_TABLES:
            self.write()

    def write(self) -> None:
        """Write all rows so far."""
        if self.calibration is None:
            write_classification_csv(self.file, self.tasks, self.rows)
        else:
            apply = self.calibration.apply
            calibrated = {name: row if isinstance(row, str) else apply(row) for name, row in self.rows.items()}
            write_classification_csv(self.file, self.tasks, calibrated, self.rows)
        self._written = time.monotonic()
