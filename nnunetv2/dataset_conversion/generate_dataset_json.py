"""Write the dataset.json of a raw dataset from Python, as dataset conversion scripts do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.file_io import save_json
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks

UNKNOWN = "unknown"


def generate_dataset_json(
    output_folder: str,
    channel_names: dict,
    labels: dict,
    num_training_cases: int,
    file_ending: str,
    citation: list[str] | str | None = None,
    regions_class_order: tuple[int, ...] | None = None,
    dataset_name: str | None = None,
    reference: str | None = None,
    release: str | None = None,
    description: str | None = None,
    overwrite_image_reader_writer: str | None = None,
    license: str = UNKNOWN,
    converted_by: str = UNKNOWN,
    **kwargs: Any,
) -> None:
    """Write ``dataset.json`` into the folder of a raw dataset.

    Args:
        output_folder: Folder of the dataset, ``nnUNet_raw/DatasetXXX_Name``.
        channel_names: Name of each channel by its index, e.g. ``{0: "CT"}``; the names choose the normalization.
        labels: Label values by name, e.g. ``{"background": 0, "whole": (1, 2), "core": 2}``, where several values
            make a region.
        num_training_cases: Number of cases in ``imagesTr``.
        file_ending: Ending of all image and segmentation files, with leading dot.
        citation: How to cite the dataset.
        regions_class_order: Label that each foreground region is written as; needed if there are regions.
        dataset_name: Written as ``name``.
        reference: Website of the dataset.
        release: Version of the dataset.
        description: Free text.
        overwrite_image_reader_writer: Class name of the reader/writer, if the default for the file ending does not fit.
        license: Licence of the data, written as ``licence``.
        converted_by: Who converted the data.
        **kwargs: Further keys, written as they are, e.g. ``classification`` and ``case_labels``.

    Raises:
        ValueError: If the entries contradict each other.
    """
    if not str(file_ending).startswith("."):
        raise ValueError(f"file_ending must begin with a dot, such as '.nii.gz'; got {file_ending!r}.")
    label_values = {name: _label_value(name, value) for name, value in labels.items()}
    regions = [name for name, value in label_values.items() if isinstance(value, tuple) and len(value) > 1]
    if regions and regions_class_order is None:
        raise ValueError(f"Labels with several values ({', '.join(map(str, regions))}) are regions; regions need regions_class_order.")

    content = {
        "channel_names": {str(index): name for index, name in channel_names.items()},
        "labels": label_values,
        "numTraining": num_training_cases,
        "file_ending": file_ending,
        "licence": license,
        "converted_by": converted_by,
    }
    optional = {
        "name": dataset_name,
        "reference": reference,
        "release": release,
        "citation": citation,
        "description": description,
        "overwrite_image_reader_writer": overwrite_image_reader_writer,
        "regions_class_order": regions_class_order,
    }
    content.update({key: value for key, value in optional.items() if value is not None})
    content.update(kwargs)
    _check_classification(content)
    save_json(content, os.path.join(output_folder, "dataset.json"), sort_keys=False)


def _label_value(name: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, (tuple, list, set, frozenset)):
        return tuple(_whole_number(name, entry) for entry in (sorted(value) if isinstance(value, (set, frozenset)) else value))
    return _whole_number(name, value)


def _whole_number(name: str, value: Any) -> int:
    try:
        number = int(value)
        is_whole = isinstance(value, str) or number == value
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"Label {name!r} has the value {value!r}; expected a whole number or, for a region, several.")
    return number


def _check_classification(content: Mapping[str, Any]) -> None:
    """Find mistakes in the classification tasks while the conversion script is still at hand."""
    if "classification" in content:
        classification_tasks(content)
