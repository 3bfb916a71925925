"""Calibrates a trained model on the validation cases of its folds: files in, ``classification_calibration.json`` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.evaluation.accumulate_cv_results import option_of, validated_checkpoint
from nnunetv2.evaluation.calibration_fit import fit_calibration, mean_log_loss
from nnunetv2.evaluation.classification_figures import plot_reliability
from nnunetv2.evaluation.classification_metrics import known_cases, reliability
from nnunetv2.evaluation.validation_tables import (
    CROSS_VALIDATION_FILE,
    FINAL_CHECKPOINT,
    VALIDATION,
    heads_that_count,
    validation_folder_name,
)
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.class_calibration import CALIBRATION_FILE, ClassCalibration, TaskCalibration
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import CLASSIFICATION_FILE, read_classification_csv

AGGREGATION = "evidence"  # of the validation at the end of a training
CASES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class OutOfFoldTable:
    """Every validation case once, predicted by the model of a fold that did not train on it."""

    rows: dict[str, dict[str, np.ndarray]]  # raw probabilities (K,) by identifier and task
    fold_of: dict[str, int]  # by identifier
    folds: tuple[int, ...]  # that have a table
    notes: tuple[str, ...]  # what is missing
    heads: str  # which set of heads predicted them


def read_out_of_fold_table(
    model_folder: str | Path, tasks: Mapping[str, ClassificationTask], number_of_folds: int | None, validation_name: str = VALIDATION
) -> OutOfFoldTable:
    """The tables ``fold_X/VALIDATION/classification.csv`` of a model folder as one.

    Fold ``all`` is left out, as it validates on its training cases.

    Args:
        model_folder: With ``fold_0``, ...
        tasks: The tasks of the model.
        number_of_folds: Of the training's split; None if unknown.
        validation_name: Folder in each fold, see :func:`validation_folder_name`.

    Raises:
        FileNotFoundError: If no fold has a table.
        ValueError: If the folder pools those of models, or if some folds have refitted heads and others none, so that their probabilities
            are of different kinds.
    """
    model_folder = Path(model_folder)
    tables = {
        file.parents[1].name.removeprefix("fold_"): file for file in model_folder.glob(f"fold_*/{validation_name}/{CLASSIFICATION_FILE}")
    }
    files = {int(fold): file for fold, file in tables.items() if fold.isdecimal()}  # not fold_all, nor a copy such as fold_0_old
    if not files and (model_folder / CROSS_VALIDATION_FILE).is_file():
        models = " and ".join(load_json(model_folder / CROSS_VALIDATION_FILE)["models"])
        raise ValueError(
            f"{model_folder} pools the validation of {models}. A calibration belongs to a model and is applied when it predicts: give the "
            "folder of the model. Members of an ensemble are calibrated one by one."
        )
    if not files:
        raise FileNotFoundError(
            f"No fold in {model_folder} has a file {validation_name}/{CLASSIFICATION_FILE}. It is written at the end of a training with "
            f"classes; for a finished one run nnUNetv2_train with --val{option_of(validation_name)}."
        )
    rows: dict[str, dict[str, np.ndarray]] = {}
    fold_of: dict[str, int] = {}
    repeated = []
    for fold, file in sorted(files.items()):
        for identifier, row in read_classification_csv(file, tasks, raw=True).items():
            if identifier in rows:
                repeated.append(identifier)
                continue
            rows[identifier], fold_of[identifier] = row, fold
    notes = []
    missing = [fold for fold in range(number_of_folds or 0) if fold not in files]
    if missing:
        notes.append(f"Of {number_of_folds} folds {', '.join(map(str, missing))} have no table; their cases do not count.")
    if repeated:
        notes.append(f"{len(repeated)} cases are validated by several folds ({_some(repeated)}); the first of them counts.")
    if (model_folder / "fold_all").is_dir():
        notes.append("Fold all is left out: it validates on its training cases.")
    heads = {fold: heads_that_count(file.parent) for fold, file in sorted(files.items())}
    if len(set(heads.values())) > 1:
        listed = ", ".join(f"fold {fold}: {name}" for fold, name in heads.items())
        raise ValueError(
            f"The tables in {model_folder} are of different heads ({listed}). Refit the heads of all folds: nnUNetv2_train ... --refit_heads"
        )
    return OutOfFoldTable(rows=rows, fold_of=fold_of, folds=tuple(sorted(files)), notes=tuple(notes), heads=next(iter(heads.values())))


def calibrate_classification(
    model_folder: str | Path,
    reference_file: str | Path | None = None,
    method: str = "temperature",
    *,
    checkpoint: str = FINAL_CHECKPOINT,
) -> tuple[ClassCalibration, tuple[str, ...]]:
    """Fit the calibration of a model, and write it and a reliability plot for each task into the model folder.

    It belongs to the checkpoint that predicted these cases, and is not applied to the predictions of others.

    A task whose log loss on held-out folds does not become smaller keeps its raw probabilities.

    Args:
        model_folder: ``TRAINER__PLANS__CONFIGURATION`` of a training with classes.
        reference_file: Table of the form of ``labels.csv``; None: the labels in the preprocessed dataset.
        method: ``temperature`` or ``vector``, see :func:`~nnunetv2.evaluation.calibration_fit.fit_calibration`.
        checkpoint: Whose validation; others than the final one are validated by ``nnUNetv2_train ... -val_chk``.

    Returns:
        The calibration, and notes about what is missing.

    Raises:
        FileNotFoundError, ValueError: If there is nothing to fit on.
        RuntimeError: If the folds were validated with different checkpoints.
    """
    model_folder, validation_name = Path(model_folder), validation_folder_name(checkpoint)
    dataset_json = load_json(model_folder / "dataset.json")
    tasks = classification_tasks(dataset_json)
    if not tasks:
        raise ValueError(f"{model_folder / 'dataset.json'} declares no classes, so there is nothing to calibrate.")
    dataset_name = load_json(model_folder / "plans.json")["dataset_name"]
    preprocessed = Path(nnUNet_preprocessed) / dataset_name if nnUNet_preprocessed.is_set() else None
    if reference_file is not None:
        case_labels = CaseLabels.read_csv(reference_file, tasks)
    elif preprocessed is not None and preprocessed.is_dir():
        case_labels = CaseLabels.load(preprocessed, dataset_json)
    else:
        raise FileNotFoundError(
            f"The labels of {dataset_name} are not at hand: nnUNet_preprocessed ({nnUNet_preprocessed.get()}) does not hold this dataset. "
            "Set it, or give a table with -ref."
        )
    splits = None if preprocessed is None else preprocessed / "splits_final.json"
    number_of_folds = len(load_json(splits)) if splits is not None and splits.is_file() else None
    table = read_out_of_fold_table(model_folder, tasks, number_of_folds, validation_name)
    if checkpoint == FINAL_CHECKPOINT:  # its folder may be that of another one, after --val_best
        checkpoint = validated_checkpoint(model_folder, table.folds)
    calibrations = {name: _calibrate_task(task, table, case_labels, method, model_folder) for name, task in tasks.items()}
    if not any(calibration.report["n"] for calibration in calibrations.values()):
        raise ValueError(f"No case of the tables in {model_folder} has a known label ({_some(list(table.rows))}).")
    calibration = ClassCalibration(
        method=method,
        heads=table.heads,
        aggregation=AGGREGATION,
        checkpoint=checkpoint,
        tasks=calibrations,
        fitted_on={"dataset": dataset_name, "folds": table.folds, "cases": len(table.rows), "notes": table.notes},
    )
    calibration.save(model_folder / CALIBRATION_FILE)
    return calibration, table.notes


def _calibrate_task(
    task: ClassificationTask, table: OutOfFoldTable, case_labels: CaseLabels, method: str, model_folder: Path
) -> TaskCalibration:
    """Fit one task, and draw its reliability before and after."""
    known, targets, probabilities = known_cases(task.name, table.rows, case_labels)
    fitted = fit_calibration(task, targets, probabilities, method)
    held_out, calibrated = _held_out(task, [table.fold_of[i] for i in known], targets, probabilities, method)
    if held_out is None:
        calibrated = [fitted.apply(values) for values in probabilities]
    report = {
        "n": len(known),
        "unknown": len(table.rows) - len(known),
        "log_loss_before": mean_log_loss(task, targets, probabilities),
        "log_loss_after": mean_log_loss(task, targets, [fitted.apply(values) for values in probabilities]),
        "held_out": held_out,
        **fitted.report,
    }
    if known:
        _plot(model_folder / f"classification_calibration_{task.name}.png", task, targets, probabilities, calibrated, held_out is not None)
    if held_out is not None and not fitted.is_identity and held_out["log_loss_after"] >= held_out["log_loss_before"]:
        reason = "the log loss of held-out folds does not become smaller"
        fitted = TaskCalibration.identity(task)
        report |= {"reason": reason, "log_loss_after": report["log_loss_before"]}
    return TaskCalibration(
        task_type=task.type, classes=task.classes, temperatures=fitted.temperatures, offsets=fitted.offsets, report=report
    )


def _held_out(
    task: ClassificationTask, folds: Sequence[int], targets: Sequence[Any], probabilities: Sequence[np.ndarray], method: str
) -> tuple[dict[str, Any] | None, list[np.ndarray]]:
    """Every fold calibrated by a fit on all the others: log losses and the calibrated probabilities; None with one fold only."""
    if len(set(folds)) < 2:
        return None, []
    calibrated: list[np.ndarray] = [np.empty(0)] * len(folds)
    for fold in sorted(set(folds)):
        others = [index for index, other in enumerate(folds) if other != fold]
        fitted = fit_calibration(task, [targets[i] for i in others], [probabilities[i] for i in others], method)
        for index, other in enumerate(folds):
            if other == fold:
                calibrated[index] = fitted.apply(probabilities[index])
    losses = {"log_loss_before": mean_log_loss(task, targets, probabilities), "log_loss_after": mean_log_loss(task, targets, calibrated)}
    return {"folds": sorted(set(folds)), **losses}, calibrated


def _plot(
    file: Path,
    task: ClassificationTask,
    targets: Sequence[Any],
    raw: Sequence[np.ndarray],
    calibrated: Sequence[np.ndarray],
    held_out: bool,
) -> None:
    """Reliability before and after."""
    before, after = (reliability(task, targets, probabilities) for probabilities in (raw, calibrated))
    losses = f"log loss {mean_log_loss(task, targets, raw):.3f} raw, {mean_log_loss(task, targets, calibrated):.3f} calibrated"
    how = "fitted on the other folds" if held_out else "fitted on the same cases"
    title = f"{task.name}: {len(targets)} validation cases\n{losses} ({how})"
    plot_reliability(file, title, {name: {"raw": before[name], "calibrated": after[name]} for name in before})


def summary_text(calibration: ClassCalibration, notes: Sequence[str]) -> str:
    """What was fitted, on what, and what it gains."""
    fitted_on = calibration.fitted_on
    lines = [
        f"{fitted_on['cases']} validation cases of the folds {', '.join(map(str, fitted_on['folds']))}, {calibration.checkpoint}",
        *notes,
    ]
    for name, task in calibration.tasks.items():
        report = task.report
        lines.append(f"\n{name} ({task.task_type}): {report['n']} cases with a known label, {report['unknown']} without")
        if not report["n"]:
            continue
        held_out = report["held_out"]
        if held_out is None:
            lines.append("  only one fold, so that nothing is held out: what the calibration gains on new cases is not known")
        else:
            lines.append(f"  log loss of held-out folds  {held_out['log_loss_before']:.4f} -> {held_out['log_loss_after']:.4f}")
        if task.is_identity:
            lines.append(f"  raw probabilities are kept: {report.get('reason', 'they need no change')}")
            continue
        lines.append(f"  log loss of these cases     {report['log_loss_before']:.4f} -> {report['log_loss_after']:.4f}")
        lines.append(f"  temperatures {_numbers(task.temperatures)}" + (f", offsets {_numbers(task.offsets)}" if any(task.offsets) else ""))
        if "reason" in report:
            lines.append(f"  {report['reason']}")
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    """Rounded, one if all are the same."""
    return ", ".join(f"{value:.3f}" for value in (values[:1] if len(set(values)) == 1 else values))


def _some(identifiers: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(identifiers) - CASES_SHOWN
    return ", ".join(identifiers[:CASES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
