"""Scores of a table of predicted classes: files in, files out."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.evaluation.bootstrap import DRAWS, LEVEL, SEED, bootstrap_intervals
from nnunetv2.evaluation.classification_figures import interval_text, plot_confusion, plot_reliability, plot_roc
from nnunetv2.evaluation.classification_metrics import CALIBRATION_BINS, case_score, known_cases, reliability, task_report
from nnunetv2.utilities.file_io import atomic_path, load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import (
    GROUPS_FILE,
    CaseLabels,
    ClassificationTask,
    classification_tasks,
    read_groups_csv,
)
from nnunetv2.utilities.label_handling.classification_table import read_classification_rows

METRICS_JSON, METRICS_CSV = "classification_metrics.json", "classification_metrics.csv"
CASES_SHOWN = 10
CSV_COLUMNS = ("task", "class", "n", "score", "value", "low", "high", "draws")


def evaluate_classification(
    prediction_file: str | Path,
    reference_file: str | Path,
    dataset_json_file: str | Path,
    output_folder: str | Path,
    groups_file: str | Path | None = None,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """Score predicted classes and write ``classification_metrics.json``, ``.csv`` and for each task three pictures.

    Args:
        prediction_file: Table of the form of ``classification.csv``.
        reference_file: Table of the form of ``labels.csv``.
        dataset_json_file: Declares the tasks.
        output_folder: Created.
        groups_file: Table of the form of ``groups.csv``; None: ``case_groups`` of the dataset or ``groups.csv`` beside the reference,
            if there is one, else every case counts for itself.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The content of ``classification_metrics.json``.

    Raises:
        ValueError: If a table is wrong, a case has no group, or no predicted case has a known label.
    """
    dataset_json = load_json(dataset_json_file)
    tasks = classification_tasks(dataset_json)
    if not tasks:
        raise ValueError(f"{dataset_json_file} declares no classes. Expected a `classification` entry with the tasks of the tables.")
    rows = read_classification_rows(prediction_file, tasks)
    case_labels = CaseLabels.read_csv(reference_file, tasks)
    groups = find_groups(groups_file, Path(reference_file), dataset_json)
    table = {identifier: row for identifier, row in rows.items() if not isinstance(row, str)}
    cases = {
        "scored": sorted(set(table) & set(case_labels.rows)),
        "not_in_reference": sorted(set(rows) - set(case_labels.rows)),
        "not_predicted": sorted(set(case_labels.rows) - set(rows)),
        "failed": {identifier: row for identifier, row in sorted(rows.items()) if isinstance(row, str)},
    }
    _check_something_in_common(cases, rows, case_labels, prediction_file, reference_file)
    scored = {identifier: table[identifier] for identifier in cases["scored"]}
    result = {
        "prediction_file": str(prediction_file),
        "reference_file": str(reference_file),
        "cases": cases,
        "bootstrap": {"level": LEVEL, "draws": draws, "seed": seed, "resampled": "cases" if groups is None else "groups"},
        "calibration_bins": CALIBRATION_BINS,
        **evaluate_tables(tasks, scored, case_labels, groups, draws=draws, seed=seed),
    }
    output_folder = Path(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    for name, task in tasks.items():
        if result["tasks"][name]["n"]:
            _plot(output_folder, task, result["tasks"][name], *known_cases(name, scored, case_labels)[1:])
    _write_csv(output_folder / METRICS_CSV, result["tasks"])
    save_json(result, output_folder / METRICS_JSON)
    return result


def evaluate_tables(
    tasks: Mapping[str, ClassificationTask],
    table: Mapping[str, Mapping[str, np.ndarray]],
    case_labels: CaseLabels,
    groups: Mapping[str, str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """Scores with intervals, without any file.

    Args:
        tasks: The tasks by name.
        table: Probabilities ``(K,)`` by identifier and task.
        case_labels: What is true.
        groups: Group of every case; None: every case is its own.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``{"tasks": {NAME: {"type", "n", "unknown", "unknown_cases", "groups", "scores", "per_class", "confusion", "intervals",
        "reliability"}}, "case_score"}``.
    """
    missing = sorted(set(table) - set(groups)) if groups is not None else []
    if missing:
        raise ValueError(f"{len(missing)} cases have no group: {_some(missing)}. Add them to the table of groups.")
    reports = {}
    for name, task in tasks.items():
        known, targets, probabilities = known_cases(name, table, case_labels)
        groups_of_known = [groups[identifier] if groups is not None else identifier for identifier in known]
        reports[name] = {
            "type": task.type,
            "n": len(known),
            "unknown": len(table) - len(known),
            "unknown_cases": sorted(set(table) - set(known)),
            "groups": len(set(groups_of_known)),
            **task_report(task, targets, probabilities),
            "intervals": bootstrap_intervals(task, targets, probabilities, groups_of_known, draws, seed),
            "reliability": reliability(task, targets, probabilities),
        }
    return {"tasks": reports, "case_score": case_score(tasks, reports)}


def summary_text(result: Mapping[str, Any]) -> str:
    """The scores of :func:`evaluate_classification` as a table to print, and every case that was not scored."""
    lines = [f"{len(result['cases']['scored'])} cases scored"]
    notes = (
        ("not_in_reference", "predicted, but not in the reference"),
        ("not_predicted", "in the reference, but not predicted"),
        ("failed", "failed in the prediction"),
    )
    for key, meaning in notes:
        if result["cases"][key]:
            lines.append(f"{len(result['cases'][key])} {meaning}: {_some(result['cases'][key])}")
    for name, report in result["tasks"].items():
        lines += ["", *_task_lines(name, report)]
    resampled = "groups of cases" if result["bootstrap"]["resampled"] == "groups" else "cases"
    lines += ["", f"In brackets: 95 % intervals from {result['bootstrap']['draws']} bootstrap draws of {resampled}."]
    return "\n".join(lines)


def _task_lines(name: str, report: Mapping[str, Any]) -> list[str]:
    """One task of the printed table."""
    lines = [f"{name} ({report['type']}): {report['n']} cases"]
    if report["unknown"]:
        lines.append(f"  {report['unknown']} without a known label: {_some(report['unknown_cases'])}")
    if not report["n"]:
        return lines
    intervals = report["intervals"]
    lines += [f"  {score:<24} {value:6.3f}{interval_text(intervals['scores'][score], 3)}" for score, value in report["scores"].items()]
    shown = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
    width = max(len("class"), *map(len, report["per_class"]))
    lines.append(f"  {'class':<{width}} {'n':>5}  " + " ".join(f"{score:<17}" for score in shown).rstrip())
    for label, values in report["per_class"].items():
        cells = [f"{values[score]:.2f}{interval_text(intervals['per_class'][label][score])}" for score in shown]
        lines.append(f"  {label:<{width}} {values['n']:5d}  " + " ".join(f"{cell:<17}" for cell in cells).rstrip())
    return lines


def find_groups(groups_file: str | Path | None, reference_file: Path, dataset_json: Mapping[str, Any]) -> dict[str, str] | None:
    """Group of every case from the file that is given, from the dataset or from beside the reference; None without any."""
    if groups_file is not None:
        return read_groups_csv(groups_file)
    declared = dataset_json.get("case_groups")
    if isinstance(declared, Mapping):
        return {str(identifier): str(group) for identifier, group in declared.items()}
    candidates = [reference_file.parent / name for name in (declared, GROUPS_FILE) if name]
    found = next((file for file in candidates if file.is_file()), None)
    return None if found is None else read_groups_csv(found)


def _check_something_in_common(
    cases: Mapping[str, Any],
    rows: Mapping[str, Any],
    case_labels: CaseLabels,
    prediction_file: str | Path,
    reference_file: str | Path,
) -> None:
    """Raise ValueError unless some predicted case has a known label."""
    if any(case_labels.target(identifier, task) is not None for identifier in cases["scored"] for task in case_labels.tasks):
        return
    failed = f" {len(cases['failed'])} of them failed." if cases["failed"] else ""
    raise ValueError(
        f"No predicted case has a known label, so there is nothing to score. {prediction_file} has {len(rows)} cases "
        f"({_some(rows)}).{failed} {reference_file} has {len(case_labels.rows)} ({_some(case_labels.rows)}). "
        "The identifiers must be the same in both, without channel number and file ending."
    )


def _plot(
    folder: Path, task: ClassificationTask, report: Mapping[str, Any], targets: Sequence[Any], probabilities: Sequence[np.ndarray]
) -> None:
    """The pictures of one task."""
    plot_confusion(folder / f"{task.name}_confusion.png", task, report)
    plot_roc(folder / f"{task.name}_roc.png", task, targets, probabilities, report, report["intervals"])
    ece = f"{report['scores']['ece']:.3f}{interval_text(report['intervals']['scores']['ece'], 3)}"
    title = f"{task.name}: reliability, {report['n']} cases\ncalibration error {ece}, Brier score {report['scores']['brier']:.3f}"
    panels = {name: {"predictions (95 % intervals)": bins} for name, bins in report["reliability"].items()}
    plot_reliability(folder / f"{task.name}_reliability.png", title, panels)


def _write_csv(path: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """One line for every score; empty cells where something cannot be computed."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for name, report in reports.items():
            for score, value in report["scores"].items():
                writer.writerow([name, "", report["n"], score, *_cells(value, report["intervals"]["scores"][score])])
            for label, values in report["per_class"].items():
                for score, interval in report["intervals"]["per_class"][label].items():
                    writer.writerow([name, label, values["n"], score, *_cells(values[score], interval)])


def _cells(value: float, interval: Mapping[str, float]) -> list[str]:
    """Value, low, high and number of draws."""
    return ["" if np.isnan(number) else repr(float(number)) for number in (value, interval["low"], interval["high"])] + [interval["draws"]]


def _some(identifiers: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(identifiers)
    rest = len(names) - CASES_SHOWN
    return ", ".join(names[:CASES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
