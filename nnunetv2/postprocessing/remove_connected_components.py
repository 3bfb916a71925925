"""Removing all but the largest component of structures: decided on predictions with known references, then applied to others.

``postprocessing.pkl`` is the file of nnU-Net: a pickle of a list of functions and a list of their keyword arguments. Read here, it can
refer to the functions of this module and to nothing else. ``postprocessing.json`` beside it says the same in text, and can be used as well.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import (
    compute_metrics_on_folder,
    foreground_dice,
    label_or_region_to_key,
    load_summary_json,
    processes_for_files,
    save_summary_json,
    summarize,
)
from nnunetv2.evaluation.segmentation_metrics import LabelOrRegion, overlap_metrics
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.label_values import whole_label_values
from nnunetv2.scheduling import run_per_case
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, copy_file, load_json, restricted_pickle_load, save_json, save_pickle
from nnunetv2.utilities.label_handling.classification_table import CLASSIFICATION_FILE
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

POSTPROCESSING_PKL, POSTPROCESSING_JSON, POSTPROCESSED = "postprocessing.pkl", "postprocessing.json", "postprocessed"
SHOWN_NAMES = 5


def remove_all_but_largest_component_from_segmentation(
    segmentation: np.ndarray,
    labels_or_regions: LabelOrRegion | Sequence[LabelOrRegion],
    background_label: int = 0,
) -> np.ndarray:
    """Keep the largest connected component of some labels taken together; of equally large ones all stay.

    Args:
        segmentation: Label map with any number of axes; not modified. Voxels that touch at a corner are connected.
        labels_or_regions: Label, region (tuple of labels), or several of them.
        background_label: What removed voxels become.

    Returns:
        A new label map of the same shape and dtype.
    """
    from scipy.ndimage import label

    result = segmentation.copy()
    mask = np.isin(segmentation, _flat_labels(labels_or_regions))
    if not mask.any():
        return result
    box = _bounding_box(mask)
    components, number = label(mask[box], structure=np.ones((3,) * segmentation.ndim))
    if number > 1:
        sizes = np.bincount(components.ravel())[1:]
        removed = np.concatenate([[False], sizes < sizes.max()])
        result[box][removed[components]] = background_label
    return result


# What a postprocessing.pkl may refer to, by the name that it gives.
POSTPROCESSING_FUNCTIONS = {
    f"nnunetv2.postprocessing.remove_connected_components.{function.__name__}": function
    for function in (remove_all_but_largest_component_from_segmentation,)
}


def _flat_labels(labels_or_regions: Any) -> list[int]:
    """All labels of nested labels and regions."""
    if not isinstance(labels_or_regions, (list, tuple, np.ndarray)):
        return [int(labels_or_regions)]
    return [value for entry in labels_or_regions for value in _flat_labels(entry)]


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box with all true voxels, of which there are some."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def apply_postprocessing(segmentation: np.ndarray, pp_fns: Sequence[Callable], pp_fn_kwargs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Apply functions one after the other to a label map.

    Args:
        segmentation: Label map; not modified by the functions of this module.
        pp_fns: Each takes the label map and its keyword arguments.
        pp_fn_kwargs: Keyword arguments of each function.
    """
    for function, arguments in zip(pp_fns, pp_fn_kwargs, strict=True):
        segmentation = function(segmentation, **arguments)
    return segmentation


def load_postprocess_save(
    segmentation_file: str,
    output_fname: str,
    image_reader_writer: BaseReaderWriter,
    pp_fns: Sequence[Callable],
    pp_fn_kwargs: Sequence[Mapping[str, Any]],
) -> None:
    """Postprocess one file into another."""
    segmentation, properties = image_reader_writer.read_seg(segmentation_file)
    segmentation = whole_label_values(segmentation, segmentation_file)[0]
    image_reader_writer.write_seg(apply_postprocessing(segmentation, pp_fns, pp_fn_kwargs), output_fname, properties)


# deciding


@dataclass
class _State:
    """The predictions as the steps accepted so far have left them."""

    files: dict[str, str]  # segmentation by file name
    cases: dict[str, dict[str, Any]]  # an entry of metric_per_case by file name
    summary: dict[str, Any]
    functions: list[Callable] = field(default_factory=list)
    arguments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dice(self) -> dict[LabelOrRegion, float]:
        return {label: values["Dice"] for label, values in self.summary["mean"].items()}


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What does not change from step to step."""

    reader: BaseReaderWriter
    labels: list[LabelOrRegion]
    ignore_label: int | None
    temporary: Path
    num_processes: int


def determine_postprocessing(
    folder_predictions: str | os.PathLike,
    folder_ref: str | os.PathLike,
    plans_file_or_dict: str | os.PathLike | dict,
    dataset_json_file_or_dict: str | os.PathLike | dict,
    num_processes: int = default_num_processes,
    keep_postprocessed_files: bool = True,
) -> tuple[list[Callable], list[dict[str, Any]]]:
    """Find out which structures are better without all but their largest component.

    First all foreground labels are taken together; that is accepted if the mean Dice of the foreground rises and no structure's falls. Then,
    with more than one structure, each alone, accepted if its own Dice rises. Only cases that a step changes are scored again.

    Args:
        folder_predictions: Predictions of cases with references; ``summary.json`` there is used if it is of these files and
            not older. Written into it:
            ``postprocessing.pkl``, ``postprocessing.json`` and the folder ``postprocessed``.
        folder_ref: Reference segmentations.
        plans_file_or_dict: Plans of the predictions.
        dataset_json_file_or_dict: ``dataset.json`` of the predictions.
        num_processes: Worker processes.
        keep_postprocessed_files: Keep the folder ``postprocessed``.

    Returns:
        The functions and their keyword arguments; empty lists if nothing is to be removed.

    Raises:
        FileNotFoundError: If there are no predictions, or some have no reference.
    """
    folder = Path(folder_predictions)
    plans_manager = PlansManager(_path_or_dict(plans_file_or_dict))
    dataset_json = _json(dataset_json_file_or_dict)
    label_manager = plans_manager.get_label_manager(dataset_json)
    labels = list(label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels)
    before = _summary_of_predictions(folder, folder_ref, plans_manager, dataset_json, labels, label_manager.ignore_label, num_processes)
    state = _State(
        files={os.path.basename(case["prediction_file"]): case["prediction_file"] for case in before["metric_per_case"]},
        cases={os.path.basename(case["prediction_file"]): case for case in before["metric_per_case"]},
        summary=before,
    )
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as temporary:
        task = _Task(
            reader=plans_manager.image_reader_writer_class(),
            labels=labels,
            ignore_label=label_manager.ignore_label,
            temporary=Path(temporary),
            num_processes=num_processes,
        )
        state = _all_structures_together(state, task, [int(label) for label in label_manager.foreground_labels])
        if len(labels) > 1:
            for structure in labels:
                state = _one_structure(state, task, structure)
        _write_result(folder, before, state, keep_postprocessed_files)
    return state.functions, state.arguments


def _all_structures_together(state: _State, task: _Task, foreground_labels: list[int]) -> _State:
    """Accept the largest component of the whole foreground if the mean rises and nothing falls."""
    tried = _tried(state, task, foreground_labels)
    old, new = foreground_dice(state.summary), foreground_dice(tried.summary)
    falling = [label for label, dice in tried.dice.items() if dice < state.dice[label]]
    accepted = new > old and not falling
    because = f"; lower for {', '.join(map(str, falling))}" if falling else ""
    _say("the whole foreground", accepted, f"mean Dice {old:.5f} -> {new:.5f}{because}")
    return tried if accepted else state


def _one_structure(state: _State, task: _Task, structure: LabelOrRegion) -> _State:
    """Accept the largest component of one structure if its Dice rises."""
    tried = _tried(state, task, structure)
    old, new = state.dice[structure], tried.dice[structure]
    _say(f"structure {structure}", new > old, f"Dice {old:.5f} -> {new:.5f}")
    return tried if new > old else state


def _say(what: str, accepted: bool, numbers: str) -> None:
    print(f"Only the largest component of {what}: {numbers}: {'accepted' if accepted else 'not accepted'}")


def _tried(state: _State, task: _Task, labels_or_regions: Any) -> _State:
    """The state with one more function applied; cases that it does not change keep file and scores."""
    function, arguments = remove_all_but_largest_component_from_segmentation, {"labels_or_regions": labels_or_regions}
    step = task.temporary / str(len(list(task.temporary.iterdir())))
    step.mkdir()
    names = list(state.files)
    changed = run_per_case(
        _changed_case,
        [
            (state.files[name], state.cases[name]["reference_file"], str(step / name), task.reader, function, arguments, task.labels, task.ignore_label)
            for name in names
        ],
        identifiers=names,
        num_processes=processes_for_files(state.files.values(), task.num_processes),
        description="postprocessing",
        show_progress=False,
    )  # fmt: skip
    files, cases = dict(state.files), dict(state.cases)
    for name, metrics in zip(names, changed, strict=True):
        if metrics is not None:
            files[name], cases[name] = str(step / name), {**state.cases[name], "metrics": metrics}
    return _State(
        files=files,
        cases=cases,
        summary=summarize(list(cases.values()), task.labels),
        functions=[*state.functions, function],
        arguments=[*state.arguments, arguments],
    )


def _changed_case(
    file: str,
    reference_file: str,
    output_file: str,
    reader: BaseReaderWriter,
    function: Callable,
    arguments: Mapping[str, Any],
    labels: Sequence[LabelOrRegion],
    ignore_label: int | None,
) -> dict[LabelOrRegion, dict[str, float]] | None:
    """Postprocess a case; if that changes it, write it and return its scores."""
    segmentation, properties = reader.read_seg(file)
    segmentation = whole_label_values(segmentation, file)[0]
    processed = function(segmentation, **arguments)
    if np.array_equal(processed, segmentation):
        return None
    reader.write_seg(processed, output_file, properties)
    reference = whole_label_values(reader.read_seg(reference_file)[0], reference_file)[0]
    return overlap_metrics(reference, processed, labels, ignore_label)


def _summary_of_predictions(
    folder: Path,
    folder_ref: str | os.PathLike,
    plans_manager: PlansManager,
    dataset_json: Mapping[str, Any],
    labels: Sequence[LabelOrRegion],
    ignore_label: int | None,
    num_processes: int,
) -> dict[str, Any]:
    """Scores of the predictions; those in ``summary.json`` if they are of the same files and structures."""
    file, ending = folder / "summary.json", dataset_json["file_ending"]
    names = {name for name in os.listdir(folder) if name.endswith(ending) and not name.startswith(".")} if folder.is_dir() else set()
    if names and file.is_file():
        summary = load_summary_json(file)
        cases = {os.path.basename(case["prediction_file"]): case for case in summary["metric_per_case"]}
        outdated = any(os.path.getmtime(folder / name) > os.path.getmtime(file) for name in names)
        if set(cases) == names and set(summary["mean"]) == set(labels) and not outdated:
            for name, case in cases.items():  # the folders may have been moved since
                case.update(prediction_file=str(folder / name), reference_file=os.path.join(folder_ref, name))
            missing = sorted(name for name in names if not os.path.isfile(os.path.join(folder_ref, name)))
            if not missing:
                return summary
            raise FileNotFoundError(
                f"Predictions without a reference in {folder_ref} ({len(missing)}): {', '.join(missing[:SHOWN_NAMES])}. Give the folder of "
                "the references of these cases (-ref)."
            )
        print(f"{file} is older than the predictions, or of others; they are scored again.")
    return compute_metrics_on_folder(
        str(folder_ref), str(folder), str(file), plans_manager.image_reader_writer_class(), ending, labels, ignore_label, num_processes
    )


def _write_result(folder: Path, before: Mapping[str, Any], state: _State, keep_files: bool) -> None:
    """``postprocessed``, ``postprocessing.json`` and, last, ``postprocessing.pkl``."""
    target = folder / POSTPROCESSED
    if target.is_dir():
        shutil.rmtree(target)
    if keep_files:
        target.mkdir()
        for name, file in state.files.items():
            copy_file(file, target / name)
        cases = [{**case, "prediction_file": str(target / name)} for name, case in state.cases.items()]
        save_summary_json({**state.summary, "metric_per_case": cases}, target / "summary.json")
    save_json(
        {
            "input_folder": _means(before),
            "postprocessed": _means(state.summary),
            "postprocessing_fns": [function.__name__ for function in state.functions],
            "postprocessing_kwargs": state.arguments,
        },
        folder / POSTPROCESSING_JSON,
    )
    save_pickle((state.functions, state.arguments), folder / POSTPROCESSING_PKL)


def _means(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The means of a summary with labels as text."""
    mean = {label_or_region_to_key(label): values for label, values in summary["mean"].items()}
    return {"foreground_mean": summary["foreground_mean"], "mean": mean}


# applying


def load_postprocessing(file: str | os.PathLike) -> tuple[list[Callable], list[dict[str, Any]]]:
    """Functions and keyword arguments from ``postprocessing.pkl``, also of nnU-Net 2.8.1, or from ``postprocessing.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it refers to anything but the functions of this module; nothing of it is executed then.
    """
    advice = f"Expected a {POSTPROCESSING_PKL} or {POSTPROCESSING_JSON} of nnUNetv2_determine_postprocessing; run that again."
    if str(file).endswith(".json"):
        content = load_json(file)
        by_name = {function.__name__: function for function in POSTPROCESSING_FUNCTIONS.values()}
        try:
            functions, arguments = [by_name[name] for name in content["postprocessing_fns"]], content["postprocessing_kwargs"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} names no known postprocessing: {error}. {advice}") from error
    else:
        try:
            content = restricted_pickle_load(file, POSTPROCESSING_FUNCTIONS)
        except ValueError as error:
            raise ValueError(f"{error} {advice}") from error
        if not isinstance(content, tuple) or len(content) != 2:
            raise ValueError(f"{file} does not hold functions and their arguments. {advice}")
        functions, arguments = content
    are_lists = isinstance(functions, list) and isinstance(arguments, list) and len(functions) == len(arguments)
    known = are_lists and all(any(function is known for known in POSTPROCESSING_FUNCTIONS.values()) for function in functions)
    if not known or not all(isinstance(entry, dict) for entry in arguments):
        raise ValueError(f"{file} does not hold functions and their arguments. {advice}")
    return list(functions), list(arguments)


def apply_postprocessing_to_folder(
    input_folder: str | os.PathLike,
    output_folder: str | os.PathLike,
    pp_fns: Sequence[Callable],
    pp_fn_kwargs: Sequence[Mapping[str, Any]],
    plans_file_or_dict: str | os.PathLike | dict | None = None,
    dataset_json_file_or_dict: str | os.PathLike | dict | None = None,
    num_processes: int = 8,
) -> None:
    """Postprocess all predictions of a folder into another.

    The class table, ``dataset.json`` and ``plans.json`` of the input folder are copied, so that the output is a folder of predictions too.

    Args:
        input_folder: Predictions.
        output_folder: Created.
        pp_fns: See :func:`apply_postprocessing`.
        pp_fn_kwargs: See there.
        plans_file_or_dict: Name the reader; None: ``plans.json`` of the input folder.
        dataset_json_file_or_dict: Gives the file ending; None: ``dataset.json`` of the input folder.
        num_processes: Worker processes.

    Raises:
        FileNotFoundError: If plans, ``dataset.json`` or predictions are missing.
    """
    source, target = Path(input_folder), Path(output_folder)
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}. Give a folder of predictions.")
    plans = _described_by(plans_file_or_dict, source / "plans.json", "-plans_json")
    dataset_json = _json(_described_by(dataset_json_file_or_dict, source / "dataset.json", "-dataset_json"))
    ending, reader = dataset_json["file_ending"], PlansManager(_path_or_dict(plans)).image_reader_writer_class()
    names = sorted(name for name in os.listdir(source) if name.endswith(ending) and not name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{source} holds no predictions with the ending {ending}.")
    target.mkdir(parents=True, exist_ok=True)
    run_per_case(
        load_postprocess_save,
        [(str(source / name), str(target / name), reader, list(pp_fns), list(pp_fn_kwargs)) for name in names],
        identifiers=[name.removesuffix(ending) for name in names],
        num_processes=processes_for_files([source / name for name in names], num_processes),
        description="postprocessing",
        show_progress=False,
    )
    if target.resolve() != source.resolve():
        for name in ("dataset.json", "plans.json", CLASSIFICATION_FILE):
            if (source / name).is_file():
                copy_file(source / name, target / name)


def _described_by(given: Any, default: Path, option: str) -> Any:
    """What was given, or the file of the input folder."""
    if given is not None:
        return given
    if not default.is_file():
        raise FileNotFoundError(f"{default} does not exist. Give the file of the model that made the predictions with {option}.")
    return str(default)


def _path_or_dict(content: Any) -> Any:
    return os.fspath(content) if isinstance(content, os.PathLike) else content


def _json(content: Any) -> Any:
    return content if isinstance(content, Mapping) else load_json(content)


def entry_point_determine_postprocessing_folder(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_determine_postprocessing``; lives in ``nnunetv2.cli.postprocessing``."""
    from nnunetv2.cli.postprocessing import determine_postprocessing_entry

    determine_postprocessing_entry(argv)


def entry_point_apply_postprocessing(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_apply_postprocessing``; lives in ``nnunetv2.cli.postprocessing``."""
    from nnunetv2.cli.postprocessing import apply_postprocessing_entry

    apply_postprocessing_entry(argv)
