"""Cases of a raw dataset: identifiers, image files, label files."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from os.path import join

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.file_io import load_json

CHANNEL_DIGITS = 4


def get_identifiers_from_splitted_dataset_folder(folder: str, file_ending: str) -> list[str]:
    """Sorted identifiers of the cases in a folder of ``{identifier}_{CCCC}{file_ending}``; other files are ignored."""
    return sorted(_channel_files(folder, file_ending))


def create_paths_fn(folder: str, files: Sequence[str], file_ending: str, f: str) -> list[str]:
    """The files of one case, in channel order."""
    pattern = re.compile(re.escape(f) + rf"_\d{{{CHANNEL_DIGITS}}}" + re.escape(file_ending))
    return [join(folder, name) for name in sorted(files) if pattern.fullmatch(name)]


def create_lists_from_splitted_dataset_folder(
    folder: str, file_ending: str, identifiers: Sequence[str] | None = None, num_processes: int = 12
) -> list[list[str]]:
    """For every case the list of its image files in channel order.

    Args:
        folder: Folder with images.
        file_ending: With the leading dot.
        identifiers: Cases in the order wanted; None: all, sorted.
        num_processes: Unused; one pass over the folder suffices.
    """
    files = _channel_files(folder, file_ending)
    wanted = sorted(files) if identifiers is None else identifiers
    return [[join(folder, name) for name in files.get(identifier, [])] for identifier in wanted]


def get_filenames_of_train_images_and_targets(raw_dataset_folder: str, dataset_json: dict | None = None) -> dict[str, dict]:
    """``{identifier: {"images": [files by channel], "label": file}}`` of a raw dataset.

    Args:
        raw_dataset_folder: Folder, or name of a dataset in ``nnUNet_raw``.
        dataset_json: Content of its ``dataset.json``; read if None. Its ``dataset`` entry names files in place of the folders.
    """
    if not os.path.isdir(raw_dataset_folder):
        raw_dataset_folder = join(nnUNet_raw, raw_dataset_folder)
    if dataset_json is None:
        dataset_json = load_json(join(raw_dataset_folder, "dataset.json"))

    if "dataset" in dataset_json:
        return {
            identifier: {
                "images": [_resolved(raw_dataset_folder, image) for image in entry["images"]],
                "label": _resolved(raw_dataset_folder, entry["label"]),
            }
            for identifier, entry in dataset_json["dataset"].items()
        }
    ending = dataset_json["file_ending"]
    files = _channel_files(join(raw_dataset_folder, "imagesTr"), ending)
    return {
        identifier: {
            "images": [join(raw_dataset_folder, "imagesTr", name) for name in files[identifier]],
            "label": join(raw_dataset_folder, "labelsTr", identifier + ending),
        }
        for identifier in sorted(files)
    }


def _channel_files(folder: str, file_ending: str) -> dict[str, list[str]]:
    """File names by identifier, in channel order."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder {folder} does not exist.")
    pattern = re.compile(rf"(?P<identifier>.+)_\d{{{CHANNEL_DIGITS}}}{re.escape(file_ending)}")
    files = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        match = pattern.fullmatch(name)
        if match and not name.startswith("."):
            files[match["identifier"]].append(name)
    return dict(files)


def _resolved(raw_dataset_folder: str, path: str) -> str:
    """Environment variables expanded, relative paths from the dataset folder."""
    path = os.path.expandvars(path)
    return path if os.path.isabs(path) else os.path.normpath(join(raw_dataset_folder, path))
