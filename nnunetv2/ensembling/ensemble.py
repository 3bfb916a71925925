"""The mean of the probabilities that several models predict: for every voxel, and for the classes of every case."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.accumulate_cv_results import (
    describe_cross_validation,
    model_description,
    prepare_output,
    some,
    validation_files,
)
from nnunetv2.evaluation.evaluate_predictions import processes_for_files
from nnunetv2.evaluation.validation_tables import (
    VALIDATION,
    ClassRows,
    PooledTables,
    known_labels,
    pooled_class_tables,
    write_pooled_tables,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.scheduling import run_per_case
from nnunetv2.utilities.file_io import atomic_path, load_json, load_properties, save_json, save_pickle
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import (
    CLASSIFICATION_FILE,
    has_raw_columns,
    read_classification_csv,
    read_classification_rows,
    write_classification_csv,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

ENSEMBLE_HEADS = "ensemble"  # stands for the heads of all members in classification_summary.json
# What the probabilities of two members must mean alike, or their mean means nothing.
SAME_IN_ALL = ("labels", "regions_class_order", "file_ending")


def average_probabilities(list_of_files: Sequence[str | os.PathLike]) -> np.ndarray:
    """Mean of the ``probabilities`` in ``.npz`` files, float32 ``(heads, Z, Y, X)``.

    Raises:
        ValueError: If a file holds none, or their shapes differ; names the files.
    """
    if not list_of_files:
        raise ValueError("There are no files to average.")
    total = None
    for file in list_of_files:
        probabilities = _read_probabilities(file)
        if total is None:
            total = probabilities.astype(np.float32)
        elif total.shape != probabilities.shape:
            raise ValueError(
                f"{file} has probabilities of shape {probabilities.shape}, {list_of_files[0]} of {total.shape}. All members must predict the "
                "same images with the same labels."
            )
        else:
            total += probabilities
    return total / len(list_of_files)


def _read_probabilities(file: str | os.PathLike) -> np.ndarray:
    """The array of one file."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return content["probabilities"]
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {file}. Predict with --save_probabilities, train and validate with --npz.") from None
    except Exception as error:  # a damaged archive raises anything
        raise ValueError(
            f"{file} cannot be read as probabilities ({type(error).__name__}: {error}). Predict its case again with --save_probabilities."
        ) from error


def merge_files(
    list_of_files: Sequence[str | os.PathLike],
    output_filename_truncated: str | os.PathLike,
    output_file_ending: str,
    image_reader_writer: BaseReaderWriter,
    label_manager: LabelManager,
    save_probabilities: bool = False,
    *,
    classification: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the segmentation of averaged probabilities.

    Args:
        list_of_files: ``.npz`` of one case from every member; the ``.pkl`` beside the first says where its voxels are.
        output_filename_truncated: Output file without ending.
        output_file_ending: Of the segmentation.
        image_reader_writer: Writes it.
        label_manager: Turns probabilities into labels.
        save_probabilities: Also write ``.npz`` and ``.pkl``, so that the result can be averaged with others.
        classification: Class probabilities by task for the ``.npz``.
    """
    output = os.fspath(output_filename_truncated)
    properties_file = f"{os.fspath(list_of_files[0]).removesuffix('.npz')}.pkl"
    properties = load_properties(properties_file)
    probabilities = average_probabilities(list_of_files)
    segmentation = label_manager.convert_probabilities_to_segmentation(probabilities)
    if save_probabilities:
        classes = {f"classification_{task}": np.asarray(values, dtype=np.float32) for task, values in (classification or {}).items()}
        with atomic_path(output + ".npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, probabilities=probabilities, **classes)
        save_pickle(properties, output + ".pkl")
    image_reader_writer.write_seg(segmentation, output + output_file_ending, properties)


# folders of predictions


def ensemble_folders(
    list_of_input_folders: Sequence[str | os.PathLike],
    output_folder: str | os.PathLike,
    save_merged_probabilities: bool = False,
    num_processes: int = default_num_processes,
    dataset_json_file_or_dict: str | os.PathLike | dict | None = None,
    plans_json_file_or_dict: str | os.PathLike | dict | None = None,
) -> None:
    """Average the predictions of several models for the same images.

    Segmentations come from the ``.npz`` files, classes from ``classification.csv`` where the folders have one. Calibrated class
    probabilities are averaged as they are. Folders with classes alone (``--cls_only``) can be averaged too.

    Args:
        list_of_input_folders: What ``nnUNetv2_predict --save_probabilities`` wrote, one folder for each member.
        output_folder: Created; gets ``dataset.json`` and ``plans.json`` as well.
        save_merged_probabilities: Also write the averaged probabilities.
        num_processes: Worker processes.
        dataset_json_file_or_dict: None: of the first folder.
        plans_json_file_or_dict: None: of the first folder.

    Raises:
        FileNotFoundError: If a folder lacks ``dataset.json``, ``plans.json`` or all predictions.
        ValueError: If the members have different labels, tasks or cases.
    """
    folders, output = [Path(folder) for folder in list_of_input_folders], Path(output_folder)
    if not folders:
        raise ValueError("There are no folders to average.")
    if output.resolve() in {folder.resolve() for folder in folders}:
        raise ValueError(f"{output} is an input as well, and its predictions would be overwritten. Choose another output folder.")
    dataset_json = _content(dataset_json_file_or_dict, folders[0] / "dataset.json")
    plans = _content(plans_json_file_or_dict, folders[0] / "plans.json")
    _check_same_labels(folders, dataset_json)
    identifiers = _common_cases(folders)
    tasks = classification_tasks(dataset_json)
    classes = average_class_tables_of_folders(folders, tasks)
    if not identifiers and classes is None:
        raise FileNotFoundError(f"{folders[0]} holds neither probabilities (*.npz) nor classes. Predict with --save_probabilities.")
    output.mkdir(parents=True, exist_ok=True)
    save_json(dataset_json, output / "dataset.json")
    save_json(plans, output / "plans.json")
    _merge_cases(
        {identifier: [folder / f"{identifier}.npz" for folder in folders] for identifier in identifiers},
        output,
        dataset_json,
        PlansManager(plans),
        num_processes,
        save_probabilities=save_merged_probabilities,
        classes={} if classes is None else classes[0],
    )
    if classes is not None:
        write_classification_csv(output / CLASSIFICATION_FILE, tasks, *classes)


def _content(given: str | os.PathLike | dict | None, default: Path) -> dict[str, Any]:
    """What was given, or what the first folder says."""
    if isinstance(given, dict):
        return given
    if given is None and not default.is_file():
        raise FileNotFoundError(f"{default} does not exist. Is {default.parent} a folder that nnUNetv2_predict wrote?")
    return load_json(default if given is None else given)


def _check_same_labels(folders: Sequence[Path], dataset_json: Mapping[str, Any]) -> None:
    """Raise ValueError if a member was trained for other labels."""
    for folder in folders:
        file = folder / "dataset.json"
        other = load_json(file) if file.is_file() else dataset_json
        for key in SAME_IN_ALL:
            if other.get(key) != dataset_json.get(key):
                raise ValueError(
                    f"{file} has {key} {other.get(key)}, {folders[0] / 'dataset.json'} {dataset_json.get(key)}. The members of an ensemble "
                    "must be models of the same labels."
                )


def _common_cases(folders: Sequence[Path]) -> list[str]:
    """Identifiers of the ``.npz`` files, which must be the same in all folders."""
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"There is no folder {', '.join(missing)}.")
    cases = [{name.removesuffix(".npz") for name in os.listdir(folder) if name.endswith(".npz") and name[0] != "."} for folder in folders]
    _check_same_cases(folders, cases, "probabilities (.npz)", "Predict all with --save_probabilities.")
    return sorted(cases[0])


def _check_same_cases(members: Sequence[Any], cases: Sequence[set[str]], what: str, advice: str) -> None:
    """Raise ValueError if a case is missing in some member."""
    everything = set().union(*cases)
    lacking = [
        f"{member} lacks {some(sorted(everything - found))}" for member, found in zip(members, cases, strict=True) if everything - found
    ]
    if lacking:
        raise ValueError(f"The members have {what} of different cases: {'; '.join(lacking)}. {advice}")


def _merge_cases(
    files: Mapping[str, Sequence[Path]],
    output: Path,
    dataset_json: dict,
    plans_manager: PlansManager,
    num_processes: int,
    *,
    save_probabilities: bool = False,
    classes: Mapping[str, Any] | None = None,
) -> None:
    """Average every case into a folder."""
    label_manager, reader = plans_manager.get_label_manager(dataset_json), plans_manager.image_reader_writer_class()
    rows = {identifier: row for identifier, row in (classes or {}).items() if not isinstance(row, str)}
    run_per_case(
        _merge_case,
        [
            (members, output / identifier, dataset_json["file_ending"], reader, label_manager, save_probabilities, rows.get(identifier))
            for identifier, members in files.items()
        ],
        identifiers=list(files),
        num_processes=processes_for_files([file for members in files.values() for file in members], num_processes),
        description="ensemble",
        show_progress=False,
    )


def _merge_case(*arguments: Any) -> None:
    """:func:`merge_files` with positional arguments alone."""
    *arguments, classification = arguments
    merge_files(*arguments, classification=classification)


# classes


def average_class_tables_of_folders(
    folders: Sequence[Path], tasks: Mapping[str, ClassificationTask]
) -> tuple[dict[str, dict[str, np.ndarray] | str], ClassRows | None] | None:
    """The mean of the ``classification.csv`` of several folders.

    Folders without one do not vote, with a warning. A case that failed in a member fails.

    Args:
        folders: Of predictions.
        tasks: Of the first one.

    Returns:
        Rows for :func:`~nnunetv2.utilities.label_handling.classification_table.write_classification_csv`: by identifier the probabilities
        by task, or the error; and the same before calibration if all members have it. None if no folder has a table.

    Raises:
        ValueError: If the members have other tasks, classes or cases.
    """
    having = [folder for folder in folders if (folder / CLASSIFICATION_FILE).is_file()]
    if not having:
        return None
    without = [str(folder) for folder in folders if folder not in having]
    if without:
        print(
            f"WARNING: {', '.join(without)} has no {CLASSIFICATION_FILE} (nnUNetv2_predict --save_cls writes it); the others decide on classes."
        )
    for folder in having:
        _check_same_tasks(folder, tasks, having[0])
    files = [folder / CLASSIFICATION_FILE for folder in having]
    tables = [read_classification_rows(file, tasks) for file in files]
    _check_same_cases(files, [set(table) for table in tables], "classes", "Predict the same images with all models.")
    rows: dict[str, dict[str, np.ndarray] | str] = {}
    for identifier in sorted(tables[0]):
        members = [table[identifier] for table in tables]
        errors = [f"{folder.name}: {row}" for folder, row in zip(having, members, strict=True) if isinstance(row, str)]
        rows[identifier] = "; ".join(errors) if errors else mean_of_members(members)
    calibrated = [has_raw_columns(file, tasks) for file in files]
    if all(calibrated):
        raw = [read_classification_csv(file, tasks, raw=True) for file in files]
        return rows, {name: mean_of_members([table[name] for table in raw]) for name, row in rows.items() if not isinstance(row, str)}
    if any(calibrated):
        listed = ", ".join(str(folder) for folder, has in zip(having, calibrated, strict=True) if has)
        print(f"WARNING: only {listed} holds calibrated class probabilities. They are averaged with the others' as they are.")
    return rows, None


def _check_same_tasks(folder: Path, tasks: Mapping[str, ClassificationTask], first: Path) -> None:
    """Raise ValueError unless a member's model has the same tasks and classes."""
    file = folder / "dataset.json"
    found = classification_tasks(load_json(file)) if file.is_file() else tasks
    expected, other = ({name: (task.type, list(task.classes)) for name, task in content.items()} for content in (tasks, found))
    if expected != other or not tasks:
        raise ValueError(
            f"{file} declares the classes {other or 'none'}, {first / 'dataset.json'} {expected or 'none'}. Class probabilities can be averaged for the "
            "same tasks, with the same classes in the same order, only. To average segmentations alone, leave out classification.csv."
        )


def mean_of_members(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean probabilities ``(K,)`` by task of one case."""
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


# cross-validations


def ensemble_crossvalidations(
    list_of_trained_model_folders: Sequence[str | os.PathLike],
    output_folder: str | os.PathLike,
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    num_processes: int = default_num_processes,
    overwrite: bool = True,
    *,
    class_heads: Sequence[str | None] | None = None,
    validation_names: Sequence[str] | None = None,
) -> None:
    """Average the validation predictions of several models, every case once.

    Writes segmentations, ``dataset.json``, ``plans.json``, ``cross_validation.json``, and where all models have classes
    ``classification.csv`` and their scores.

    Args:
        list_of_trained_model_folders: Folders ``TRAINER__PLANS__CONFIGURATION``, validated with ``--npz``.
        output_folder: Created.
        folds: Of all models.
        num_processes: Worker processes.
        overwrite: Remove what is in the output folder first; otherwise cases that are there stay.
        class_heads: By model which set of heads votes; None: the one that counts.
        validation_names: By model the folder in each fold, which tells the checkpoint; None: ``validation``.

    Raises:
        RuntimeError: If a fold has no probabilities, or a case stands in several folds.
        ValueError: If models have different labels or validated different cases.
    """
    models, output = [Path(folder) for folder in list_of_trained_model_folders], Path(output_folder)
    if not models:
        raise ValueError("There are no models to average.")
    descriptions = [model_description(model) for model in models]
    dataset_json, plans_manager = descriptions[0]
    _check_same_labels(models, dataset_json)
    validation_names = validation_names or [VALIDATION] * len(models)
    files = [_probability_files(model, folds, name) for model, name in zip(models, validation_names, strict=True)]
    _check_same_cases(
        models, [set(found) for found in files], "validated probabilities (.npz)", "Validate all with --npz and the same splits."
    )
    prepare_output(output, models, overwrite)
    merged = {identifier: [found[identifier][1] for found in files] for identifier in sorted(files[0])}
    if not overwrite:
        merged = {
            identifier: m for identifier, m in merged.items() if not (output / f"{identifier}{dataset_json['file_ending']}").is_file()
        }
    describe_cross_validation(output, models, folds, {identifier: fold for identifier, (fold, _) in files[0].items()})
    _merge_cases(merged, output, dataset_json, plans_manager, num_processes)
    contents = [content for content, _ in descriptions]
    _ensemble_classes(models, output, folds, contents, plans_manager.dataset_name, class_heads, validation_names)


def _probability_files(model: Path, folds: Sequence[int | str], validation_name: str) -> dict[str, tuple[int | str, Path]]:
    """The validation's ``.npz`` files of a model, with the remedy if there are none."""
    try:
        return validation_files(model, folds, ".npz", validation_name)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error} Probabilities are kept with --npz: nnUNetv2_train ... --val --npz. Without ensembles (--disable_ensembling) they are not needed."
        ) from error


def _ensemble_classes(
    models: Sequence[Path],
    output: Path,
    folds: Sequence[int | str],
    dataset_jsons: Sequence[dict],
    dataset_name: str,
    class_heads: Sequence[str | None] | None,
    validation_names: Sequence[str],
) -> None:
    """The class table of an ensemble's cross-validation, if all members have classes, and its scores."""
    tasks = classification_tasks(dataset_jsons[0])
    pooled: list[PooledTables] = [
        pooled_class_tables(model, folds, classification_tasks(content), name)
        for model, content, name in zip(models, dataset_jsons, validation_names, strict=True)
    ]
    if not tasks or not all(member.tables for member in pooled):
        return
    for model in models:
        _check_same_tasks(model, tasks, models[0])
    chosen = []
    for model, member, heads in zip(models, pooled, class_heads or [None] * len(models), strict=True):
        if heads is not None and heads not in member.tables:
            raise ValueError(f"{model} has no {heads} heads in all folds; it has {', '.join(member.tables)}.")
        chosen.append(member.tables[heads or next(iter(member.tables))])
    _check_same_cases(models, [set(rows) for rows in chosen], "classes", "Validate all with the same splits.")
    rows = {identifier: mean_of_members([table[identifier] for table in chosen]) for identifier in chosen[0]}
    write_pooled_tables(output, tasks, {ENSEMBLE_HEADS: rows}, known_labels(dataset_name, dataset_jsons[0]))


def entry_point_ensemble_folders(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_ensemble``; lives in ``nnunetv2.cli.ensemble``."""
    from nnunetv2.cli.ensemble import main

    main(argv)
