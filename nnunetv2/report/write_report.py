"""Writes the HTML report on a trained model or on predictions: collect, score, draw, write."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.evaluation.bootstrap import DRAWS
from nnunetv2.evaluation.classification_metrics import known_cases, reliability
from nnunetv2.evaluation.segmentation_metrics import region_or_label_to_mask
from nnunetv2.evaluation.validation_tables import VALIDATION
from nnunetv2.report.case_pictures import CasePicture, draw_case, load_case, read_saliency
from nnunetv2.report.charts import class_charts, dice_chart, training_charts
from nnunetv2.report.collect import Sources, collect
from nnunetv2.report.content import ReportContent
from nnunetv2.report.page import build_page
from nnunetv2.report.page_content import SEGMENTATION, PageContent, TaskSection
from nnunetv2.report.scores import class_scores, compare_heads, segmentation_scores, warnings_of, worst_classified, worst_segmented
from nnunetv2.utilities.file_io import atomic_path
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.versions import package_version

REPORT_FILE = "report.html"
WORST_CASES = 10
PACKAGES = ("torch", "numpy", "scikit-learn", "matplotlib")
COLOUR_ENDINGS = (".png", ".bmp", ".tif")


def write_report(
    path: str | Path,
    output_file: str | Path | None = None,
    *,
    sources: Sources | None = None,
    worst: int = WORST_CASES,
    draws: int = DRAWS,
    command: str | None = None,
) -> Path:
    """Write one self-contained HTML page about a trained model or about predictions.

    Args:
        path: Folder of the model or of the predictions.
        output_file: The page; None: ``report.html`` in that folder, ``report_best_joint.html`` or the like for another checkpoint.
        sources: Where to find truth and images, if not where nnU-Net keeps them.
        worst: Number of cases shown for each task; 0: none.
        draws: Of the bootstrap.
        command: The command line that asked for it, to be shown.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError, ValueError: If there is nothing to report on, or a file is wrong.
    """
    content = collect(path, sources or Sources())
    suffix = content.validation_name.removeprefix(VALIDATION)
    output = content.folder / REPORT_FILE.replace(".", f"{suffix}.") if output_file is None else Path(output_file)
    page = build_page(assemble(content, worst=worst, draws=draws, command=command))
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def assemble(content: ReportContent, *, worst: int = WORST_CASES, draws: int = DRAWS, command: str | None = None) -> PageContent:
    """Score and draw what was collected.

    Args:
        content: Of :func:`~nnunetv2.report.collect.collect`.
        worst: Number of cases shown for each task.
        draws: Of the bootstrap.
        command: The command line that asked for it.
    """
    segmentation = segmentation_scores(content, draws)
    reports = class_scores(content, draws=draws)
    sections = {name: _task_section(content, content.tasks[name], report, draws) for name, report in reports.items()}
    singled_out = _singled_out(content, worst)
    return PageContent(
        content=content,
        segmentation=segmentation,
        classes=sections,
        warnings=warnings_of(content, segmentation, reports),
        training_charts=training_charts(content.trainings, content.tasks) if content.trainings else [],
        dice_chart=dice_chart(segmentation) if segmentation is not None and any(s.dice for s in segmentation.structures.values()) else None,
        volumes=predicted_volumes(content) if segmentation is None else {},
        worst=singled_out,
        pictures=_pictures(content, singled_out),
        commands=_commands(content, command),
        versions=_versions(),
        draws=draws,
    )


def _task_section(content: ReportContent, task: ClassificationTask, report: Mapping[str, Any], draws: int) -> TaskSection:
    """Charts and comparisons of one task."""
    known, targets, probabilities = known_cases(task.name, content.class_rows, content.case_labels)
    if content.raw_class_rows is None:
        curves = {"predictions (95 % intervals)": report["reliability"]}
    else:
        raw = [content.raw_class_rows[identifier][task.name] for identifier in known]
        curves = {"raw": reliability(task, targets, raw), "calibrated": report["reliability"]}
    return TaskSection(
        task=task,
        report=report,
        charts=class_charts(task, targets, probabilities, report, curves),
        comparisons=compare_heads(content, task, draws),
    )


def _singled_out(content: ReportContent, number: int) -> dict[str, list[tuple[str, float]]]:
    """The cases to show for each task."""
    found = {SEGMENTATION: worst_segmented(content, number)}
    if content.class_rows:
        found |= {name: worst_classified(content, task, number) for name, task in content.tasks.items()}
    return {name: cases for name, cases in found.items() if cases}


def _pictures(content: ReportContent, singled_out: Mapping[str, Sequence[tuple[str, float]]]) -> dict[tuple[str, str], CasePicture]:
    """All pictures, each case read once and forgotten again."""
    purposes: dict[str, list[str]] = {}
    for name, cases in singled_out.items():
        for identifier, _ in cases:
            purposes.setdefault(identifier, []).append(name)
    pictures: dict[tuple[str, str], CasePicture] = {}
    is_colour = content.dataset_json.get("file_ending") in COLOUR_ENDINGS
    for identifier, names in purposes.items():
        files = content.files[identifier]
        if not files.images or content.reader is None:
            if "pictures" not in content.missing:
                pictures |= {(name, identifier): CasePicture(notes=("There is no image of this case.",)) for name in names}
            continue
        pictures |= {(name, identifier): picture for name, picture in _pictures_of_case(content, identifier, names, is_colour).items()}
    return pictures


def _pictures_of_case(content: ReportContent, identifier: str, names: Sequence[str], is_colour: bool) -> dict[str, CasePicture]:
    """By task the picture of one case. A function of its own, so that the arrays are gone before those of the next case come."""
    try:
        case = load_case(content.files[identifier], content.reader, is_colour)
    except (RuntimeError, ValueError, OSError) as error:
        return {name: CasePicture(notes=(f"The image cannot be read: {error}",)) for name in names}
    return {name: _picture(content, case, identifier, name) for name in names}


def _picture(content: ReportContent, case: Any, identifier: str, name: str) -> CasePicture:
    """The picture of a case for one task."""
    if name == SEGMENTATION:
        return draw_case(case, content.structures, of_disagreement=True)
    evidence = [content.structures[structure] for structure in content.tasks[name].evidence if structure in content.structures]
    saliency, note = read_saliency(identifier, name, content.files[identifier], content.reader, case.image.shape[1:])
    picture = draw_case(case, content.structures, important=evidence, saliency=saliency)
    return picture if not note else CasePicture(**{**vars(picture), "notes": (*picture.notes, note)})


def predicted_volumes(content: ReportContent) -> dict[str, list[float]]:
    """Volume in ml of every structure in every predicted case that can be read; one segmentation in memory at a time."""
    volumes: dict[str, list[float]] = {name: [] for name in content.structures}
    for files in content.files.values():
        if files.prediction is None or content.reader is None:
            continue
        try:
            segmentation, properties = content.reader.read_seg(files.prediction)
        except (RuntimeError, ValueError, OSError):
            continue
        voxel_ml = float(np.prod(properties["spacing"])) / 1000
        for name, label in content.structures.items():
            volumes[name].append(float(region_or_label_to_mask(segmentation, label).sum()) * voxel_ml)
    return {name: values for name, values in volumes.items() if values}


def _commands(content: ReportContent, command: str | None) -> list[tuple[str, str]]:
    """How to do it again: reconstructed from what files record, then the command of the page itself."""
    commands = []
    dataset, plans = content.plans.get("dataset_name"), content.plans.get("plans_name")
    planner = content.plans.get("experiment_planner_used")
    if content.trainings and dataset and plans:
        configuration = content.trainings[0].configuration
        trained = [_training_command(dataset, plans, training) for training in content.trainings]
        planned = shlex.join(["nnUNetv2_plan_and_preprocess", "-d", dataset, "-pl", str(planner), "-c", configuration])
        what = (
            "Planning and training, reconstructed from plans and checkpoints. Options that leave no trace there, like -device, are missing:"
        )
        commands.append((what, "\n".join([planned, *trained])))
    if command is not None:
        commands.append(("This page:", command))
    return commands


def _training_command(dataset: str, plans: str, training: Any) -> str:
    """``nnUNetv2_train`` with what the checkpoint records."""
    words = ["nnUNetv2_train", dataset, training.configuration, training.fold, "-tr", training.trainer, "-p", plans]
    if training.seed is not None:
        words += ["--seed", str(training.seed)]
    for option, name in (("--epochs", "num_epochs"), ("--iterations_per_epoch", "num_iterations_per_epoch")):
        if name in training.run_options:
            words += [option, str(training.run_options[name])]
    return shlex.join(words)


def _versions() -> dict[str, str]:
    """What made the page."""
    names = {"nnunetv2": package_version(), **{name: package_version(name) for name in PACKAGES}}
    return {"Date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC", **names, "Python": sys.version.split()[0]}
