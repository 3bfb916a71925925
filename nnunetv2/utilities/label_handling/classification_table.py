"""``classification.csv``: the classes and probabilities of all predicted cases, one row per case.

Where a calibration was applied, the columns ``<task>_probability_<class>`` hold calibrated probabilities, and the raw ones stand in
further columns ``<task>_raw_probability_<class>`` at the end.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunetv2.utilities.file_io import atomic_path
from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

CLASSIFICATION_FILE = "classification.csv"
IDENTIFIER, ERROR = "identifier", "error"
ROUNDING = 1e-6  # how far a probability may lie outside 0 to 1

CaseProbabilities = Mapping[str, np.ndarray]  # by task name, (K,)


def part_file(file: Path, part_id: int) -> Path:
    """Where one of several processes writes its rows: ``classification_part<ID>.csv``."""
    return file.with_name(f"{file.stem}_part{part_id}{file.suffix}")


def columns(tasks: Mapping[str, ClassificationTask]) -> list[str]:
    """Header of the table without the column for errors."""
    names = [IDENTIFIER]
    for name, task in tasks.items():
        names += [name, *(f"{name}_probability_{label}" for label in task.classes)]
    return names


def raw_columns(tasks: Mapping[str, ClassificationTask]) -> list[str]:
    """The columns of raw probabilities beside calibrated ones."""
    return [f"{name}_raw_probability_{label}" for name, task in tasks.items() for label in task.classes]


def write_classification_csv(
    path: str | Path,
    tasks: Mapping[str, ClassificationTask],
    rows: Mapping[str, CaseProbabilities | str],
    raw: Mapping[str, CaseProbabilities] | None = None,
) -> None:
    """Write the table, cases in sorted order.

    Args:
        path: The file; replaced in one step.
        tasks: The tasks in the order of the columns.
        rows: By identifier the probabilities of every task, or the text of the error for a case that failed. A failed case has empty
            cells and its error in a last column, which only a table with failed cases has.
        raw: The probabilities before calibration, by identifier and task; None: ``rows`` are not calibrated.
    """
    header = columns(tasks) + ([] if raw is None else raw_columns(tasks))
    failed = any(isinstance(row, str) for row in rows.values())
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, ERROR] if failed else header)
        for identifier in sorted(rows):
            row = rows[identifier]
            if isinstance(row, str):
                writer.writerow([identifier, *[""] * (len(header) - 1), " ".join(row.split()) or "failed"])
            else:
                cells = [cell for name, task in tasks.items() for cell in _cells(task, row[name])]
                cells += [] if raw is None else [repr(float(p)) for name in tasks for p in raw[identifier][name]]
                writer.writerow([identifier, *cells, *([""] if failed else [])])


def _cells(task: ClassificationTask, probabilities: np.ndarray) -> list[str]:
    """The decision, then the probability of every class in full precision."""
    return [task.format_target(predicted_target(task, probabilities)), *(repr(float(p)) for p in probabilities)]


def read_classification_csv(
    path: str | Path, tasks: Mapping[str, ClassificationTask], *, raw: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities ``(K,)`` by identifier and task; cases that failed are left out.

    Args:
        path: The table.
        tasks: Its tasks.
        raw: The probabilities before calibration, in a table that has them.

    Raises:
        ValueError: If columns are missing, a case stands there twice or a cell is no number; names the file and the line.
    """
    return {name: row for name, row in read_classification_rows(path, tasks, raw=raw).items() if not isinstance(row, str)}


def has_raw_columns(path: str | Path, tasks: Mapping[str, ClassificationTask]) -> bool:
    """Whether a table holds probabilities before calibration as well."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        return set(raw_columns(tasks)) <= set(csv.DictReader(file).fieldnames or [])


def read_classification_rows(
    path: str | Path, tasks: Mapping[str, ClassificationTask], *, raw: bool = False
) -> dict[str, dict[str, np.ndarray] | str]:
    """Like :func:`read_classification_csv`, with the error text of cases that failed."""
    rows: dict[str, dict[str, np.ndarray] | str] = {}
    kind = "raw_probability" if raw and has_raw_columns(path, tasks) else "probability"
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns(tasks) if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: the columns {missing} are missing. Found {reader.fieldnames}.")
        for row in reader:
            identifier = row[IDENTIFIER]
            if identifier in rows:
                raise ValueError(f"{path}, line {reader.line_num}: the case {identifier} stands there twice.")
            try:
                rows[identifier] = row.get(ERROR) or {name: _probabilities(task, row, kind) for name, task in tasks.items()}
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {reader.line_num}: case {identifier} has a probability that is no number from 0 to 1."
                ) from error
    return rows


def _probabilities(task: ClassificationTask, row: Mapping[str, str], kind: str) -> np.ndarray:
    """Those of one task, ``(K,)``."""
    values = np.array([float(row[f"{task.name}_{kind}_{label}"]) for label in task.classes])
    if not ((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all():
        raise ValueError
    return values


def join_parts(file: Path, tasks: Mapping[str, ClassificationTask], num_parts: int) -> bool:
    """Write the whole table once the files of all parts are there.

    Two parts that end at the same moment both write it, with the same content.

    Returns:
        Whether all parts were there.
    """
    parts = [part_file(file, part_id) for part_id in range(num_parts)]
    if not all(part.is_file() for part in parts):
        return False
    rows: dict[str, dict[str, np.ndarray] | str] = {}
    raw: dict[str, dict[str, np.ndarray]] = {}
    for part in parts:
        rows.update(read_classification_rows(part, tasks))
        raw.update(read_classification_csv(part, tasks, raw=True))
    write_classification_csv(file, tasks, rows, raw if any(has_raw_columns(part, tasks) for part in parts) else None)
    return True
