"""Dataset numbers to folder names and back."""

from __future__ import annotations

import os

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results


def find_candidate_datasets(dataset_id: int) -> list[str]:
    """Names of all dataset folders with this number, in the raw, preprocessed and results folders that exist."""
    prefix = f"Dataset{dataset_id:03d}"
    names = set()
    for root in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results):
        folder = root.get()
        if folder is not None and os.path.isdir(folder):
            names.update(e.name for e in os.scandir(folder) if e.name.startswith(prefix) and e.is_dir())
    return sorted(names)


def convert_id_to_dataset_name(dataset_id: int) -> str:
    """The one dataset with this number.

    Raises:
        RuntimeError: If there is none, or several.
    """
    names = find_candidate_datasets(dataset_id)
    folders = ", ".join(f"{p.variable}={p.get()}" for p in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results))
    if not names:
        raise RuntimeError(
            f"No dataset with the number {dataset_id}: no folder named Dataset{dataset_id:03d}_... in {folders}. "
            "Check the number and these environment variables."
        )
    if len(names) > 1:
        raise RuntimeError(
            f"Several datasets have the number {dataset_id}: {', '.join(names)} (in {folders}). "
            "Give the full name, or rename the folders so that the number is unique."
        )
    return names[0]


def convert_dataset_name_to_id(dataset_name: str) -> int:
    """The number in ``DatasetNNN_Name``."""
    digits = dataset_name[7:10]
    if not dataset_name.startswith("Dataset") or not digits.isdigit():
        raise ValueError(f"{dataset_name!r} is no dataset name, expected DatasetNNN_Name with three digits.")
    return int(digits)


def maybe_convert_to_dataset_name(dataset_name_or_id: int | str) -> str:
    """Names pass unchanged, numbers are looked up.

    Raises:
        ValueError: If it is neither.
        RuntimeError: If the number has no dataset, or several.
    """
    if isinstance(dataset_name_or_id, str) and dataset_name_or_id.startswith("Dataset"):
        return dataset_name_or_id
    try:
        dataset_id = int(dataset_name_or_id)
    except ValueError:
        raise ValueError(f"{dataset_name_or_id!r} is neither a dataset number (4) nor a dataset name (Dataset004_Name).") from None
    return convert_id_to_dataset_name(dataset_id)
