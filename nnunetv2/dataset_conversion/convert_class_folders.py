"""Raw folders with one subfolder for each class become a dataset with segmentations and class labels.

The folders, below one source folder::

    train/CLASS/CASE_0000.nii.gz        one file for each channel
    train/CLASS/CASE.nii.gz             the segmentation
    validation/CLASS/...                the same; optional
    test/CASE_0000.nii.gz               optional

Files are copied or linked as they are, never read: values of segmentations that are within 0.001 of whole numbers are rounded whenever
they are read later on, and --verify_dataset_integrity names the cases with others.
"""

from __future__ import annotations

import csv
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, find_candidate_datasets
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, save_json
from nnunetv2.utilities.label_handling.classification_labels import LABELS_FILE, classification_tasks

TRAINING, VALIDATION, TEST = "train", "validation", "test"
FILES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class FoundCase:
    """The files of one case."""

    identifier: str
    part: str  # TRAINING, VALIDATION or TEST
    class_name: str | None  # None in the test part
    images: tuple[Path, ...]  # in the order of the channels
    mask: Path | None


@dataclass(kw_only=True)
class FoundFolders:
    """Everything that lies in the source folder."""

    cases: list[FoundCase] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)  # sorted
    problems: list[str] = field(default_factory=list)  # what keeps it from being a dataset
    notes: list[str] = field(default_factory=list)  # what is not used


def convert_class_folders(
    source: str | os.PathLike,
    dataset_name: str,
    *,
    task_name: str,
    label_names: Sequence[str],
    channel_names: Sequence[str],
    class_names: Sequence[str] | None = None,
    evidence: Sequence[str] = (),
    context: Sequence[str] = (),
    file_ending: str = ".nii.gz",
    hard_links: bool = False,
) -> tuple[Path, FoundFolders]:
    """Write a raw dataset into ``nnUNet_raw``; the source is not changed.

    Args:
        source: Folder with ``train`` and, if there are, ``validation`` and ``test``.
        dataset_name: ``DatasetXXX_Name``; must not exist.
        task_name: Name of the classification task.
        label_names: Names of the label values 0, 1, ... of the segmentations.
        channel_names: Names of the channels 0, 1, ...; they choose the normalization.
        class_names: The class folders in the order of the classes; None: in alphabetical order.
        evidence: Labels that show the class.
        context: Labels with weak evidence.
        file_ending: Of images and segmentations.
        hard_links: Link the files instead of copying them; source and dataset must lie on one file system.

    Returns:
        The folder of the dataset and what was found in the source.

    Raises:
        ValueError: With everything that is wrong; nothing is written then.
    """
    folder = Path(nnUNet_raw) / dataset_name
    found = find_class_folders(source, file_ending, num_channels=len(channel_names))
    problems = [*_dataset_problems(folder, dataset_name), *found.problems]
    classes = list(found.class_names if class_names is None else class_names)
    if class_names is not None and sorted(classes) != found.class_names:
        problems.append(f"the classes are given as {', '.join(classes)}, but the folders are {', '.join(found.class_names)}")
    labels = {name: value for value, name in enumerate(label_names)}
    if len(labels) < len(label_names) or next(iter(labels), None) != "background":
        problems.append(f"the labels are {', '.join(label_names)}; expected different names, the first of them background")
    task = {"classes": classes, "evidence": list(evidence), "context": list(context)}
    try:
        classification_tasks({"labels": labels, "classification": {task_name: task}})
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{os.fspath(source)} cannot be converted, nothing was written:\n" + "\n".join(f"- {p}" for p in problems))

    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{dataset_name}")
    try:
        _write_dataset(temporary, found, file_ending, hard_links)
        labelled = [case for case in found.cases if case.class_name is not None]
        generate_dataset_json(
            str(temporary),
            dict(enumerate(channel_names)),
            labels,
            len(labelled),
            file_ending,
            dataset_name=dataset_name,
            converted_by="nnUNetv2_convert_class_folders",
            classification={task_name: {key: value for key, value in task.items() if value}},
        )
        _write_labels(temporary / LABELS_FILE, task_name, labelled)
        _write_split(temporary / "splits_final.json", labelled)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder, found


def find_class_folders(source: str | os.PathLike, file_ending: str, num_channels: int) -> FoundFolders:
    """Look through the source folder; problems are collected, not raised."""
    source, found = Path(source), FoundFolders()
    if not (source / TRAINING).is_dir():
        found.problems.append(f"{source / TRAINING} does not exist; expected {TRAINING}/CLASS/CASE_0000{file_ending}")
    _note_unused(found, [entry for entry in _entries(source) if entry.name not in (TRAINING, VALIDATION, TEST)])
    for part in (TRAINING, VALIDATION):
        for class_folder in _folders(source / part):
            _add_cases(found, class_folder, part, class_folder.name, file_ending, num_channels)
        _note_unused(found, [entry for entry in _entries(source / part) if not entry.is_dir()])
    _add_cases(found, source / TEST, TEST, None, file_ending, num_channels)
    of_training = {folder.name for folder in _folders(source / TRAINING)}
    found.class_names = sorted(of_training)
    unseen = sorted({folder.name for folder in _folders(source / VALIDATION)} - of_training)
    if unseen:
        found.problems.append(f"classes of {VALIDATION} that {TRAINING} does not have: {', '.join(unseen)}")
    used = {case.class_name for case in found.cases if case.part == TRAINING}
    found.problems += [f"{source / TRAINING / name} holds no case" for name in found.class_names if name not in used]
    places: dict[str, list[str]] = {}
    for case in found.cases:
        places.setdefault(case.identifier, []).append("/".join(filter(None, (case.part, case.class_name))))
    found.problems += [
        f"case {identifier}: stands in {' and in '.join(where)}; an identifier belongs to one case"
        for identifier, where in sorted(places.items())
        if len(where) > 1
    ]
    return found


def summary_text(found: FoundFolders) -> str:
    """Cases by class and part, and what was not used."""
    parts = [part for part in (TRAINING, VALIDATION) if any(case.part == part for case in found.cases)]
    width = max(len("class"), *map(len, found.class_names))
    lines = [f"{'class':<{width}}" + "".join(f" {part:>10}" for part in parts)]
    for name in found.class_names:
        counts = [sum(case.part == part and case.class_name == name for case in found.cases) for part in parts]
        lines.append(f"{name:<{width}}" + "".join(f" {count:10d}" for count in counts))
    lines.append(f"{sum(case.part == TEST for case in found.cases)} test cases")
    return "\n".join([*lines, *found.notes])


def _add_cases(found: FoundFolders, folder: Path, part: str, class_name: str | None, file_ending: str, num_channels: int) -> None:
    """Add the cases of one folder, and what is wrong with them."""
    entries = _entries(folder)
    files = {entry.name.removesuffix(file_ending): entry for entry in entries if entry.is_file() and entry.name.endswith(file_ending)}
    _note_unused(found, [entry for entry in entries if entry not in files.values()])
    # CASE_0001 may be the second channel of CASE or the segmentation of a case with that name: it is the latter if that case has images.
    identifiers = {match[1] for match in map(_channel, files) if match and match[2] == "0000"}
    channels: dict[str, dict[int, Path]] = {identifier: {} for identifier in identifiers}
    masks: dict[str, Path] = {}
    for stem, file in files.items():
        match = _channel(stem)
        if stem in identifiers or match is None:
            masks[stem] = file
        else:
            channels.setdefault(match[1], {})[int(match[2])] = file
    wanted = set(range(num_channels))
    for identifier in sorted({*channels, *masks}):
        there = channels.get(identifier, {})
        where = f"case {identifier} in {folder}"
        missing, surplus = sorted(wanted - set(there)), sorted(set(there) - wanted)
        if missing:
            found.problems.append(f"{where}: no image {', '.join(f'{identifier}_{channel:04d}{file_ending}' for channel in missing)}")
        if surplus:
            names = ", ".join(there[channel].name for channel in surplus)
            found.problems.append(f"{where}: {names}, but only {num_channels} channel names are given")
        if class_name is not None and identifier not in masks:
            found.problems.append(f"{where}: no segmentation {identifier}{file_ending}")
        images = tuple(there[channel] for channel in sorted(there))
        found.cases.append(
            FoundCase(identifier=identifier, part=part, class_name=class_name, images=images, mask=masks.get(identifier))
        )


def _channel(stem: str) -> re.Match[str] | None:
    """Identifier and channel of an image's name without ending."""
    return re.fullmatch(r"(.+)_(\d{4})", stem)


def _entries(folder: Path) -> list[Path]:
    """Sorted visible entries; none if there is no such folder."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _note_unused(found: FoundFolders, entries: Sequence[Path]) -> None:
    """Say what lies in a folder and belongs to no case."""
    if entries:
        names = ", ".join(entry.name for entry in entries[:FILES_SHOWN])
        more = " ..." if len(entries) > FILES_SHOWN else ""
        found.notes.append(f"{len(entries)} entries of {entries[0].parent} are not used: {names}{more}")


def _dataset_problems(folder: Path, dataset_name: str) -> list[str]:
    """What is wrong with the name of the new dataset."""
    try:
        dataset_id = convert_dataset_name_to_id(dataset_name)
    except ValueError as error:
        return [str(error)]
    if re.fullmatch(r"Dataset\d{3}_[\w.-]+", dataset_name) is None:
        return [f"{dataset_name!r} is no dataset name; expected DatasetXXX_Name of letters, digits, '_', '-' and '.'"]
    if folder.exists():
        return [f"{folder} exists already; remove it or choose another name"]
    others = [name for name in find_candidate_datasets(dataset_id) if name != dataset_name]
    return [f"the id {dataset_id} belongs to {', '.join(others)} already; choose another one"] if others else []


def _write_dataset(folder: Path, found: FoundFolders, file_ending: str, hard_links: bool) -> None:
    """Images and segmentations under nnU-Net's names."""
    for case in found.cases:
        suffix = "Ts" if case.part == TEST else "Tr"
        images, labels = folder / f"images{suffix}", folder / f"labels{suffix}"
        targets = {images / f"{case.identifier}_{channel:04d}{file_ending}": file for channel, file in enumerate(case.images)}
        if case.mask is not None:
            targets[labels / f"{case.identifier}{file_ending}"] = case.mask
        for target, file in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not hard_links:
                shutil.copyfile(file, target)
                continue
            try:
                os.link(os.path.realpath(file), target)
            except OSError as error:
                raise OSError(f"{file} cannot be linked to {target.parent} ({error.strerror}). Leave --link out to copy.") from error


def _write_labels(path: Path, task_name: str, cases: Sequence[FoundCase]) -> None:
    """``labels.csv``."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["identifier", task_name])
        writer.writerows(sorted((case.identifier, case.class_name) for case in cases))


def _write_split(path: Path, cases: Sequence[FoundCase]) -> None:
    """One fold with the given validation cases; without any, training makes its own folds."""
    split: Mapping[str, Any] = {
        key: sorted(case.identifier for case in cases if case.part == part) for key, part in (("train", TRAINING), ("val", VALIDATION))
    }
    if split["val"]:
        save_json([split], path)
