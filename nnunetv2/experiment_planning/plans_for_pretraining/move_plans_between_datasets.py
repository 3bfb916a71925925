"""Give a dataset the plans of another one, so that a network pretrained there fits here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import copy_user_splits
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import copy_file, load_json, save_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets


def move_plans_between_datasets(
    source_dataset_name_or_id: int | str,
    target_dataset_name_or_id: int | str,
    source_plans_identifier: str,
    target_plans_identifier: str | None = None,
) -> None:
    """Copy plans from one preprocessed dataset to another and adapt dataset name, data folders and reader.

    A target that was never planned also gets what planning copies: ``dataset.json`` and the user's splits.

    Args:
        source_dataset_name_or_id: Dataset that has the plans.
        target_dataset_name_or_id: Dataset that gets them; its raw images must exist.
        source_plans_identifier: Name of the plans.
        target_plans_identifier: Their name in the target; None for the same.

    Raises:
        FileNotFoundError: If the plans or the target's preprocessed folder do not exist.
    """
    source_name = maybe_convert_to_dataset_name(source_dataset_name_or_id)
    target_name = maybe_convert_to_dataset_name(target_dataset_name_or_id)
    target_plans_identifier = target_plans_identifier or source_plans_identifier
    source_file = os.path.join(nnUNet_preprocessed, source_name, source_plans_identifier + ".json")
    if not os.path.isfile(source_file):
        raise FileNotFoundError(f"{source_file} does not exist. Plan the source dataset first, or check the name of its plans (-sp).")
    target_folder = os.path.join(nnUNet_preprocessed, target_name)
    if not os.path.isdir(target_folder):
        raise FileNotFoundError(f"{target_folder} does not exist. Run nnUNetv2_extract_fingerprint for the target dataset first.")

    plans = moved_plans(load_json(source_file), target_name, source_plans_identifier, target_plans_identifier)
    plans["image_reader_writer"] = reader_of(target_name)
    copy_what_planning_copies(os.path.join(nnUNet_raw, target_name), target_folder)
    target_file = os.path.join(target_folder, target_plans_identifier + ".json")
    save_json(plans, target_file, sort_keys=False)
    print(f"Plans were saved to {target_file}")


def copy_what_planning_copies(raw_folder: str, preprocessed_folder: str) -> None:
    """``dataset.json`` and the user's splits, unless the dataset was planned before; preprocessing and training need them."""
    target = os.path.join(preprocessed_folder, "dataset.json")
    if not os.path.isfile(target):
        copy_user_splits(raw_folder, preprocessed_folder)
        copy_file(os.path.join(raw_folder, "dataset.json"), target)


def moved_plans(plans: dict[str, Any], target_name: str, source_identifier: str, target_identifier: str) -> dict[str, Any]:
    """Plans under another dataset and plans name; data folders are renamed along."""
    plans = plans | {"dataset_name": target_name, "plans_name": target_identifier}
    if source_identifier != target_identifier:
        plans["configurations"] = {
            name: renamed_data_identifier(configuration, source_identifier, target_identifier)
            for name, configuration in plans["configurations"].items()
        }
    return plans


def renamed_data_identifier(configuration: dict[str, Any], source_identifier: str, target_identifier: str) -> dict[str, Any]:
    """A configuration whose data folder carries the new plans name; one that inherits its folder is left alone."""
    old = configuration.get("data_identifier")
    if old is None:
        return configuration
    if old.startswith(source_identifier):
        return configuration | {"data_identifier": target_identifier + old[len(source_identifier) :]}
    return configuration | {"data_identifier": f"{target_identifier}_{old}"}


def reader_of(dataset_name: str) -> str:
    """Name of the reader that opens the raw images of a dataset."""
    raw_folder = os.path.join(nnUNet_raw, dataset_name)
    dataset_json = load_json(os.path.join(raw_folder, "dataset.json"))
    dataset = get_filenames_of_train_images_and_targets(raw_folder, dataset_json)
    if not dataset:
        raise ValueError(f"{raw_folder} has no training cases to determine the reader from.")
    example_image = next(iter(dataset.values()))["images"][0]
    return determine_reader_writer_from_dataset_json(dataset_json, example_image, allow_nonmatching_filename=True).__name__


def entry_point_move_plans_between_datasets(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_move_plans_between_datasets``, forwarded to `nnunetv2.cli`."""
    from nnunetv2.cli.plan_and_preprocess import move_plans_entry

    move_plans_entry(argv)
