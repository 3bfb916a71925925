"""Which files belong to which case of a dataset."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.file_io import load_json

_CHANNEL = r"_(\d{4})"


def get_identifiers_from_splitted_dataset_folder(folder: str | os.PathLike[str], file_ending: str) -> list[str]:
    """Sorted identifiers of the cases in a folder of images named ``{identifier}_{channel:04d}{file_ending}``.

    Hidden files are passed over (``._case_0000.nii.gz`` of macOS); files with the right ending but without a channel
    number too, with a warning.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    return sorted(_files_by_case(folder, file_ending))


def create_paths_fn(folder: str, files: Sequence[str], file_ending: str, f: str) -> list[str]:
    """Sorted paths of all channels of case `f` among the names `files`."""
    pattern = re.compile(re.escape(f) + r"_\d\d\d\d" + re.escape(file_ending))
    return [os.path.join(folder, name) for name in sorted(files) if pattern.fullmatch(name)]


def create_lists_from_splitted_dataset_folder(
    folder: str | os.PathLike[str], file_ending: str, identifiers: Sequence[str] | None = None, num_processes: int = 12
) -> list[list[str]]:
    """Paths of the images of each case, channels in order.

    Args:
        folder: Folder with the images.
        file_ending: Such as ``.nii.gz``.
        identifiers: Cases in the wanted order; all cases, sorted, if None. A case without any file gives an empty list.
        num_processes: Not used; one directory listing is enough. Kept for callers that pass it.
    """
    folder = os.fspath(folder)
    by_case = _files_by_case(folder, file_ending)
    if identifiers is None:
        identifiers = sorted(by_case)
    return [[os.path.join(folder, name) for name in sorted(by_case.get(str(identifier), ()))] for identifier in identifiers]


def get_filenames_of_train_images_and_targets(
    raw_dataset_folder: str | os.PathLike[str], dataset_json: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """``{identifier: {"images": [paths in channel order], "label": path}}`` of a raw dataset's training cases.

    With a ``dataset`` entry in `dataset_json` that list counts: environment variables in its paths are expanded and
    relative paths belong to the raw folder. Otherwise ``imagesTr`` and ``labelsTr`` are listed; whether every label exists
    is for the integrity check to say. Order: as listed in ``dataset``, else sorted by identifier. The folder may also be
    given as the name of a dataset in ``nnUNet_raw``.

    Raises:
        FileNotFoundError: If ``dataset.json`` or ``imagesTr`` is missing.
        ValueError: If an entry of ``dataset`` lacks images or label.
    """
    folder = os.fspath(raw_dataset_folder)
    if not os.path.isdir(folder) and nnUNet_raw.is_set():
        folder = os.path.join(nnUNet_raw, folder)
    if dataset_json is None:
        dataset_json = load_json(Path(folder) / "dataset.json")
    if "dataset" in dataset_json:
        return _listed_cases(folder, dataset_json["dataset"])
    ending = dataset_json.get("file_ending")
    if not ending:
        raise ValueError(f'dataset.json of {folder} has no \'file_ending\'. Add it, for example "file_ending": ".nii.gz".')
    images_folder = os.path.join(folder, "imagesTr")
    identifiers = get_identifiers_from_splitted_dataset_folder(images_folder, ending)
    images = create_lists_from_splitted_dataset_folder(images_folder, ending, identifiers)
    return {
        identifier: {"images": paths, "label": os.path.join(folder, "labelsTr", identifier + ending)}
        for identifier, paths in zip(identifiers, images)
    }


def _listed_cases(folder: str, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The cases of a ``dataset`` entry, paths made absolute."""

    def absolute(path: str) -> str:
        path = os.path.expandvars(path)
        return path if os.path.isabs(path) else os.path.abspath(os.path.join(folder, path))

    broken = [
        str(identifier)
        for identifier, entry in listed.items()
        if not isinstance(entry, Mapping)
        or not entry.get("images")
        or isinstance(entry["images"], str)
        or not isinstance(entry.get("label"), str)
    ]
    if broken:
        raise ValueError(
            f'dataset.json of {folder}: entry \'dataset\' needs, for every case, {{"images": [paths], "label": path}}. '
            f"Not so for: {', '.join(broken)}. Complete these entries."
        )
    return {
        identifier: {**entry, "images": [absolute(path) for path in entry["images"]], "label": absolute(entry["label"])}
        for identifier, entry in listed.items()
    }


def _files_by_case(folder: str | os.PathLike[str], file_ending: str) -> dict[str, list[str]]:
    """File names by identifier."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder {folder} does not exist. Expected images named CASE_0000{file_ending}, one file for each channel.")
    pattern = re.compile(r"(.+)" + _CHANNEL + re.escape(file_ending))
    by_case: dict[str, list[str]] = {}
    unnumbered: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or not name.endswith(file_ending):
                continue
            match = pattern.fullmatch(name)
            if match:
                by_case.setdefault(match.group(1), []).append(name)
            elif not entry.is_dir():
                unnumbered.append(name)
    if unnumbered:
        warnings.warn(
            f"{len(unnumbered)} file(s) in {folder} are passed over, they have no channel number: {', '.join(sorted(unnumbered)[:20])}. "
            f"Expected names like CASE_0000{file_ending} (0000 for the first channel); rename those that are images.",
            stacklevel=3,
        )
    return by_case
