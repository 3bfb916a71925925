"""How the cases of a preprocessed folder were made: ``{data_identifier}.settings.json`` beside the folder.

Folders are shared by plans that preprocess alike, plans can be edited, and a run can be interrupted. With this file, preprocessing says
what it replaces, and training refuses cases that its plans did not ask for. Folders of nnU-Net itself have no such file and are taken as
they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

# Entries of a configuration that decide what the preprocessed cases look like.
PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
COMPLETE = "complete"
NOT_COMPARED = ("plans_name", COMPLETE)  # plans of several names may share a folder


def preprocessing_settings(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> dict[str, Any]:
    """Everything in the plans that decides what preprocessed cases look like, and the name of the plans."""
    settings = {key: configuration_manager.configuration.get(key) for key in PREPROCESSING_KEYS}
    return settings | {
        "transpose_forward": list(plans_manager.transpose_forward),
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "foreground_intensity_properties_per_channel": plans_manager.foreground_intensity_properties_per_channel,
        "plans_name": plans_manager.plans_name,
    }


def changed_settings(previous: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ."""
    return [key for key in settings if key not in NOT_COMPARED and settings[key] != previous.get(key)]


def read_settings(preprocessed_folder: str, configuration_manager: ConfigurationManager) -> dict[str, Any] | None:
    """The settings of a configuration's folder; None if there are none."""
    file = _settings_file(preprocessed_folder, configuration_manager)
    return load_json(file) if os.path.isfile(file) else None


def write_settings(
    preprocessed_folder: str, configuration_manager: ConfigurationManager, settings: Mapping[str, Any], *, is_complete: bool
) -> None:
    """Note how a configuration's folder is made, and whether every case of the dataset is in it."""
    save_json({**settings, COMPLETE: is_complete}, _settings_file(preprocessed_folder, configuration_manager))


def check_preprocessed_data(preprocessed_folder: str, plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> None:
    """Stop where a configuration's folder was not made by these plans, or not completely.

    Raises:
        ValueError: Naming the settings that differ.
    """
    previous = read_settings(preprocessed_folder, configuration_manager)
    if previous is None:
        return
    folder = os.path.join(preprocessed_folder, configuration_manager.data_identifier)
    again = f"nnUNetv2_preprocess -d {plans_manager.dataset_name} -plans_name {plans_manager.plans_name}"
    settings = preprocessing_settings(plans_manager, configuration_manager)
    changed = changed_settings(previous, settings)
    if changed:
        listed = "\n".join(f"  {key}: {_shown(previous.get(key))} in the data, {_shown(settings[key])} in the plans" for key in changed)
        raise ValueError(
            f"The cases in {folder} were preprocessed with other settings (plans {previous.get('plans_name')}) than the plans "
            f"{plans_manager.plans_name} ask for:\n{listed}\nPreprocess again with these plans: {again}"
        )
    if not previous.get(COMPLETE, True):
        raise ValueError(
            f"Preprocessing of {folder} was interrupted or failed for some cases, so cases are missing or old. Go on with it: {again}. "
            f"To train with what is there, remove {_settings_file(preprocessed_folder, configuration_manager)}."
        )


def _settings_file(preprocessed_folder: str, configuration_manager: ConfigurationManager) -> str:
    return os.path.join(preprocessed_folder, f"{configuration_manager.data_identifier}.settings.json")


def _shown(value: Any) -> str:
    """A value on one line, shortened."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
