"""Find every problem of a raw dataset before anything is computed, and report them together, by case."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter, check_values
from nnunetv2.imageio.label_values import (
    RoundedLabelsWarning,
    declared_labels,
    listed_values,
    undeclared_labels,
    undeclared_message,
    whole_label_values,
)
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.voxel_grid import VoxelGrid, grid_difference, voxel_grid
from nnunetv2.scheduling import CaseFailure, run_per_case
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.classification_labels import class_table, find_label_problems, readable_labels
from nnunetv2.utilities.label_handling.label_handling import LabelManager

REQUIRED_KEYS = ("labels", "channel_names", "numTraining", "file_ending")
MOST_CASES_NAMED = 10  # in notes that sum up many cases; problems always name every case
DATASET_JSON = "dataset.json"
CLASS_LABELS = "class labels"  # heading of their problems in the report


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """The files of one training case."""

    identifier: str
    image_files: tuple[str, ...]  # in channel order
    label_file: str | None  # None if there is no segmentation


@dataclass(kw_only=True)
class CaseReport:
    """What was found in the files of one case."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    label_values: tuple[int, ...] | None = None  # in ascending order; None if the segmentation could not be read
    rounded: bool = False  # label values were almost whole numbers


@dataclass(kw_only=True)
class DatasetReport:
    """Problems of a dataset by case or file."""

    errors: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    class_table: str = ""  # classes by task with counts; empty without classification

    def add(self, where: str, errors: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
        for target, messages in ((self.errors, errors), (self.warnings, warnings)):
            for message in messages:
                entries = target.setdefault(where, [])
                if message not in entries:
                    entries.append(message)


def verify_dataset_integrity(folder: str, num_processes: int = 8) -> None:
    """Check dataset.json, all images, segmentations and class labels of a raw dataset.

    Prints warnings and, for datasets with classification, the table of classes by task with counts.

    Args:
        folder: Folder of the dataset, ``nnUNet_raw/DatasetXXX_Name``.
        num_processes: Worker processes that read the cases.

    Raises:
        FileNotFoundError: If there is no dataset.json.
        RuntimeError: Listing all problems by case.
    """
    report = dataset_report(folder, num_processes)
    if report.warnings:
        print(f"Warnings for {folder}:\n{_by_case(report.warnings)}")
    if report.class_table:
        print(report.class_table)
    if report.errors:
        number = sum(map(len, report.errors.values()))
        raise RuntimeError(
            f"verify_dataset_integrity found {number} {'problem' if number == 1 else 'problems'} in {folder}:\n"
            f"{_by_case(report.errors)}\nCorrect these files and check again."
        )
    print("verify_dataset_integrity Done. No problems found" + (" apart from the warnings above." if report.warnings else "."))


def dataset_report(folder: str, num_processes: int = 8) -> DatasetReport:
    """Everything that :func:`verify_dataset_integrity` says about a dataset."""
    dataset_json_file = os.path.join(folder, DATASET_JSON)
    if not os.path.isfile(dataset_json_file):
        raise FileNotFoundError(
            f"There is no {DATASET_JSON} in {folder}. What it must hold is described in documentation/dataset_format.md."
        )
    dataset_json = load_json(dataset_json_file)
    report = DatasetReport()
    report.add(DATASET_JSON, errors=dataset_json_problems(dataset_json))
    if not isinstance(dataset_json, Mapping) or not str(dataset_json.get("file_ending")).startswith("."):
        return report  # without knowing the files there is nothing more to check
    cases = find_cases(folder, dataset_json, report)
    _check_number_of_cases(dataset_json, cases, report)
    if cases:
        _check_files_of_cases(dataset_json, cases, num_processes, report)
    _check_class_labels(folder, dataset_json, [case.identifier for case in cases], report)
    return report


def check_files_of_cases(folder: str, dataset_json: Mapping[str, Any]) -> None:
    """Stop if files of training cases are missing; looks at their names alone, so it costs nothing.

    Args:
        folder: Folder of the raw dataset.
        dataset_json: Its content.

    Raises:
        ValueError: Listing, by case, channels and segmentations that are missing, and segmentations without an image.
    """
    report = DatasetReport()
    identifiers = {case.identifier for case in find_cases(folder, dataset_json, report)}
    segmentations_alone = {where for where, messages in report.errors.items() if any("has no image" in message for message in messages)}
    errors = {where: messages for where, messages in report.errors.items() if where in identifiers | segmentations_alone}
    if errors:
        raise ValueError(
            f"{folder}: files of {len(errors)} {'case is' if len(errors) == 1 else 'cases are'} missing:\n{_by_case(errors)}\n"
            "Add these files, or remove what is left of these cases. --verify_dataset_integrity also looks into the files."
        )


def verify_labels(label_file: str, readerclass: type[BaseReaderWriter], expected_labels: Sequence[int]) -> bool:
    """Whether a segmentation file holds expected labels only; prints what it holds otherwise."""
    report = CaseReport()
    with _messages_of_readers(report):
        try:
            _check_label_values(readerclass().read_seg(label_file)[0], label_file, expected_labels, report)
        except Exception as error:
            report.errors.append(str(error))
    for error in report.errors:
        print(f"Error: {label_file}: {error}")
    return not report.errors


def check_cases(image_files: Sequence[str], label_file: str, expected_num_channels: int, readerclass: type[BaseReaderWriter]) -> bool:
    """Whether the channels and the segmentation of one case fit together; prints all problems and warnings."""
    case = RawCase(identifier=os.path.basename(label_file), image_files=tuple(image_files), label_file=label_file)
    report = case_report(case, readerclass, expected_num_channels, expected_labels=None)
    for message in report.warnings:
        print(f"Warning: {label_file}: {message}")
    for message in report.errors:
        print(f"Error: {label_file}: {message}")
    return not report.errors


def load_raw_dataset_json(folder: str) -> dict[str, Any]:
    """dataset.json of a raw dataset, fit to be planned with.

    Gaps between the labels of regions are accepted, which train all the same; the full check names them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: With everything that is wrong.
    """
    path = os.path.join(folder, DATASET_JSON)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist. Every raw dataset needs a dataset.json that describes it.")
    dataset_json = load_json(path)
    problems = dataset_json_problems(dataset_json, gaps_between_regions=True)
    if problems:
        raise ValueError(f"{path} cannot be used:\n" + "\n".join(f"- {problem}" for problem in problems))
    return dataset_json


def dataset_json_problems(dataset_json: Any, *, gaps_between_regions: bool = False) -> list[str]:
    """What is wrong with the content of dataset.json, apart from its classification entry.

    Args:
        dataset_json: The content.
        gaps_between_regions: Accept label values that are not consecutive where labels are regions.
    """
    if not isinstance(dataset_json, Mapping):
        return ["must hold one JSON object with the keys " + ", ".join(REQUIRED_KEYS)]
    problems = []
    for key in REQUIRED_KEYS:
        if key not in dataset_json and not (key == "channel_names" and "modality" in dataset_json):
            problems.append(f"the key '{key}' is missing; required are {', '.join(REQUIRED_KEYS)}")
    ending = dataset_json.get("file_ending")
    if ending is not None and not (isinstance(ending, str) and ending.startswith(".")):
        problems.append(f"'file_ending' is {ending!r}; expected text that begins with a dot, such as '.nii.gz'")
    number = dataset_json.get("numTraining", 0)
    if isinstance(number, bool) or not isinstance(number, int):
        problems.append(f"'numTraining' is {number!r}; expected the number of training cases")
    channel_names = _channel_names(dataset_json)
    if channel_names is not None and (not isinstance(channel_names, Mapping) or not channel_names):
        problems.append(f'\'channel_names\' is {channel_names!r}; expected an object such as {{"0": "CT"}}')
    if "labels" in dataset_json:
        problems += _label_problems(dataset_json, gaps_between_regions)
    return problems


def find_cases(folder: str, dataset_json: Mapping[str, Any], report: DatasetReport) -> list[RawCase]:
    """The training cases of a raw dataset, ordered as nnU-Net orders them; missing files go to the report."""
    if "dataset" in dataset_json:
        return _listed_cases(folder, dataset_json["dataset"], report)
    return _cases_in_folders(folder, dataset_json, report)


def case_report(
    case: RawCase,
    reader_class: type[BaseReaderWriter],
    expected_num_channels: int | None,
    expected_labels: Sequence[int] | None,
) -> CaseReport:
    """Read all files of one case, each on its own, and compare them. ``None`` leaves a check out."""
    report = CaseReport()
    with _messages_of_readers(report):
        reader = reader_class()
        grids = []
        for file in case.image_files:
            grid = _check_image(reader, file, report)
            if grid is not None:
                grids.append(grid)
        all_channels_read = len(grids) == len(case.image_files)
        for grid in grids[1:]:
            _compare(grids[0], grid, report)
        number_of_channels = sum(grid.num_channels for grid in grids)
        if all_channels_read and expected_num_channels is not None and number_of_channels != expected_num_channels:
            report.errors.append(_wrong_number_of_channels(case, number_of_channels, expected_num_channels))
        if case.label_file is not None:
            grid = _check_segmentation(reader, case.label_file, expected_labels, report)
            if grid is not None and grids:
                _compare(grids[0], grid, report)
    return report


def _wrong_number_of_channels(case: RawCase, found: int, expected: int) -> str:
    files = ", ".join(os.path.basename(file) for file in case.image_files)
    hint = ""
    if found == len(case.image_files) < expected:
        hint = f"; {expected - found} channel {'file is' if expected - found == 1 else 'files are'} missing"
    return f"channels found: {found} ({files}), but dataset.json declares {expected} in 'channel_names'{hint}"


def _compare(reference: VoxelGrid, other: VoxelGrid, report: CaseReport) -> None:
    """Add what two files of a case disagree in."""
    difference = grid_difference(reference, other)
    if difference is not None:
        (report.errors if difference.is_error else report.warnings).append(str(difference))


def _check_image(reader: BaseReaderWriter, file: str, report: CaseReport) -> VoxelGrid | None:
    try:
        image, properties = reader.read_images((file,))
    except Exception as error:
        report.errors.append(_reading_problem(file, error))
        return None
    try:
        check_values(reader, image, (file,))
    except ValueError as error:
        report.errors.append(_without_case(error))
    return voxel_grid(file, image, properties)


def _check_segmentation(reader: BaseReaderWriter, file: str, expected_labels: Sequence[int] | None, report: CaseReport) -> VoxelGrid | None:
    try:
        seg, properties = reader.read_seg(file)
    except Exception as error:
        report.errors.append(_reading_problem(file, error))
        return None
    if len(seg) != 1:
        report.errors.append(f"the segmentation {os.path.basename(file)} has {len(seg)} channels; expected one that holds the label values")
    try:
        check_values(reader, seg, (file,), "segmentation")
    except ValueError as error:
        report.errors.append(_without_case(error))
    else:
        _check_label_values(seg, file, expected_labels, report)
    return voxel_grid(file, seg[:1], properties)


def _check_label_values(seg: np.ndarray, file: str, expected_labels: Sequence[int] | None, report: CaseReport) -> None:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            whole = whole_label_values(seg, os.path.basename(file))
    except ValueError as error:
        report.errors.append(_without_case(error))
        return
    report.rounded = any(issubclass(warning.category, RoundedLabelsWarning) for warning in caught)
    report.label_values = tuple(int(value) for value in np.unique(whole))
    if expected_labels is None:
        return
    unexpected = undeclared_labels(whole, expected_labels)
    if unexpected:
        report.errors.append(undeclared_message(unexpected, expected_labels))


@contextlib.contextmanager
def _messages_of_readers(report: CaseReport) -> Iterator[None]:
    """Turn what readers print or warn about into warnings of the report."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    messages = printed.getvalue().split("WARNING: ")
    messages += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    messages = [" ".join(message.split()) for message in messages]
    report.warnings += [message for message in dict.fromkeys(messages) if message]


def _label_problems(dataset_json: Mapping[str, Any], gaps_between_regions: bool) -> list[str]:
    """What is wrong with ``labels`` and ``regions_class_order``."""
    labels = dataset_json["labels"]
    if not isinstance(labels, Mapping):
        return [f'\'labels\' is {labels!r}; expected an object such as {{"background": 0, "tumour": 1}}']
    not_whole = [name for name, value in labels.items() if not all(_is_whole(entry) for entry in _entries(value))]
    if not_whole:
        return [f"the values of {', '.join(map(repr, not_whole))} in 'labels' are not whole numbers or lists of them"]
    problems = []
    try:
        LabelManager(dict(labels), dataset_json.get("regions_class_order"))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        problems.append(f"'labels': {error}")
    declared = declared_labels(labels)
    if gaps_between_regions and any(len(_entries(value)) > 1 for value in labels.values()):
        return problems
    if declared != list(range(declared[0], declared[0] + len(declared))):
        problems.append(f"the values in 'labels' must be consecutive, including the ignore label; found {listed_values(declared)}")
    return problems


def _listed_cases(folder: str, listed: Any, report: DatasetReport) -> list[RawCase]:
    """The cases of the ``dataset`` key."""
    cases = []
    for identifier, files in listed.items() if isinstance(listed, Mapping) else ():
        if not isinstance(files, Mapping) or not isinstance(files.get("images"), (list, tuple)) or not isinstance(files.get("label"), str):
            report.add(identifier, errors=['its entry in \'dataset\' must be {"images": [paths in channel order], "label": path}'])
            continue
        images = [_expanded(folder, file) for file in files["images"]]
        label = _expanded(folder, files["label"])
        missing_images = [file for file in images if not os.path.isfile(file)]
        report.add(identifier, errors=[f"the image file {file} does not exist" for file in missing_images])
        if not os.path.isfile(label):
            report.add(identifier, errors=[f"the segmentation file {label} does not exist"])
            label = None
        images = [file for file in images if file not in missing_images]
        cases.append(RawCase(identifier=str(identifier), image_files=tuple(images), label_file=label))
    if not isinstance(listed, Mapping):
        report.add(DATASET_JSON, errors=["'dataset' must be an object that maps identifiers to their files"])
    return cases


def _cases_in_folders(folder: str, dataset_json: Mapping[str, Any], report: DatasetReport) -> list[RawCase]:
    """The cases of ``imagesTr`` and ``labelsTr``."""
    ending = dataset_json["file_ending"]
    image_folder, label_folder = os.path.join(folder, "imagesTr"), os.path.join(folder, "labelsTr")
    for required in (image_folder, label_folder):
        if not os.path.isdir(required):
            report.add(os.path.basename(required), errors=[f"the folder {required} does not exist"])
    images: dict[str, dict[int, str]] = {}  # file of each channel by identifier
    for name in _file_names(image_folder, ending, report):
        match = re.fullmatch(r"(.+)_(\d{4})", name.removesuffix(ending))
        if match is None:
            report.add(f"imagesTr/{name}", errors=[f"the name does not follow the pattern CASE_CCCC{ending} (CCCC: channel, from 0000)"])
            continue
        images.setdefault(match[1], {})[int(match[2])] = os.path.join(image_folder, name)
    labels = {name.removesuffix(ending): os.path.join(label_folder, name) for name in _file_names(label_folder, ending, report)}
    cases = []
    for identifier in sorted(images):
        channels = images[identifier]
        missing = [f"{index:04d}" for index in range(max(channels)) if index not in channels]
        # Files with several channels, such as RGB, make fewer files than channels; those are counted when they are read.
        report.add(identifier, errors=[f"channel {index} is missing: imagesTr/{identifier}_{index}{ending}" for index in missing])
        if identifier not in labels:
            report.add(identifier, errors=[f"the image has no segmentation: labelsTr/{identifier}{ending} does not exist"])
        cases.append(
            RawCase(
                identifier=identifier,
                image_files=tuple(channels[index] for index in sorted(channels)),
                label_file=labels.get(identifier),
            )
        )
    for identifier in sorted(set(labels) - set(images)):
        report.add(identifier, errors=[f"the segmentation has no image: imagesTr/{identifier}_0000{ending} does not exist"])
    return cases


def _file_names(folder: str, ending: str, report: DatasetReport) -> list[str]:
    """Sorted names of the files with the ending; others are mentioned."""
    if not os.path.isdir(folder):
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    hidden = [name for name in names if name.startswith(".") and name.endswith(ending)]
    if hidden:
        report.add(os.path.basename(folder), warnings=[f"hidden files are not used: {_some(hidden)}"])
    visible = [name for name in names if not name.startswith(".")]
    ignored = [name for name in visible if not name.endswith(ending) and not name.endswith(".json")]
    if ignored:
        report.add(os.path.basename(folder), warnings=[f"files that do not end in {ending} are not used: {_some(ignored)}"])
    return [name for name in visible if name.endswith(ending)]


def _check_number_of_cases(dataset_json: Mapping[str, Any], cases: Sequence[RawCase], report: DatasetReport) -> None:
    declared = dataset_json.get("numTraining")
    if isinstance(declared, int) and declared != len(cases):
        report.add(DATASET_JSON, errors=[f"'numTraining' is {declared}, but {len(cases)} training cases were found"])
    if not cases:
        report.add(DATASET_JSON, errors=[f"no training cases with files ending in {dataset_json['file_ending']} were found"])


def _check_files_of_cases(dataset_json: Mapping[str, Any], cases: Sequence[RawCase], num_processes: int, report: DatasetReport) -> None:
    """Read every case and add what is found to the report."""
    try:
        reader_class = _reader_class(dataset_json, cases)
    except RuntimeError as error:
        report.add(DATASET_JSON, errors=[str(error)])
        return
    channel_names, labels = _channel_names(dataset_json), dataset_json.get("labels")
    expected_num_channels = len(channel_names) if isinstance(channel_names, Mapping) else None
    expected_labels = declared_labels(labels) if isinstance(labels, Mapping) and _are_label_values(labels) else None
    case_reports = run_per_case(
        case_report,
        [(case, reader_class, expected_num_channels, expected_labels) for case in cases],
        identifiers=[case.identifier for case in cases],
        num_processes=num_processes,
        description="Verifying cases",
        on_error="return",
    )
    found: dict[str, CaseReport] = {}
    for case, result in zip(cases, case_reports, strict=True):
        if isinstance(result, CaseFailure):
            report.add(case.identifier, errors=[result.reason])
            continue
        already_missing = any(message.startswith("channel ") for message in report.errors.get(case.identifier, ()))
        errors = [message for message in result.errors if not (already_missing and message.startswith("channels found"))]
        report.add(case.identifier, errors, result.warnings)
        found[case.identifier] = result
    _sum_up_labels(found, labels if expected_labels is not None else None, report)


def _reader_class(dataset_json: Mapping[str, Any], cases: Sequence[RawCase]) -> type[BaseReaderWriter]:
    """The reader of the dataset, chosen with an example file that can be read."""
    examples = [file for case in cases for file in case.image_files[:1]]
    for example in examples[:5]:
        with contextlib.suppress(RuntimeError):
            return determine_reader_writer_from_dataset_json(dict(dataset_json), example, verbose=False)
    return determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False)


def _sum_up_labels(found: Mapping[str, CaseReport], labels: Mapping[str, Any] | None, report: DatasetReport) -> None:
    """Notes about the segmentations of all cases together."""
    rounded = [identifier for identifier, result in found.items() if result.rounded]
    if rounded:
        report.add(
            "labelsTr",
            warnings=[
                f"label values of {len(rounded)} {'case' if len(rounded) == 1 else 'cases'} are not quite whole numbers "
                f"(less than 0.001 off) and are rounded: {_some(rounded)}"
            ],
        )
    values = {identifier: result.label_values for identifier, result in found.items() if result.label_values is not None}
    empty = [identifier for identifier, present in values.items() if not any(present)]
    if empty:
        report.add("labelsTr", warnings=[f"{len(empty)} of {len(values)} segmentations hold background only: {_some(empty)}"])
    if labels is None or not values:
        return
    present = set(itertools.chain.from_iterable(values.values()))
    unused = [name for name, value in labels.items() if name != "ignore" and not present.intersection(map(int, _entries(value)))]
    if unused:
        report.add("labelsTr", warnings=[f"labels that no segmentation holds: {', '.join(map(str, unused))}"])


def _check_class_labels(folder: str, dataset_json: Mapping[str, Any], identifiers: Sequence[str], report: DatasetReport) -> None:
    """Add the problems of the class labels and, if they can be read, the table of classes."""
    try:
        errors, notes = find_label_problems(folder, dataset_json, identifiers)
    except (ValueError, RuntimeError, OSError) as error:
        errors, notes = [str(error)], []
    report.add(CLASS_LABELS, errors, notes)
    if "classification" in dataset_json:
        report.class_table = class_table(readable_labels(folder, dataset_json), identifiers)


def _channel_names(dataset_json: Mapping[str, Any]) -> Any:
    return dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json.get("modality")


def _entries(value: Any) -> tuple[Any, ...]:
    """The label values of one entry of ``labels``: several for a region."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _are_label_values(labels: Mapping[str, Any]) -> bool:
    """Whether all declared values are whole numbers, so that segmentations can be compared with them."""
    return all(_is_whole(entry) for value in labels.values() for entry in _entries(value))


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and int(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _expanded(folder: str, file: str) -> str:
    """Absolute path of an entry of ``dataset``: environment variables expanded, relative to the dataset folder."""
    return os.path.abspath(os.path.join(folder, os.path.expandvars(file)))


def _reading_problem(file: str, error: Exception) -> str:
    text = str(error)
    return text if os.path.basename(file) in text else f"{os.path.basename(file)}: {type(error).__name__}: {text}"


def _without_case(error: Exception) -> str:
    return str(error).removeprefix("Case ")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_CASES_NAMED} more" if len(names) > MOST_CASES_NAMED else ""
    return ", ".join(names[:MOST_CASES_NAMED]) + more


def _by_case(messages: Mapping[str, Sequence[str]]) -> str:
    """The messages as an indented list: dataset.json first, then cases and files in alphabetical order, class labels last."""
    lines = []
    for where in sorted(messages, key=lambda name: (name != DATASET_JSON, name == CLASS_LABELS, name)):
        lines.append(f"  {where}:")
        lines += ["    - " + message.replace("\n", "\n      ") for message in messages[where]]
    return "\n".join(lines)
