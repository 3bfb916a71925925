"""A new dataset folder in ``nnUNet_raw`` that appears when it is complete."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX

BACKGROUND = "background"


@contextmanager
def new_dataset_folder(dataset_name: str) -> Iterator[Path]:
    """A temporary folder to fill; on leaving the block it becomes ``nnUNet_raw/dataset_name``, after an error it is removed.

    Raises:
        ValueError: If the name is not of the form ``DatasetXXX_Name``.
        FileExistsError: If there is such a folder.
    """
    if not re.fullmatch(r"Dataset\d{3}_[^/\\]+", dataset_name):
        raise ValueError(
            f"{dataset_name!r} is no dataset name; expected DatasetXXX_Name with three digits, such as Dataset004_Hippocampus."
        )
    folder = Path(nnUNet_raw) / dataset_name
    if folder.exists():
        raise FileExistsError(f"{folder} exists already and is not overwritten. Choose another name, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{dataset_name}")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def labels_by_name(labels: Mapping[str, Any], source: Path) -> dict[str, int]:
    """Label values by name from names by value, as the Medical Segmentation Decathlon and nnU-Net v1 write them.

    Args:
        labels: ``{"0": "background", "1": "liver"}``; one that is by name already is taken as it is.
        source: The file, for messages.

    Returns:
        ``{"background": 0, "liver": 1}``; the value 0 is called background, whatever its name was.

    Raises:
        ValueError: If it is neither, or names two labels alike.
    """
    if all(str(key).strip().isdecimal() for key in labels):
        pairs = [(str(name), int(value)) for value, name in labels.items()]
    elif all(isinstance(value, int) for value in labels.values()):
        pairs = [(str(name), value) for name, value in labels.items()]
    else:
        raise ValueError(f'{source}: labels are {dict(labels)}; expected names by value, such as {{"0": "background", "1": "liver"}}.')
    result = {BACKGROUND: 0} | {name: value for name, value in pairs if value != 0}
    names = [name for name, value in pairs if value != 0]
    if len(set(names)) < len(names) or BACKGROUND in names:
        raise ValueError(f"{source}: labels {', '.join(names)} are not different names. Correct the file.")
    return result


def visible_files(folder: Path, ending: str = "") -> list[Path]:
    """Files of a folder in sorted order, without hidden ones, which macOS leaves beside every file; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(ending) and not file.name.startswith("."))
