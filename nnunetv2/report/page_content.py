"""What the page shows, ready to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunetv2.evaluation.bootstrap import DRAWS
from nnunetv2.report.case_pictures import CasePicture
from nnunetv2.report.charts import Chart
from nnunetv2.report.content import ReportContent
from nnunetv2.report.scores import HeadComparison, SegmentationScores
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

SEGMENTATION = ""  # stands for the outlines among the tasks; no task has this name


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Scored classes of one task."""

    task: ClassificationTask
    report: Mapping[str, Any]
    charts: Sequence[Chart]
    comparisons: Sequence[HeadComparison] = ()


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that the page shows, ready to be written."""

    content: ReportContent
    segmentation: SegmentationScores | None
    classes: Mapping[str, TaskSection]
    warnings: Sequence[str]
    training_charts: Sequence[Chart]
    dice_chart: Chart | None
    volumes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # ml by structure, of predictions without reference
    worst: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)  # by task, SEGMENTATION for the outlines
    pictures: Mapping[tuple[str, str], CasePicture] = field(default_factory=dict)  # by task and identifier
    commands: Sequence[tuple[str, str]] = ()  # what a command does, and the command
    versions: Mapping[str, str] = field(default_factory=dict)
    draws: int = DRAWS  # of the bootstrap
