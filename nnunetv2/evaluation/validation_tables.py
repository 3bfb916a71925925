"""The class tables that the validation of each fold leaves, found and pooled: every case once, predicted by a model that never saw it.

A fold's ``validation`` folder, and every folder that pools folds, holds ``classification.csv`` with the set of heads that counts,
``classification_<heads>.csv`` with each further set, and ``classification_summary.json``, which names the sets in this order.
``classification_<heads>_<aggregation>.csv`` are the same heads with another vote of the tiles than ``evidence``. ``validation_<name>`` is the
same for ``checkpoint_<name>.pth``, where a training was asked to validate further checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2.evaluation.classification_metrics import classification_summary
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import LABELS_FILE, CaseLabels, ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import CLASSIFICATION_FILE, read_classification_csv, write_classification_csv

CLASS_SUMMARY_FILE = "classification_summary.json"
CROSS_VALIDATION_FILE = "cross_validation.json"  # in folders that pool folds: which models and folds, and the fold of every case
JOINT_HEADS = "joint"
DEFAULT_AGGREGATION, OTHER_AGGREGATIONS = "evidence", ("mean", "max", "top3")  # as nnUNetv2_predict calls them

FINAL_CHECKPOINT = "checkpoint_final.pth"
VALIDATION = "validation"  # folder of a fold; of the final checkpoint, or with --val_best of the best one
CHECKPOINT_NAME = re.compile(r"checkpoint_(\w+)\.pth")

ClassRows = dict[str, dict[str, np.ndarray]]  # probabilities (K,) by identifier and task


@dataclass(frozen=True, kw_only=True)
class PooledTables:
    """The class tables of several folds as one for each set of heads."""

    tables: dict[str, ClassRows]  # by name, see heads_and_aggregation; the one that counts first; empty without classes
    notes: tuple[str, ...] = ()  # why there are none, or fewer than expected


def validation_folder_name(checkpoint: str) -> str:
    """Folder for the validation of a checkpoint: ``checkpoint_best_joint.pth`` -> ``validation_best_joint``, the final one's ``validation``.

    Raises:
        ValueError: If the name is no ``checkpoint_<name>.pth``.
    """
    if checkpoint == FINAL_CHECKPOINT:
        return VALIDATION
    match = CHECKPOINT_NAME.fullmatch(checkpoint)
    if match is None:
        raise ValueError(
            f"{checkpoint!r} is no name of a checkpoint. Give one such as checkpoint_best_classification.pth, without its folder."
        )
    return f"{VALIDATION}_{match[1]}"


def heads_that_count(validation: Path) -> str:
    """Which heads predicted the ``classification.csv`` of a folder: those that the summary beside it names first."""
    summary = validation / CLASS_SUMMARY_FILE
    return next(iter(load_json(summary)), JOINT_HEADS) if summary.is_file() else JOINT_HEADS


def class_tables_of_folder(validation: Path, tasks: Mapping[str, ClassificationTask]) -> dict[str, ClassRows]:
    """The class tables of one folder by set of heads, the one that counts first; probabilities before calibration."""
    if not tasks or not (validation / CLASSIFICATION_FILE).is_file():
        return {}
    summary = validation / CLASS_SUMMARY_FILE
    named = list(load_json(summary)) if summary.is_file() else []
    tables = {named[0] if named else JOINT_HEADS: read_classification_csv(validation / CLASSIFICATION_FILE, tasks, raw=True)}
    for name in named[1:] or [JOINT_HEADS]:
        file = validation / table_name(name)
        if name not in tables and file.is_file():
            tables[name] = read_classification_csv(file, tasks, raw=True)
    return tables


def tables_of_other_aggregations(validation: Path, tasks: Mapping[str, ClassificationTask], heads: Iterable[str]) -> dict[str, ClassRows]:
    """The tables in which tiles vote in another way, by ``<heads>_<aggregation>``."""
    names = [f"{name}_{aggregation}" for name in heads for aggregation in OTHER_AGGREGATIONS]
    files = {name: validation / table_name(name) for name in names}
    return {name: read_classification_csv(file, tasks, raw=True) for name, file in files.items() if file.is_file()}


def table_name(heads: str) -> str:
    """File of a table that is not the one that counts."""
    return f"classification_{heads}.csv"


def heads_and_aggregation(name: str) -> tuple[str, str]:
    """Set of heads and vote of the tiles that a table's name stands for: ``joint_mean`` -> joint, mean."""
    heads, _, aggregation = name.partition("_")
    return heads, aggregation or DEFAULT_AGGREGATION


def pooled_class_tables(
    model_folder: str | Path, folds: Sequence[int | str], tasks: Mapping[str, ClassificationTask], validation_name: str = VALIDATION
) -> PooledTables:
    """The class tables of some folds of a model, for every set of heads that all of these folds have.

    Args:
        model_folder: With ``fold_0``, ...
        folds: Which of them.
        tasks: Of the model's ``dataset.json``.
        validation_name: Folder in each fold, see :func:`validation_folder_name`.

    Raises:
        RuntimeError: If a case stands in several folds.
    """
    by_fold: dict[int | str, dict[str, ClassRows]] = {}
    for fold in folds:
        validation = Path(model_folder) / f"fold_{fold}" / validation_name
        tables = class_tables_of_folder(validation, tasks)
        by_fold[fold] = tables | tables_of_other_aggregations(validation, tasks, tables)
    missing = [fold for fold, tables in by_fold.items() if not tables]
    if len(missing) == len(by_fold):
        return PooledTables(tables={})
    name = Path(model_folder).name
    if missing:
        note = f"{name}: classes are left out, because fold {', '.join(map(str, missing))} has no {validation_name}/{CLASSIFICATION_FILE}. "
        return PooledTables(tables={}, notes=(note + "nnUNetv2_train with --val writes it.",))
    first = next(iter(by_fold.values()))
    common = [heads for heads in first if all(heads in tables for tables in by_fold.values())]
    if not common:
        listed = ", ".join(f"fold {fold}: {' and '.join(tables)}" for fold, tables in by_fold.items())
        note = f"{name}: classes are left out, because the folds have different heads ({listed}). Refit the heads of all folds: "
        return PooledTables(tables={}, notes=(note + "nnUNetv2_train ... --refit_heads",))
    partly = sorted({heads for tables in by_fold.values() for heads in tables} - set(common))
    notes = [f"{name}: {table_name(heads)} is left out, because not every fold has it." for heads in partly]
    return PooledTables(tables={heads: _pooled(by_fold, heads) for heads in common}, notes=tuple(notes))


def _pooled(by_fold: Mapping[int | str, Mapping[str, ClassRows]], heads: str) -> ClassRows:
    """One table of all folds."""
    rows: ClassRows = {}
    for fold, tables in by_fold.items():
        repeated = sorted(set(rows) & set(tables[heads]))
        if repeated:
            raise RuntimeError(
                f"The case {repeated[0]} stands in the class table of fold {fold} and in that of another one. Every case must be validated "
                "once: choose folds of one split."
            )
        rows.update(tables[heads])
    return rows


def write_pooled_tables(
    folder: str | Path, tasks: Mapping[str, ClassificationTask], tables: Mapping[str, ClassRows], case_labels: CaseLabels | None
) -> dict[str, dict]:
    """Write the tables of all sets of heads and their scores into a folder.

    Args:
        folder: Exists.
        tasks: By name.
        tables: By set of heads, the one that counts first.
        case_labels: What is true; None: not known, so that there are no scores.

    Returns:
        By set of heads what :func:`~nnunetv2.evaluation.classification_metrics.classification_summary` says; empty without labels.
    """
    folder = Path(folder)
    for number, (heads, rows) in enumerate(tables.items()):
        write_classification_csv(folder / (table_name(heads) if number else CLASSIFICATION_FILE), tasks, rows)
    summaries = {} if case_labels is None else {heads: classification_summary(tasks, rows, case_labels) for heads, rows in tables.items()}
    if tables:
        save_json(summaries or {heads: {} for heads in tables}, folder / CLASS_SUMMARY_FILE)
    return summaries


def known_labels(dataset_name: str, dataset_json: Mapping) -> CaseLabels | None:
    """The labels of a dataset's cases, from the preprocessed or the raw folder on this machine; None if neither has them."""
    for root in (nnUNet_preprocessed, nnUNet_raw):
        folder = root / dataset_name if root.is_set() else None
        if folder is not None and folder.is_dir() and ((folder / LABELS_FILE).is_file() or dataset_json.get("case_labels")):
            return CaseLabels.load(folder, dataset_json)
    return None
