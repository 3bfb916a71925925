"""Scores of a folder of predicted segmentations: ``summary.json``. Imports no torch, here or in its worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.segmentation_metrics import (
    LabelOrRegion,
    compute_tp_fp_fn_tn,
    overlap_metrics,
    region_or_label_to_mask,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter, check_values
from nnunetv2.imageio.label_values import whole_label_values
from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
)
from nnunetv2.scheduling import run_per_case
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

__all__ = [
    "compute_metrics",
    "compute_metrics_on_folder",
    "compute_metrics_on_folder2",
    "compute_metrics_on_folder_simple",
    "compute_tp_fp_fn_tn",
    "evaluate_folder_entry_point",
    "evaluate_simple_entry_point",
    "foreground_dice",
    "key_to_label_or_region",
    "label_or_region_to_key",
    "labels_to_list_of_regions",
    "load_summary_json",
    "region_or_label_to_mask",
    "save_summary_json",
]

# Below this many bytes of segmentation files, all of them together are scored in about the time that worker processes take to start.
SMALL_JOB_BYTES = 8 * 1024**2
GEOMETRY_TOLERANCE = 1e-3  # mm; files store spacing and origin as float32 or as text
CASES_SHOWN = 5


def label_or_region_to_key(label_or_region: LabelOrRegion) -> str:
    """``"1"`` or ``"(1, 2)"``, the keys of ``summary.json``."""
    return str(tuple(int(v) for v in label_or_region) if np.ndim(label_or_region) else int(label_or_region))


def key_to_label_or_region(key: str) -> LabelOrRegion:
    """The inverse of :func:`label_or_region_to_key`."""
    if key.strip().startswith("("):
        return tuple(int(value) for value in key.strip("() ").split(",") if value.strip())
    return int(key)


def labels_to_list_of_regions(labels: Sequence[int]) -> list[tuple[int, ...]]:
    """Every label as a region of its own."""
    return [(label,) for label in labels]


def save_summary_json(results: Mapping[str, Any], output_file: str | os.PathLike) -> None:
    """Write scores, as :func:`compute_metrics_on_folder` returns them, with labels and regions as text."""
    converted = dict(results)
    converted["mean"] = _keys_converted(results["mean"], label_or_region_to_key)
    converted["metric_per_case"] = [
        {**case, "metrics": _keys_converted(case["metrics"], label_or_region_to_key)} for case in results["metric_per_case"]
    ]
    save_json(converted, output_file, sort_keys=True)


def load_summary_json(filename: str | os.PathLike) -> dict[str, Any]:
    """Read scores, with labels and regions as int and tuple."""
    results = load_json(filename)
    results["mean"] = _keys_converted(results["mean"], key_to_label_or_region)
    for case in results["metric_per_case"]:
        case["metrics"] = _keys_converted(case["metrics"], key_to_label_or_region)
    return results


def _keys_converted(by_label: Mapping[Any, Any], convert: Any) -> dict[Any, Any]:
    return {convert(key): value for key, value in by_label.items()}


def compute_metrics(
    reference_file: str,
    prediction_file: str,
    image_reader_writer: BaseReaderWriter,
    labels_or_regions: Sequence[LabelOrRegion],
    ignore_label: int | None = None,
) -> dict[str, Any]:
    """Scores of one case.

    Returns:
        ``{"reference_file", "prediction_file", "metrics": {label or region: {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}}}``

    Raises:
        ValueError: If the two do not lie on the same voxel grid, or hold values that are no labels.
    """
    return _compute_metrics(reference_file, prediction_file, image_reader_writer, labels_or_regions, ignore_label)[0]


def _compute_metrics(
    reference_file: str,
    prediction_file: str,
    image_reader_writer: BaseReaderWriter,
    labels_or_regions: Sequence[LabelOrRegion],
    ignore_label: int | None,
) -> tuple[dict[str, Any], list[str]]:
    """Scores of one case, and what of its geometry differs."""
    reference, reference_properties = image_reader_writer.read_seg(reference_file)
    prediction, prediction_properties = image_reader_writer.read_seg(prediction_file)
    if reference.shape != prediction.shape:
        raise ValueError(
            f"The prediction {prediction_file} has shape {prediction.shape[1:]}, the reference {reference_file} {reference.shape[1:]}. "
            "Both must lie on the same voxel grid."
        )
    for file, values in ((reference_file, reference), (prediction_file, prediction)):
        check_values(image_reader_writer, values, [file], "segmentation")
    reference = whole_label_values(reference, reference_file)
    prediction = whole_label_values(prediction, prediction_file)
    result = {
        "reference_file": reference_file,
        "prediction_file": prediction_file,
        "metrics": overlap_metrics(reference, prediction, labels_or_regions, ignore_label),
    }
    return result, differing_geometry(reference_properties, prediction_properties)


def differing_geometry(reference: Mapping[str, Any], prediction: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the numbers (spacing, origin, direction, affine) that two files' properties disagree in."""
    differing = []
    for name in reference:
        if name not in prediction:
            continue
        a, b = reference[name], prediction[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing += differing_geometry(a, b)
        elif isinstance(a, str) or a is None:
            continue
        elif np.shape(a) != np.shape(b) or not np.allclose(a, b, rtol=0, atol=GEOMETRY_TOLERANCE):
            differing.append(name)
    return list(dict.fromkeys(differing))


def compute_metrics_on_folder(
    folder_ref: str,
    folder_pred: str,
    output_file: str | None,
    image_reader_writer: BaseReaderWriter,
    file_ending: str,
    regions_or_labels: Sequence[LabelOrRegion],
    ignore_label: int | None = None,
    num_processes: int = default_num_processes,
    chill: bool = True,
) -> dict[str, Any]:
    """Scores of all predictions in a folder.

    Args:
        folder_ref: Folder of reference segmentations.
        folder_pred: Folder of predictions with the same file names.
        output_file: ``summary.json`` to write; None: none.
        image_reader_writer: Reads both.
        file_ending: Of both.
        regions_or_labels: What to score.
        ignore_label: Voxels with this label in the reference do not count.
        num_processes: Worker processes, where the files are large enough for them to help.
        chill: Accept references without a prediction.

    Returns:
        ``metric_per_case``, ``mean`` by label over the cases in which it can be computed, and ``foreground_mean``, the mean over the
        labels other than 0 (NaN if one of them is NaN).

    Raises:
        FileNotFoundError: If predictions or references are missing; names them.
        CaseErrors: If cases cannot be compared; names all of them.
    """
    names = _segmentation_names(folder_pred, file_ending)
    if not names:
        raise FileNotFoundError(f"{folder_pred} holds no predictions with the ending {file_ending}.")
    references = _segmentation_names(folder_ref, file_ending)
    _check_all_there(sorted(set(names) - set(references)), f"Predictions without a reference in {folder_ref}", "Remove them or add the references.")
    if not chill:
        _check_all_there(sorted(set(references) - set(names)), f"References without a prediction in {folder_pred}", "Predict them, or accept that with --chill.")

    files = [(os.path.join(folder_ref, name), os.path.join(folder_pred, name)) for name in names]
    outcomes = run_per_case(
        _compute_metrics,
        [(*pair, image_reader_writer, list(regions_or_labels), ignore_label) for pair in files],
        identifiers=[name.removesuffix(file_ending) for name in names],
        num_processes=processes_for_files([file for pair in files for file in pair], num_processes),
        description="evaluation",
        show_progress=False,
    )
    _warn_about_geometry({name: differing for name, (_, differing) in zip(names, outcomes, strict=True) if differing})
    results = summarize([case for case, _ in outcomes], regions_or_labels)
    if output_file is not None:
        save_summary_json(results, output_file)
    return results


def processes_for_files(files: Iterable[str | os.PathLike], num_processes: int) -> int:
    """The number of worker processes, or 1 where the files are so small that starting them takes longer than the work."""
    return 1 if sum(os.path.getsize(file) for file in files) < SMALL_JOB_BYTES else num_processes


def summarize(cases: Sequence[Mapping[str, Any]], regions_or_labels: Sequence[LabelOrRegion]) -> dict[str, Any]:
    """Means over cases, and over the labels other than the background."""
    mean = {}
    for label in regions_or_labels:
        by_metric = {name: [case["metrics"][label][name] for case in cases] for name in cases[0]["metrics"][label]}
        mean[label] = {name: _mean_of_numbers(values) for name, values in by_metric.items()}
    foreground = [values for label, values in mean.items() if label not in (0, (0,))]
    names = foreground[0] if foreground else ()
    return {
        "metric_per_case": list(cases),
        "mean": mean,
        "foreground_mean": {name: float(np.mean([values[name] for values in foreground])) for name in names},
    }


def foreground_dice(results: Mapping[str, Any]) -> float:
    """Mean Dice of the foreground labels that have one; NaN if none has.

    Equals ``foreground_mean`` unless a label has no Dice in any case, where that mean is NaN and nothing could be compared.
    """
    return _mean_of_numbers([values["Dice"] for label, values in results["mean"].items() if label not in (0, (0,))])


def _mean_of_numbers(values: Sequence[float]) -> float:
    """Mean of the values that are numbers; NaN without any."""
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if numbers.size else float("nan")


def _segmentation_names(folder: str, file_ending: str) -> list[str]:
    """Names of the segmentation files of a folder, sorted."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder {folder} does not exist.")
    return sorted(name for name in os.listdir(folder) if name.endswith(file_ending) and not name.startswith("."))


def _check_all_there(names: Sequence[str], what: str, advice: str) -> None:
    """Raise FileNotFoundError for cases that are on one side only."""
    if names:
        shown = ", ".join(names[:CASES_SHOWN]) + (f" and {len(names) - CASES_SHOWN} more" if len(names) > CASES_SHOWN else "")
        raise FileNotFoundError(f"{what} ({len(names)}): {shown}. {advice}")


def _warn_about_geometry(differing: Mapping[str, Sequence[str]]) -> None:
    """Say which files disagree about where their voxels are; the scores compare voxel by voxel."""
    if differing:
        shown = "; ".join(f"{name} ({', '.join(what)})" for name, what in list(differing.items())[:CASES_SHOWN])
        print(
            f"WARNING: {len(differing)} predictions and references have the same shape but a different geometry: {shown}"
            f"{' ...' if len(differing) > CASES_SHOWN else ''}. They were compared voxel by voxel; check that they belong together."
        )


def compute_metrics_on_folder2(
    folder_ref: str,
    folder_pred: str,
    dataset_json_file: str,
    plans_file: str,
    output_file: str | None = None,
    num_processes: int = default_num_processes,
    chill: bool = False,
) -> dict[str, Any]:
    """Like :func:`compute_metrics_on_folder` with labels and file format from ``dataset.json`` and the plans.

    Args:
        folder_ref: Folder of reference segmentations.
        folder_pred: Folder of predictions.
        dataset_json_file: Labels and file ending.
        plans_file: Names the label manager.
        output_file: None: ``summary.json`` in the folder of predictions.
        num_processes: Worker processes.
        chill: Accept references without a prediction.
    """
    dataset_json = load_json(dataset_json_file)
    file_ending = dataset_json["file_ending"]
    names = _segmentation_names(folder_ref, file_ending)
    if not names:
        raise FileNotFoundError(f"{folder_ref} holds no reference segmentations with the ending {file_ending}.")
    reader = determine_reader_writer_from_dataset_json(dataset_json, os.path.join(folder_ref, names[0]), verbose=False)()
    label_manager = PlansManager(plans_file).get_label_manager(dataset_json)
    return compute_metrics_on_folder(
        folder_ref,
        folder_pred,
        os.path.join(folder_pred, "summary.json") if output_file is None else output_file,
        reader,
        file_ending,
        label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels,
        label_manager.ignore_label,
        num_processes,
        chill=chill,
    )


def compute_metrics_on_folder_simple(
    folder_ref: str,
    folder_pred: str,
    labels: Sequence[int],
    output_file: str | None = None,
    num_processes: int = default_num_processes,
    ignore_label: int | None = None,
    chill: bool = False,
) -> dict[str, Any]:
    """Like :func:`compute_metrics_on_folder` for given labels, with the file format found from the first reference.

    Args:
        folder_ref: Folder of reference segmentations.
        folder_pred: Folder of predictions.
        labels: Labels to score.
        output_file: None: ``summary.json`` in the folder of predictions.
        num_processes: Worker processes.
        ignore_label: Voxels with this label in the reference do not count.
        chill: Accept references without a prediction.
    """
    file_ending = segmentation_file_ending(folder_ref)
    example = os.path.join(folder_ref, _segmentation_names(folder_ref, file_ending)[0])
    reader = determine_reader_writer_from_file_ending(file_ending, example, allow_nonmatching_filename=True, verbose=False)()
    output_file = os.path.join(folder_pred, "summary.json") if output_file is None else output_file
    return compute_metrics_on_folder(
        folder_ref, folder_pred, output_file, reader, file_ending, labels, ignore_label, num_processes, chill=chill
    )


def segmentation_file_ending(folder: str) -> str:
    """Ending of the segmentation files in a folder, whole: ``.nii.gz``, not ``.gz``.

    Raises:
        FileNotFoundError: If no file has an ending that can be read.
        ValueError: If the files have different endings.
    """
    known = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}, key=len, reverse=True)
    endings = {next((ending for ending in known if name.lower().endswith(ending)), None) for name in _segmentation_names(folder, "")}
    endings.discard(None)
    if not endings:
        raise FileNotFoundError(f"{folder} holds no segmentation. Endings that can be read: {', '.join(sorted(known))}.")
    if len(endings) > 1:
        raise ValueError(f"{folder} holds segmentations with different endings, {', '.join(sorted(endings))}. Keep one kind in it.")
    return endings.pop()


def evaluate_folder_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_evaluate_folder``; lives in ``nnunetv2.cli.evaluate``."""
    from nnunetv2.cli.evaluate import evaluate_folder_entry

    evaluate_folder_entry(argv)


def evaluate_simple_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_evaluate_simple``; lives in ``nnunetv2.cli.evaluate``."""
    from nnunetv2.cli.evaluate import evaluate_simple_entry

    evaluate_simple_entry(argv)
