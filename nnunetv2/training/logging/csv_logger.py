"""Curves as tables: ``progress.csv`` with a row for each epoch, ``progress_summary.csv`` with values of the whole training."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.file_io import atomic_path

EPOCHS_FILE, SUMMARY_FILE = "progress.csv", "progress_summary.csv"
LAST_KEY_OF_AN_EPOCH = "epoch_end_timestamps"  # what nnU-Net's trainer logs last


class CSVLogger:
    """Writes the table whenever an epoch is over. A value that a row lacks is an empty cell.

    Args:
        output_folder: Folder of the fold.
        resume: Keep the rows of an earlier run that come before the first epoch that is logged now.
    """

    def __init__(self, output_folder: str | os.PathLike, resume: bool) -> None:
        self._folder = Path(output_folder)
        self._rows: dict[int, dict[str, Any]] = {}  # by epoch
        self._summary: dict[str, Any] = {}
        self._first_step: int | None = None
        if resume:
            self._rows = {int(row["epoch"]): _filled(row) for row in _read_rows(self._folder / EPOCHS_FILE)}
            self._summary = {row["key"]: row["value"] for row in _read_rows(self._folder / SUMMARY_FILE)}

    def update_config(self, config: dict) -> None:
        """Nothing: the settings stand in ``plans.json`` and ``debug.json``."""

    def log(self, key: str, value: Any, step: int) -> None:
        """Keep a value of an epoch."""
        if self._first_step is None:
            self._first_step = step
            self._rows = {epoch: row for epoch, row in self._rows.items() if epoch < step}
        begins = step not in self._rows
        if begins and self._rows:
            self._write_epochs()
        self._rows.setdefault(step, {})[key] = value
        if key == LAST_KEY_OF_AN_EPOCH:
            self._write_epochs()

    def log_summary(self, key: str, value: Any) -> None:
        """Write a value of the whole training."""
        self._summary[key] = value
        self._write_epochs()
        _write_table(self._folder / SUMMARY_FILE, ("key", "value"), self._summary.items())

    def _write_epochs(self) -> None:
        """Write all rows; columns in the order in which they were first logged."""
        keys = list(dict.fromkeys(key for row in self._rows.values() for key in row))
        rows = ([epoch, *(row.get(key, "") for key in keys)] for epoch, row in sorted(self._rows.items()))
        _write_table(self._folder / EPOCHS_FILE, ("epoch", *keys), rows)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in one go, so that a reader never sees half of it."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table that this module wrote; none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _filled(row: dict[str, str]) -> dict[str, str]:
    """The values of a row without its epoch and its empty cells."""
    return {key: value for key, value in row.items() if key != "epoch" and value != ""}
