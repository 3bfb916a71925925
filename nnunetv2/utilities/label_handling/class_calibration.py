"""Calibrated class probabilities: logits divided by temperatures and shifted, as ``classification_calibration.json`` says.

The logits come from the probabilities, because those are what tiles, mirrors and folds are averaged in:

- ``multiclass``: log p of every class; calibrated is the softmax.
- ``ordinal``: the log odds of lying above each of the K-1 steps between classes; calibrated are the differences of the sigmoids.
- ``multilabel``: the log odds of every class; calibrated is the sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

CALIBRATION_FILE = "classification_calibration.json"
VERSION = 1
DEFAULT_CHECKPOINT = "checkpoint_final.pth"  # of files that do not say which
METHODS = ("temperature", "vector")
# Probabilities are kept this far from 0 and 1, where logits end; float32 softmax outputs resolve about this much.
SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class TaskCalibration:
    """Logits of one task become ``logit / temperature + offset``."""

    task_type: str
    classes: tuple[str, ...]
    temperatures: tuple[float, ...]  # one for each logit; above 1 makes predictions less certain
    offsets: tuple[float, ...]
    report: Mapping[str, Any] = field(default_factory=dict)  # what it was fitted on and what it gained; for people

    def __post_init__(self) -> None:
        expected = len(self.classes) - (self.task_type == "ordinal")
        if len(self.temperatures) != expected or len(self.offsets) != expected:
            raise ValueError(f"found {len(self.temperatures)} temperatures and {len(self.offsets)} offsets, expected {expected} of each")
        if not all(np.isfinite(t) and t > 0 for t in self.temperatures) or not all(np.isfinite(self.offsets)):
            raise ValueError("temperatures must be larger than 0, and all numbers finite")

    @classmethod
    def identity(cls, task: ClassificationTask, **report: Any) -> TaskCalibration:
        """One that changes nothing."""
        ones, zeros = (1.0,) * task.num_logits, (0.0,) * task.num_logits
        return cls(task_type=task.type, classes=task.classes, temperatures=ones, offsets=zeros, report=report)

    @property
    def is_identity(self) -> bool:
        return all(t == 1 for t in self.temperatures) and not any(self.offsets)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``(..., K)`` of raw ones ``(..., K)``, float64."""
        probabilities = np.asarray(probabilities, dtype=np.float64)
        if self.is_identity:
            return probabilities
        logits = logits_of(self.task_type, probabilities) / np.asarray(self.temperatures) + np.asarray(self.offsets)
        return probabilities_of(self.task_type, logits)


@dataclass(frozen=True, kw_only=True)
class ClassCalibration:
    """The content of ``classification_calibration.json``."""

    method: str  # one of METHODS
    heads: str  # of the predictions it was fitted on
    aggregation: str  # of their tiles
    tasks: Mapping[str, TaskCalibration]
    checkpoint: str = DEFAULT_CHECKPOINT  # of each fold, which predicted them
    fitted_on: Mapping[str, Any] = field(default_factory=dict)  # folds and tables; for people

    def apply(self, probabilities: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calibrated probabilities by task; tasks without a calibration stay as they are."""
        return {name: self.tasks[name].apply(values) if name in self.tasks else values for name, values in probabilities.items()}

    def fits(self, tasks: Mapping[str, ClassificationTask], heads: str, aggregation: str, checkpoint: str = DEFAULT_CHECKPOINT) -> bool:
        """Whether it was fitted on predictions that were made in this way.

        Without evidence tiles count the same, so that the aggregations ``evidence`` and ``mean`` are one.
        """
        same = {aggregation, self.aggregation} <= {"evidence", "mean"} and not any(task.evidence for task in tasks.values())
        return (heads, checkpoint) == (self.heads, self.checkpoint) and (aggregation == self.aggregation or same)

    def save(self, path: str | Path) -> None:
        """Write the file in one step."""
        content = {
            "version": VERSION,
            "method": self.method,
            "heads": self.heads,
            "aggregation": self.aggregation,
            "checkpoint": self.checkpoint,
            "fitted_on": self.fitted_on,
            "tasks": {
                name: {
                    "type": task.task_type,
                    "classes": task.classes,
                    "temperatures": task.temperatures,
                    "offsets": task.offsets,
                    "report": task.report,
                }
                for name, task in self.tasks.items()
            },
        }
        save_json(content, path)

    @classmethod
    def load(cls, path: str | Path, tasks: Mapping[str, ClassificationTask]) -> ClassCalibration:
        """Read the file of a model.

        Args:
            path: ``classification_calibration.json``.
            tasks: Those of the model.

        Raises:
            ValueError: If it is of another version or damaged, or was fitted for other classes; names the file.
        """
        content = load_json(path)
        advice = "Run nnUNetv2_calibrate_classification again, or remove the file to predict without calibration."
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"{path} is no calibration of version {VERSION}. {advice}")
        try:
            calibrations = {
                name: TaskCalibration(
                    task_type=values["type"],
                    classes=tuple(values["classes"]),
                    temperatures=tuple(float(t) for t in values["temperatures"]),
                    offsets=tuple(float(o) for o in values["offsets"]),
                    report=values.get("report", {}),
                )
                for name, values in content["tasks"].items()
            }
            method, heads, aggregation = content["method"], content["heads"], content["aggregation"]
            checkpoint = str(content.get("checkpoint", DEFAULT_CHECKPOINT))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}. {advice}") from error
        other = [
            name
            for name, calibration in calibrations.items()
            if name not in tasks or (tasks[name].type, tasks[name].classes) != (calibration.task_type, calibration.classes)
        ]
        if other:
            raise ValueError(f"{path} was fitted for other classes than the model's: {', '.join(other)}. {advice}")
        fitted_on = content.get("fitted_on", {})
        return cls(method=method, heads=heads, aggregation=aggregation, tasks=calibrations, checkpoint=checkpoint, fitted_on=fitted_on)


def logits_of(task_type: str, probabilities: np.ndarray) -> np.ndarray:
    """Logits ``(..., K)``, for ordinal ``(..., K - 1)``, of probabilities ``(..., K)``; see the module."""
    if task_type == "multiclass":
        return np.log(np.clip(probabilities, SMALLEST, None))
    if task_type == "ordinal":
        # Both sums, not one and its complement, which loses the digits of small probabilities.
        lower = np.cumsum(probabilities, axis=-1)[..., :-1]
        higher = np.cumsum(probabilities[..., ::-1], axis=-1)[..., ::-1][..., 1:]
        return np.log(np.clip(higher, SMALLEST, None)) - np.log(np.clip(lower, SMALLEST, None))
    clipped = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)


def probabilities_of(task_type: str, logits: np.ndarray) -> np.ndarray:
    """Probabilities ``(..., K)`` of the logits of :func:`logits_of`."""
    if task_type == "multiclass":
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)
    above = 1 / (1 + np.exp(-logits))
    if task_type == "multilabel":
        return above
    # Shifts of their own can put the steps out of order; no probability may be negative.
    above = np.minimum.accumulate(above, axis=-1)
    edge = np.ones_like(above[..., :1])
    return np.concatenate([edge, above], axis=-1) - np.concatenate([above, 0 * edge], axis=-1)
