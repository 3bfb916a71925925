"""Between dataset ids (``4``) and dataset names (``Dataset004_Hippocampus``)."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

_ROOTS = (nnUNet_preprocessed, nnUNet_raw, nnUNet_results)


def find_candidate_datasets(dataset_id: int) -> list[str]:
    """Sorted names of all datasets with this id in the raw, preprocessed and results folders."""
    prefix = f"Dataset{int(dataset_id):03d}"
    names: set[str] = set()
    for root in _ROOTS:
        folder = root.get()
        if folder is not None and os.path.isdir(folder):
            names.update(entry.name for entry in Path(folder).iterdir() if entry.name.startswith(prefix) and entry.is_dir())
    # Dataset1000_X is not dataset 100.
    return sorted(name for name in names if not name[len(prefix) : len(prefix) + 1].isdigit())


def convert_id_to_dataset_name(dataset_id: int) -> str:
    """The name that belongs to an id.

    Raises:
        RuntimeError: If no dataset or more than one has the id.
    """
    names = find_candidate_datasets(dataset_id)
    if len(names) == 1:
        return names[0]
    folders = "\n".join(f"  {root.env_var_name} = {root.get()}" for root in _ROOTS)
    unset = [root.env_var_name for root in _ROOTS if not root.is_set()]
    if not names and unset:
        raise RuntimeError(
            f"The dataset {dataset_id} cannot be found: the environment variable{'s' * (len(unset) > 1)} {', '.join(unset)} "
            f"{'are' if len(unset) > 1 else 'is'} not set. Set {unset[-1]} and the others first, for example: "
            f"export {unset[-1]}=/path/to/{unset[-1]}"
        )
    if not names:
        raise RuntimeError(
            f"No dataset has the id {dataset_id}: there is no folder Dataset{int(dataset_id):03d}_* in\n{folders}\n"
            "Check the id and that these environment variables point to the right folders."
        )
    raise RuntimeError(
        f"More than one dataset has the id {dataset_id}: {', '.join(names)}, in\n{folders}\n"
        "Give the name instead of the id, or rename one of them in all of these folders."
    )


def convert_dataset_name_to_id(dataset_name: str) -> int:
    """The id within a name such as ``Dataset004_Hippocampus``."""
    digits = dataset_name[7:10]
    if not dataset_name.startswith("Dataset") or not (len(digits) == 3 and digits.isdigit()):
        raise ValueError(
            f"{dataset_name!r} is no dataset name; expected 'DatasetXXX_Name' with three digits, such as Dataset004_Hippocampus."
        )
    return int(digits)


def maybe_convert_to_dataset_name(dataset_name_or_id: int | str) -> str:
    """The dataset name for a name (returned as it is, whether it exists or not) or an id (int or text)."""
    if isinstance(dataset_name_or_id, str) and dataset_name_or_id.startswith("Dataset"):
        return dataset_name_or_id
    try:
        dataset_id = int(dataset_name_or_id)
    except ValueError:
        raise ValueError(
            f"{dataset_name_or_id!r} is neither a dataset name nor an id. Expected 'DatasetXXX_Name' or a whole number such as 4."
        ) from None
    return convert_id_to_dataset_name(dataset_id)
