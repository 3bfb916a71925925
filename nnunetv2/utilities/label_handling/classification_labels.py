"""Case-level classes: the tasks that a ``dataset.json`` declares and the labels that ``labels.csv`` gives.

A target is an int (multiclass, ordinal: index of the class), a float32 array of 0 and 1 (multilabel: one entry per class) or
None (unknown).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2.utilities.file_io import atomic_path

TASK_TYPES = ("multiclass", "multilabel", "ordinal")
RESERVED_TASK_NAMES = ("identifier", "error")  # other columns of the tables
SEPARATOR = ";"  # between the classes of a multilabel cell
NO_CLASS = "none"  # multilabel cell that says: none of the classes
LABELS_FILE, GROUPS_FILE = "labels.csv", "groups.csv"

Target = int | np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """One task of the ``classification`` part of a ``dataset.json``."""

    name: str
    classes: tuple[str, ...]  # in order; indices are targets
    type: str = "multiclass"
    evidence: tuple[str, ...] = ()  # names of structures that show the class; empty: the whole image
    context: tuple[str, ...] = ()  # names of structures with weak evidence
    flip_sensitive_axes: tuple[int, ...] = ()  # axes as stored in the file, x=0, y=1, z=2
    weight: float = 1.0  # factor of the loss
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys unknown to this version, written back unchanged

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("\n".join(f"classification task {self.name!r}: {problem}" for problem in problems))

    def _problems(self) -> list[str]:
        """What contradicts the format."""
        problems = []
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in RESERVED_TASK_NAMES:
            problems.append(f"a task's name is a Python identifier other than {', '.join(RESERVED_TASK_NAMES)}")
        if self.type not in TASK_TYPES:
            problems.append(f"`type` is {self.type!r}, expected one of {', '.join(TASK_TYPES)}")
        fewest = 1 if self.type == "multilabel" else 2
        if len(self.classes) < fewest:
            problems.append(f"`classes` has {len(self.classes)} entries, expected {fewest} or more")
        for name in self.classes:
            if not isinstance(name, str) or not name.strip() or name != name.strip() or SEPARATOR in name:
                problems.append(f"class name {name!r} must be text, not empty, without {SEPARATOR!r} and without blanks at its ends")
        repeated = [str(name) for name, count in Counter(map(str, self.classes)).items() if count > 1]
        if repeated:
            problems.append(f"class names repeat: {', '.join(repeated)}")
        if self.type == "multilabel" and NO_CLASS in self.classes:
            problems.append(f"{NO_CLASS!r} is no class name here: in labels.csv it says that no class is present")
        if any(isinstance(axis, bool) or axis not in (0, 1, 2) for axis in self.flip_sensitive_axes):
            problems.append(f"`flip_sensitive_axes` is {list(self.flip_sensitive_axes)}, expected axes of the file: 0 (x), 1 (y), 2 (z)")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)) or not 0 <= self.weight < float("inf"):
            problems.append(f"`weight` is {self.weight!r}, expected a number of 0 or more")
        return problems

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def num_logits(self) -> int:
        """Outputs of the head: one for each class, for ordinal one for each step between classes."""
        return self.num_classes - 1 if self.is_ordinal else self.num_classes

    @property
    def is_multilabel(self) -> bool:
        return self.type == "multilabel"

    @property
    def is_ordinal(self) -> bool:
        return self.type == "ordinal"

    def parse_cell(self, cell: str) -> Target:
        """The target that a cell of ``labels.csv`` gives; None for an empty one.

        Raises:
            ValueError: If the cell names an unknown class.
        """
        cell = cell.strip()
        if not cell:
            return None
        if not self.is_multilabel:
            return self._class_index(cell)
        target = np.zeros(self.num_classes, np.float32)
        if cell != NO_CLASS:
            for name in cell.split(SEPARATOR):
                target[self._class_index(name.strip())] = 1
        return target

    def format_target(self, target: Target) -> str:
        """The cell of a target: class name, names joined, ``none`` or empty."""
        if target is None:
            return ""
        if not self.is_multilabel:
            return self.classes[int(target)]
        return SEPARATOR.join(name for name, present in zip(self.classes, target, strict=True) if present) or NO_CLASS

    def _class_index(self, text: str) -> int:
        """Index of a class from its name, or from its index where no class is named like a number."""
        if text in self.classes:
            return self.classes.index(text)
        if not any(_is_number(name) for name in self.classes) and _is_number(text):
            number = float(text)
            if number.is_integer() and 0 <= number < self.num_classes:
                return int(number)
        raise ValueError(f"{text!r} is no class of {self.name}, expected one of {', '.join(self.classes)}")

    @classmethod
    def from_dict(cls, name: str, content: Mapping[str, Any]) -> ClassificationTask:
        """A task from its entry in ``dataset.json`` or in a checkpoint."""
        if not isinstance(content, Mapping):
            raise ValueError(f"classification task {name!r}: expected an object with `classes`, found {content!r}")
        known = {"classes", "type", "evidence", "context", "flip_sensitive_axes", "weight"}
        values = {key: value for key, value in content.items() if key in known}
        for key in ("classes", "evidence", "context", "flip_sensitive_axes"):
            value = values.get(key)
            if value is None:
                values.pop(key, None)
            elif isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
                raise ValueError(f"classification task {name!r}: `{key}` is {value!r}, expected a list")
            else:
                values[key] = tuple(value)
        if "classes" not in values:
            raise ValueError(f"classification task {name!r}: `classes` is missing, expected a list of class names")
        return cls(name=name, extra={key: value for key, value in content.items() if key not in known}, **values)

    def to_dict(self) -> dict[str, Any]:
        """The entry that ``from_dict`` reads."""
        return {
            **self.extra,
            "type": self.type,
            "classes": list(self.classes),
            "evidence": list(self.evidence),
            "context": list(self.context),
            "flip_sensitive_axes": list(self.flip_sensitive_axes),
            "weight": self.weight,
        }


def classification_tasks(dataset_json: Mapping[str, Any]) -> dict[str, ClassificationTask]:
    """The tasks of a dataset in order; empty without ``classification``.

    Raises:
        ValueError: With every problem of every task.
    """
    tasks, problems = _parse_tasks(dataset_json)
    if problems:
        raise ValueError("dataset.json:\n" + "\n".join(problems))
    return tasks


def _parse_tasks(dataset_json: Mapping[str, Any]) -> tuple[dict[str, ClassificationTask], list[str]]:
    """The tasks that can be understood, and every problem."""
    declared = dataset_json.get("classification")
    if not declared:
        return {}, []
    if not isinstance(declared, Mapping):
        return {}, [f"`classification` in dataset.json is {declared!r}, expected an object of tasks by name."]
    tasks, problems = {}, []
    structures = [label for label in dataset_json.get("labels", {}) if label != "ignore"]
    for name, content in declared.items():
        try:
            tasks[name] = ClassificationTask.from_dict(name, content)
        except ValueError as error:
            problems += str(error).splitlines()
        for key in ("evidence", "context"):
            named = content.get(key) if isinstance(content, Mapping) else None
            unknown = [structure for structure in named if structure not in structures] if isinstance(named, (list, tuple)) else []
            if unknown:
                problems.append(
                    f"classification task {name!r}: `{key}` names {', '.join(map(repr, unknown))}, "
                    f"expected names of `labels`: {', '.join(structures)}"
                )
    return tasks, problems


def structure_values(names: Sequence[str], dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Sorted label values of structures, regions flattened."""
    values: set[int] = set()
    for name in names:
        value = dataset_json["labels"][name]
        values.update(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
    return tuple(sorted(values))


@dataclass(frozen=True)
class CaseLabels:
    """Targets by case and task; a case without a row is unknown in every task."""

    tasks: Mapping[str, ClassificationTask] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Target]] = field(default_factory=dict)

    def target(self, identifier: str, task_name: str) -> Target:
        """The target of a case, None if unknown."""
        return self.rows.get(str(identifier), {}).get(task_name)

    def class_counts(self, identifiers: Iterable[str] | None = None) -> dict[str, dict[str, int]]:
        """By task the number of cases of each class, then under ``unknown`` those without a label.

        Args:
            identifiers: Cases to count; None: those with a row.
        """
        identifiers = list(self.rows if identifiers is None else identifiers)
        counts = {}
        for name, task in self.tasks.items():
            targets = [self.target(identifier, name) for identifier in identifiers]
            known = [t for t in targets if t is not None]
            if task.is_multilabel:
                present = np.sum(known, axis=0) if known else np.zeros(task.num_classes)
            else:
                present = np.bincount(known, minlength=task.num_classes) if known else np.zeros(task.num_classes)
            counts[name] = {c: int(n) for c, n in zip(task.classes, present, strict=True)} | {"unknown": len(targets) - len(known)}
        return counts

    @classmethod
    def load(cls, folder: str | Path, dataset_json: Mapping[str, Any]) -> CaseLabels:
        """The labels of a raw or preprocessed dataset; empty without ``classification``.

        Raises:
            ValueError: With every problem of the table.
        """
        tasks = classification_tasks(dataset_json)
        if not tasks:
            return cls()
        rows, problems = _parse_rows(_label_rows(Path(folder), dataset_json), tasks)
        if problems:
            raise ValueError(f"Case labels of {folder}:\n" + "\n".join(problems))
        return cls(tasks, rows)

    @classmethod
    def read_csv(cls, path: str | Path, tasks: Mapping[str, ClassificationTask]) -> CaseLabels:
        """The labels in a table of the form of ``labels.csv``, wherever it lies.

        Raises:
            FileNotFoundError: If it does not exist.
            ValueError: With every problem of the table.
        """
        rows, problems = _parse_rows(_rows_of_table(Path(path), tasks), tasks)
        if problems:
            raise ValueError(f"Case labels in {path}:\n" + "\n".join(problems))
        return cls(dict(tasks), rows)

    def write_csv(self, path: str | Path) -> None:
        """Write the normalised table: class names, cases sorted."""
        rows = [[i, *(task.format_target(self.target(i, name)) for name, task in self.tasks.items())] for i in sorted(self.rows)]
        _write_table(Path(path), ["identifier", *self.tasks], rows)


def load_case_groups(folder: str | Path, dataset_json: Mapping[str, Any]) -> dict[str, str] | None:
    """Group (patient) of each case, from ``case_groups`` or ``groups.csv``; None without any.

    Without ``classification`` a ``groups.csv`` is ignored unless ``case_groups`` is given.

    Raises:
        ValueError, FileNotFoundError: Naming the file.
    """
    folder, declared = Path(folder), dataset_json.get("case_groups")
    if isinstance(declared, Mapping):
        return {str(identifier): str(group) for identifier, group in declared.items()}
    if declared is None and not dataset_json.get("classification"):
        return None
    path = _table_path(folder, declared, GROUPS_FILE)
    return None if path is None else read_groups_csv(path)


def read_groups_csv(path: str | Path) -> dict[str, str]:
    """Group (patient) of each case from a table of the form of ``groups.csv``.

    Raises:
        ValueError, FileNotFoundError: Naming the file.
    """
    path = Path(path)
    (_, header), *rows = _read_table(path) or [(1, [])]
    if len(header) < 2 or header[0].strip() != "identifier":
        raise ValueError(
            f"{path}: the header is {','.join(header)!r}, expected identifier and a column with the group, with a comma between."
        )
    groups, problems = {}, []
    for line, row in rows:
        identifier, group = row[0].strip(), row[1].strip() if len(row) > 1 else ""
        if not identifier:
            problems.append(f"line {line}: the identifier is empty")
        elif not group:
            problems.append(f"line {line}: case {identifier} has no group")
        elif identifier in groups:
            problems.append(f"line {line}: case {identifier} stands there twice")
        groups[identifier] = group
    if problems:
        raise ValueError(f"{path}:\n" + "\n".join(problems))
    return groups


def find_label_problems(folder: str | Path, dataset_json: Mapping[str, Any], identifiers: Iterable[str]) -> tuple[list[str], list[str]]:
    """Everything wrong with the classes of a raw dataset, as errors and warnings.

    Args:
        folder: Raw dataset folder.
        dataset_json: Its content.
        identifiers: Cases that have images.
    """
    folder, identifiers = Path(folder), [str(i) for i in identifiers]
    errors, warnings = [], []
    known_cases = set(identifiers)
    try:
        groups = load_case_groups(folder, dataset_json)
        if groups is not None:
            errors += [f"case {i}: in the groups, but there is no image of it" for i in sorted(set(groups) - known_cases)]
            errors += [f"case {i}: has no group; add it to {GROUPS_FILE}" for i in sorted(known_cases - set(groups))]
    except (ValueError, OSError) as error:
        errors.append(str(error))
    tasks, problems = _parse_tasks(dataset_json)
    errors += problems
    if not tasks:
        return errors, warnings
    try:
        table = _label_rows(folder, dataset_json)
    except (ValueError, OSError) as error:
        return [*errors, str(error)], warnings
    rows, problems = _parse_rows(table, tasks)
    errors += problems
    errors += [f"case {i}: has class labels, but there is no image of it" for i in sorted(set(rows) - known_cases)]
    labels = CaseLabels(tasks, rows)
    for name, counts in labels.class_counts(identifiers).items():
        if name not in table.columns:  # said already
            continue
        counts = {c: n for c, n in counts.items() if c in tasks[name].classes}
        used = [c for c, n in counts.items() if n > 0]
        absent = [c for c in counts if c not in used]
        if absent:
            errors.append(
                f"classification task {name!r}: no case has the class {', '.join(absent)}; remove it from `classes` or label cases"
            )
        if len(used) == 1 and not tasks[name].is_multilabel:
            errors.append(f"classification task {name!r}: only the class {used[0]} is in use, so there is nothing to learn")
    unlabelled = sum(all(labels.target(i, name) is None for name in tasks) for i in identifiers)
    if unlabelled:
        warnings.append(f"{unlabelled} of {len(identifiers)} cases have no class label for any task; they train the segmentation only")
    return errors, warnings


def readable_labels(folder: str | Path, dataset_json: Mapping[str, Any]) -> CaseLabels:
    """The labels of a dataset as far as they make sense, for reports; :meth:`CaseLabels.load` refuses tables with problems."""
    tasks, _ = _parse_tasks(dataset_json)
    try:
        return CaseLabels(tasks, _parse_rows(_label_rows(Path(folder), dataset_json), tasks)[0])
    except (ValueError, OSError):
        return CaseLabels()


def class_table(case_labels: CaseLabels, identifiers: Iterable[str]) -> str:
    """The number of cases of every class by task, to print."""
    lines = []
    for name, counts in case_labels.class_counts(identifiers).items():
        width = max(map(len, counts))
        lines.append(f"{name} ({case_labels.tasks[name].type})")
        lines += [f"  {label:<{width}} {count:6d}" for label, count in counts.items()]
    return "\n".join(lines)


def copy_label_tables(
    raw_folder: str | Path, preprocessed_folder: str | Path, dataset_json: Mapping[str, Any], identifiers: Iterable[str]
) -> None:
    """Write the normalised ``labels.csv`` and ``groups.csv`` of a raw dataset into its preprocessed folder.

    Raises:
        ValueError: With every problem of the tables; nothing is written then.
    """
    identifiers = [str(i) for i in identifiers]
    tasks = classification_tasks(dataset_json)
    labels = CaseLabels.load(raw_folder, dataset_json) if tasks else None
    groups = load_case_groups(raw_folder, dataset_json)
    problems = [
        f"case {i}: has class labels, but there is no image of it" for i in sorted(set(labels.rows if labels else ()) - set(identifiers))
    ]
    if groups is not None:
        problems += [f"case {i}: has no group; add it to {GROUPS_FILE}" for i in sorted(set(identifiers) - set(groups))]
    if problems:
        raise ValueError(
            f"Case labels of {raw_folder}:\n" + "\n".join(problems) + "\n--verify_dataset_integrity lists all problems of the dataset."
        )
    Path(preprocessed_folder).mkdir(parents=True, exist_ok=True)
    if labels is not None:
        labels.write_csv(Path(preprocessed_folder) / LABELS_FILE)
    if groups is not None:
        _write_table(Path(preprocessed_folder) / GROUPS_FILE, ["identifier", "group"], [[i, groups[i]] for i in sorted(identifiers)])


class _LabelTable(NamedTuple):
    """A table as text."""

    source: str
    columns: list[str]  # without the identifier
    rows: list[tuple[str, str, dict[str, str]]]  # place, identifier, cell by column


def _label_rows(folder: Path, dataset_json: Mapping[str, Any]) -> _LabelTable:
    """The table that holds the labels."""
    declared = dataset_json.get("case_labels")
    is_preprocessed_copy = not (folder / "imagesTr").is_dir() and "dataset" not in dataset_json and (folder / LABELS_FILE).is_file()
    if isinstance(declared, Mapping) and not is_preprocessed_copy:
        wrong = [str(identifier) for identifier, cells in declared.items() if not isinstance(cells, Mapping)]
        if wrong:
            raise ValueError(
                f"`case_labels` in dataset.json: expected an object of labels by task for each case; not so for {', '.join(wrong)}."
            )
        rows = [("case_labels", str(i), {str(task): _cell_text(value) for task, value in cells.items()}) for i, cells in declared.items()]
        return _LabelTable("case_labels", [str(name) for name in dataset_json["classification"]], rows)
    path = _table_path(folder, None if is_preprocessed_copy or isinstance(declared, Mapping) else declared, LABELS_FILE)
    if path is None:
        raise FileNotFoundError(
            f"dataset.json declares `classification`, but {folder / LABELS_FILE} does not exist. Write it with the columns "
            f"identifier,{','.join(dataset_json['classification'])}, or name another file in `case_labels`."
        )
    return _rows_of_table(path, dataset_json["classification"])


def _rows_of_table(path: Path, task_names: Collection[str]) -> tuple[str, list[str], list[tuple[str, str, dict[str, str]]]]:
    """What :func:`_label_rows` returns, of one file."""
    table = _read_table(path)
    header = [column.strip() for column in table[0][1]] if table else []
    if not header or header[0] != "identifier":
        raise ValueError(
            f"{path}: the header is {','.join(header)!r}, expected it to begin with identifier, with commas between the columns."
        )
    repeated = [column for column, count in Counter(header).items() if count > 1 and column in task_names]
    if repeated:
        raise ValueError(f"{path}: the header has more than one column {', '.join(repeated)}. Leave one of each.")
    rows = []
    for line, row in table[1:]:
        cells = dict(zip(header[1:], row[1:]))
        rows.append((f"{path.name} line {line}", row[0].strip(), cells))
    return _LabelTable(str(path), header[1:], rows)


def _parse_rows(table: _LabelTable, tasks: Mapping[str, ClassificationTask]) -> tuple[dict[str, dict[str, Target]], list[str]]:
    """Targets by case and task, and every problem."""
    name, columns, rows = table
    problems = [f"{name}: the column {task} is missing from the header" for task in tasks if task not in columns]
    targets: dict[str, dict[str, Target]] = {}
    for place, identifier, cells in rows:
        if not identifier:
            problems.append(f"{place}: the identifier is empty")
            continue
        if identifier in targets:
            problems.append(f"{place}: case {identifier} stands there twice")
            continue
        targets[identifier] = {}
        for task in tasks.values():
            try:
                targets[identifier][task.name] = task.parse_cell(cells.get(task.name) or "")
            except ValueError as error:
                problems.append(f"{place}: case {identifier}: {error}")
    return targets, problems


def _table_path(folder: Path, declared: str | None, default: str) -> Path | None:
    """The declared file, which must exist, or the default one if it does."""
    if declared is None:
        return folder / default if (folder / default).is_file() else None
    if (folder / declared).is_file():
        return folder / declared
    if (folder / default).is_file() and not (folder / "imagesTr").is_dir():
        return folder / default  # the preprocessed folder holds the copy under the default name
    raise FileNotFoundError(f"dataset.json names the table {declared!r}, which does not exist in {folder}.")


def _read_table(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of the rows of a CSV file, blank ones left out."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text with commas: {error}. Save it as CSV UTF-8.") from error


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _cell_text(value: Any) -> str:
    """A label given inline as the cell it would be; a list holds the classes of a multilabel task."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return SEPARATOR.join(map(str, value)) or NO_CLASS
    return str(value)


def _is_number(text: str) -> bool:
    """Whether a text is a plain number."""
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False
