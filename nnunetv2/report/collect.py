"""Finds what a report needs: in a trained model's folder or in a folder of predictions, and in the dataset they belong to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.accumulate_cv_results import option_of, problem_of_validation
from nnunetv2.evaluation.evaluate_classification import find_groups
from nnunetv2.evaluation.evaluate_predictions import SMALL_JOB_BYTES, compute_metrics, load_summary_json
from nnunetv2.evaluation.validation_tables import CROSS_VALIDATION_FILE, FINAL_CHECKPOINT, class_tables_of_folder, validation_folder_name
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.report.content import MODEL, PREDICTIONS, CaseFiles, FoldTraining, ReportContent, by_structure, structures_of
from nnunetv2.report.wording import count, numbered, some
from nnunetv2.scheduling import CaseFailure, run_per_case
from nnunetv2.utilities.crossval_split import check_splits
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.class_calibration import CALIBRATION_FILE
from nnunetv2.utilities.label_handling.classification_labels import (
    LABELS_FILE,
    CaseLabels,
    classification_tasks,
    load_case_groups,
    read_groups_csv,
)
from nnunetv2.utilities.label_handling.classification_table import (
    CLASSIFICATION_FILE,
    has_raw_columns,
    read_classification_csv,
    read_classification_rows,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder, get_filenames_of_train_images_and_targets

MIXED_HEADS = "mixed"
SALIENCY_FOLDER = "saliency"
ARGUMENTS_FILE = "predict_from_raw_data_args.json"
MACHINE_FACTS = ("device", "gpu_name", "torch_version", "cudnn_version", "nnunetv2_version")  # of debug.json


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where to find what the folder itself does not hold; None: where nnU-Net keeps it."""

    reference_labels: str | Path | None = None  # of the form of labels.csv
    reference_segmentations: str | Path | None = None  # folder
    images: str | Path | None = None  # folder
    dataset_json_file: str | Path | None = None
    groups_file: str | Path | None = None
    model_folder: str | Path | None = None  # that made the predictions
    checkpoint: str = FINAL_CHECKPOINT  # of a trained model: whose validation
    num_processes: int = default_num_processes


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """The folders of the dataset that exist on this machine."""

    raw: Path | None
    preprocessed: Path | None


def collect(path: str | Path, sources: Sources) -> ReportContent:
    """Everything for a report on a trained model or on predictions.

    Args:
        path: Folder ``TRAINER__PLANS__CONFIGURATION``, also relative to ``nnUNet_results``, or a folder of predictions.
        sources: Where the rest is.

    Raises:
        FileNotFoundError, ValueError: If there is no such folder, or nothing in it to report on; names what was expected.
    """
    folder = _existing_folder(path)
    if is_model_folder(folder):
        return collect_model(folder, sources)
    if is_model_folder(folder.parent) and folder.name.startswith("fold_"):
        raise ValueError(
            f"{folder} is one fold of a model. Give the folder of the model, {folder.parent}: all its folds are reported together."
        )
    if sources.checkpoint != FINAL_CHECKPOINT:
        raise ValueError(f"-chk {sources.checkpoint} chooses a validation of a trained model, but {folder} is none. Leave -chk out.")
    return collect_predictions(folder, sources)


def _existing_folder(path: str | Path) -> Path:
    """The folder, as given or below ``nnUNet_results``."""
    folder = Path(path)
    if not folder.is_dir() and nnUNet_results.is_set() and (nnUNet_results / path).is_dir():
        folder = nnUNet_results / path
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {path}. Give the folder of a trained model (.../TRAINER__PLANS__CONFIGURATION) or of predictions "
            "(the -o of nnUNetv2_predict)."
        )
    return folder.absolute()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is that of a trained model."""
    return (folder / "plans.json").is_file() and any(entry.is_dir() for entry in folder.glob("fold_*"))


# a trained model


def collect_model(folder: Path, sources: Sources) -> ReportContent:
    """The validation cases of all folds, each predicted by the network that was not trained on it."""
    dataset_json = load_json(sources.dataset_json_file or folder / "dataset.json")
    plans = load_json(folder / "plans.json")
    tasks = classification_tasks(dataset_json)
    content = ReportContent(
        kind=MODEL,
        folder=folder,
        dataset_json=dataset_json,
        plans=plans,
        tasks=tasks,
        structures=structures_of(dataset_json),
        validation_name=validation_folder_name(sources.checkpoint),
    )
    dataset = _dataset_folders(plans)
    _add_splits(content, dataset)
    _add_labels_and_groups(content, dataset, sources)
    folds = _validated_folds(content)
    if sources.checkpoint != FINAL_CHECKPOINT:
        _check_validations(content, folds, sources.checkpoint)
    _add_validations(content, folds, sources.checkpoint)
    content.trainings = [training for training in map(_read_training, _fold_folders(folder)) if training is not None]
    if not content.trainings:
        content.missing["curves"] = "No fold has a checkpoint that can be read, and the curves are stored there."
    if (folder / CALIBRATION_FILE).is_file():
        calibration = load_json(folder / CALIBRATION_FILE)
        if sources.checkpoint in (FINAL_CHECKPOINT, calibration.get("checkpoint")):
            content.calibration = calibration
    content.reader = _reader(content, dataset)
    content.files = _case_files(content, dataset, sources)
    _check_held_out(content)
    return content


def _fold_folders(folder: Path) -> list[Path]:
    """``fold_0``, ``fold_1``, ... and ``fold_all`` at the end."""
    folds = sorted((f for f in folder.glob("fold_*") if f.name[5:].isdecimal()), key=lambda f: int(f.name[5:]))
    return folds + [f for f in (folder / "fold_all",) if f.is_dir()]


def _validated_folds(content: ReportContent) -> list[Path]:
    """The folds whose validation cases are pooled; notes about those that are not."""
    having = [
        f
        for f in _fold_folders(content.folder)
        if any((f / content.validation_name / name).is_file() for name in ("summary.json", CLASSIFICATION_FILE))
    ]
    held_out = [f for f in having if f.name != "fold_all"]
    if held_out and len(held_out) < len(having):
        content.notes.append("Fold all is left out: it validates on the cases that it was trained on.")
    folds = held_out or having
    content.folds = tuple(f.name[5:] for f in folds)
    expected = [str(fold) for fold in range(len(content.splits or ()))]
    missing = [fold for fold in expected if fold not in content.folds]
    if missing and held_out:
        content.notes.append(
            f"Only {count(len(held_out), 'fold')} of {len(expected)} {'is' if len(held_out) == 1 else 'are'} validated "
            f"({numbered('fold', missing)} missing), so that only a part of the cases counts."
        )
    if not folds:
        content.missing["dice"] = content.missing["classes"] = (
            "No fold has predictions of its validation cases yet; they are written at the end of a training, or by "
            "nnUNetv2_train with --val."
        )
    return folds


def _check_validations(content: ReportContent, folds: Sequence[Path], checkpoint: str) -> None:
    """Raise FileNotFoundError if no fold has validated a checkpoint that was asked for; a note if a validation may be of an older one."""
    if not folds:
        found = sorted({f.name for f in content.folder.glob("fold_*/validation*") if f.is_dir()})
        raise FileNotFoundError(
            f"No fold of {content.folder.name} has a {content.validation_name}, which nnUNetv2_train with "
            f"--val{option_of(content.validation_name)} writes. Found: {', '.join(found) or 'no validation'}."
        )
    for fold in folds:
        problem = problem_of_validation(fold / content.validation_name, checkpoint)
        if problem:
            content.notes.append(f"{fold.name}: {problem}.")


def _add_validations(content: ReportContent, folds: Sequence[Path], checkpoint: str) -> None:
    """Metrics and class tables of the folds; a case that several folds validate counts once."""
    overlaps, fold_of, repeated = {}, {}, []
    tables = {fold: class_tables_of_folder(fold / content.validation_name, content.tasks) for fold in folds}
    counting = _counting_heads(content, list(tables.values()))
    names = [counting, *dict.fromkeys(name for table in tables.values() for name in table if name != counting)] if counting else []
    pooled: dict[str, dict[str, Mapping[str, np.ndarray]]] = {name: {} for name in names}
    for fold in folds:
        metrics = _summary_of_folder(fold / content.validation_name, content)
        for identifier in sorted({*metrics, *(case for table in tables[fold].values() for case in table)}):
            if identifier in fold_of:
                repeated.append(identifier)
                continue
            fold_of[identifier] = fold.name[5:]
            if identifier in metrics:
                overlaps[identifier] = metrics[identifier]
            for name in names:
                rows = next(iter(tables[fold].values()), {}) if name == MIXED_HEADS else tables[fold].get(name, {})
                if identifier in rows:
                    pooled[name][identifier] = rows[identifier]
    content.overlaps, content.fold_of, content.identifiers = overlaps, fold_of, tuple(sorted(fold_of))
    content.overlap_source = (
        "the validation at the end of the training" if checkpoint == FINAL_CHECKPOINT else f"the validation of {checkpoint}"
    )
    content.class_tables = {name: rows for name, rows in pooled.items() if rows}
    if repeated:
        content.notes.append(
            f"{count(len(repeated), 'case')} stand in the validation of several folds ({some(repeated)}); the first counts."
        )
    if folds and not overlaps:
        content.missing["dice"] = "No fold has a summary.json with the scores of its segmentations; nnUNetv2_train with --val writes it."
    if folds and not content.class_tables:
        content.missing["classes"] = (
            "The model was trained without classes, or its validation wrote no table of them."
            if content.tasks
            else "The dataset declares no classes, so that this model predicts segmentations alone."
        )


def _counting_heads(content: ReportContent, tables: Sequence[Mapping[str, Any]]) -> str | None:
    """The set of heads that all folds have in common and that counts in most of them."""
    tables = [table for table in tables if table]
    if not tables:
        return None
    first = [next(iter(table)) for table in tables]
    if len(set(first)) == 1:
        return first[0]
    common = [name for name in dict.fromkeys(first) if all(name in table for table in tables)]
    if common:
        content.notes.append(f"Not every fold has refitted heads, so that the {common[0]} heads count, which every fold has.")
        return common[0]
    content.notes.append("The folds' classes were predicted by different sets of heads; their probabilities are not of one kind.")
    return MIXED_HEADS


def _summary_of_folder(folder: Path, content: ReportContent) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Metrics by case and structure from ``summary.json``; empty if there is none."""
    file = folder / "summary.json"
    if not file.is_file():
        return {}
    summary = load_summary_json(file)
    if summary.get("checkpoint"):
        content.notes.append(f"{folder.parent.name} was validated with {summary['checkpoint']}.")
    ending = content.dataset_json.get("file_ending", "")
    metrics = {}
    for case in summary["metric_per_case"]:
        identifier = os.path.basename(case["prediction_file"].replace("\\", "/")).removesuffix(ending)
        metrics[identifier] = by_structure(case["metrics"], content.structures)
        content.recorded_references.setdefault(identifier, case.get("reference_file", ""))
    return metrics


def _read_training(fold: Path) -> FoldTraining | None:
    """Curves and settings of a fold; None without a checkpoint that can be read."""
    from nnunetv2.training.checkpointing import CheckpointError, load_checkpoint_file, newest_checkpoint

    try:
        final = fold / "checkpoint_final.pth"
        checkpoint = load_checkpoint_file(final) if final.is_file() else newest_checkpoint(fold)[1]
    except CheckpointError as error:
        warnings.warn(f"{error} The report lacks its curves.", stacklevel=2)
        return None
    if checkpoint is None or "logging" not in checkpoint:
        return None
    state = checkpoint.get("training_state") or {}
    debug = fold / "debug.json"
    machine = load_json(debug) if debug.is_file() else {}
    return FoldTraining(
        fold=fold.name[5:],
        curves=checkpoint["logging"],
        trainer=str(checkpoint.get("trainer_name", "unknown")),
        configuration=str(checkpoint.get("init_args", {}).get("configuration", "unknown")),
        epochs=int(checkpoint.get("current_epoch", 0)),
        seed=state.get("seed"),
        run_options=dict(state.get("run_options") or {}),
        heads=checkpoint.get("classification") or {},
        refit=(checkpoint.get("refitted_heads") or {}).get("classification") or {},
        machine={name: str(machine[name]) for name in MACHINE_FACTS if name in machine},
    )


def _check_held_out(content: ReportContent) -> None:
    """Look for validation cases, or groups of them, that their own fold was trained on."""
    seen, shared = set(), set()
    for fold in content.folds:
        validated = [identifier for identifier, of in content.fold_of.items() if of == fold]
        if fold == "all":
            seen.update(validated)
        elif content.splits is not None and int(fold) < len(content.splits):
            trained = set(content.splits[int(fold)]["train"])
            seen.update(trained.intersection(validated))
            if content.groups is not None:
                shared |= {content.group_of(case) for case in trained} & {content.group_of(case) for case in validated}
        else:
            content.overlap_unknown = True
    content.seen_in_training, content.shared_groups = sorted(seen), sorted(shared)


# predictions


def collect_predictions(folder: Path, sources: Sources) -> ReportContent:
    """A folder that ``nnUNetv2_predict`` wrote."""
    dataset_json_file = Path(sources.dataset_json_file or folder / "dataset.json")
    if not dataset_json_file.is_file():
        raise FileNotFoundError(
            f"{folder} is neither a trained model (plans.json and fold_0, ...) nor predictions with a dataset.json: {dataset_json_file} "
            "does not exist. Give another folder, or the dataset.json with -djfile."
        )
    dataset_json = load_json(dataset_json_file)
    model = _existing_folder(sources.model_folder) if sources.model_folder is not None else None
    plans_file = next((f / "plans.json" for f in (folder, model) if f is not None and (f / "plans.json").is_file()), None)
    content = ReportContent(
        kind=PREDICTIONS,
        folder=folder,
        dataset_json=dataset_json,
        plans={} if plans_file is None else load_json(plans_file),
        tasks=classification_tasks(dataset_json),
        structures=structures_of(dataset_json),
    )
    dataset = _dataset_folders(content.plans)
    if (folder / ARGUMENTS_FILE).is_file():
        content.recorded_arguments = load_json(folder / ARGUMENTS_FILE)
    _add_predicted_cases(content)
    _add_splits(content, dataset)
    _add_labels_and_groups(content, dataset, sources)
    content.reader = _reader(content, dataset)
    stored = {} if sources.reference_segmentations is not None else _summary_of_folder(folder, content)
    content.files = _case_files(content, dataset, sources)
    _add_overlaps(content, stored, sources)
    if model is not None:
        content.trainings = [training for training in map(_read_training, _fold_folders(model)) if training is not None]
        calibration = model / CALIBRATION_FILE
        content.calibration = load_json(calibration) if calibration.is_file() else None
    if not content.trainings:
        content.missing["curves"] = "Predictions hold no curves; -m with the folder of the model that made them adds these."
    _check_not_of_the_training(content, dataset)
    return content


def _add_predicted_cases(content: ReportContent) -> None:
    """Identifiers, class table and failed cases."""
    table = content.folder / CLASSIFICATION_FILE
    segmented = _segmented_cases(content.folder, content.dataset_json.get("file_ending", ""))
    if content.tasks and table.is_file():
        rows = read_classification_rows(table, content.tasks)
        content.failed = {identifier: row for identifier, row in rows.items() if isinstance(row, str)}
        name = "calibrated" if has_raw_columns(table, content.tasks) else "predicted"
        content.class_tables = {name: {identifier: row for identifier, row in rows.items() if not isinstance(row, str)}}
        if name == "calibrated":
            content.raw_class_rows = read_classification_csv(table, content.tasks, raw=True)
        # pictures of scores may lie beside segmentations that are pictures themselves
        segmented &= set(rows) if content.dataset_json.get("file_ending") in (".png", ".bmp", ".tif") else segmented
    else:
        content.missing["classes"] = (
            f"There is no {CLASSIFICATION_FILE} in the folder; nnUNetv2_predict writes it with --save_cls."
            if content.tasks
            else "The dataset declares no classes, so that there are segmentations alone."
        )
    content.identifiers = tuple(sorted({*segmented, *content.class_rows}))
    if not content.identifiers:
        raise FileNotFoundError(
            f"{content.folder} holds no predictions: neither segmentations with the ending {content.dataset_json.get('file_ending')!r} nor "
            f"a {CLASSIFICATION_FILE} with a case. Expected the -o of nnUNetv2_predict."
        )


def _segmented_cases(folder: Path, ending: str) -> set[str]:
    """Identifiers of the segmentations in a folder."""
    if not ending:
        return set()
    return {name.removesuffix(ending) for name in os.listdir(folder) if name.endswith(ending) and not name.startswith(".")}


def _add_overlaps(content: ReportContent, stored: Mapping[str, Any], sources: Sources) -> None:
    """Metrics of the segmentations: the stored ones, else computed where there are references."""
    if stored:
        content.overlaps = {identifier: values for identifier, values in stored.items() if identifier in content.identifiers}
        content.overlap_source = "summary.json in the folder of the predictions"
    if content.overlaps:
        return
    comparable = {i: f for i, f in content.files.items() if f.reference is not None and f.prediction is not None}
    if not comparable or content.reader is None or not content.structures:
        content.missing["dice"] = "No reference segmentation of these cases was found; --reference_segmentations names their folder."
        return
    size = sum(os.path.getsize(file) for files in comparable.values() for file in (files.reference, files.prediction))
    ignore = content.dataset_json["labels"].get("ignore")
    outcomes = run_per_case(
        compute_metrics,
        [(f.reference, f.prediction, content.reader, list(content.structures.values()), ignore) for f in comparable.values()],
        identifiers=list(comparable),
        num_processes=1 if size < SMALL_JOB_BYTES else sources.num_processes,
        description="comparing segmentations",
        show_progress=False,
        on_error="return",
    )
    failures = {i: outcome for i, outcome in zip(comparable, outcomes, strict=True) if isinstance(outcome, CaseFailure)}
    content.overlaps = {
        i: by_structure(outcome["metrics"], content.structures)
        for i, outcome in zip(comparable, outcomes, strict=True)
        if i not in failures
    }
    content.overlap_source = "a comparison made for this report"
    if failures:
        first, failure = next(iter(failures.items()))
        content.notes.append(f"{count(len(failures), 'segmentation')} could not be compared: {some(failures)}. {first}: {failure.error}")
    if not content.overlaps:
        content.missing["dice"] = "No predicted segmentation could be compared with its reference."


def _check_not_of_the_training(content: ReportContent, dataset: _Dataset) -> None:
    """Look for predicted cases that belong to the training cases of the dataset, or of their own fold where folds were pooled."""
    if (content.folder / CROSS_VALIDATION_FILE).is_file():
        pooled = load_json(content.folder / CROSS_VALIDATION_FILE)
        content.folds = tuple(str(fold) for fold in pooled["folds"])
        content.fold_of = {case: str(fold) for case, fold in pooled["fold_of"].items() if case in content.identifiers}
        content.notes.append(f"Pooled validation predictions of {' and '.join(pooled['models'])}.")
        _check_held_out(content)
        return
    known: set[str] = set()
    if content.splits is not None:
        known = {case for split in content.splits for part in ("train", "val") for case in split[part]}
    elif dataset.raw is not None and (dataset.raw / "dataset.json").is_file():
        known = set(_raw_cases(dataset.raw))
    content.overlap_unknown = not known
    content.seen_in_training = sorted(known.intersection(content.identifiers))


# the dataset


def _dataset_folders(plans: Mapping[str, Any]) -> _Dataset:
    """Where the dataset of the plans is on this machine."""
    name = plans.get("dataset_name")

    def below(root: Any) -> Path | None:
        return root / name if name and root.is_set() and (root / name).is_dir() else None

    return _Dataset(raw=below(nnUNet_raw), preprocessed=below(nnUNet_preprocessed))


def _add_splits(content: ReportContent, dataset: _Dataset) -> None:
    """``splits_final.json`` of the preprocessed dataset."""
    file = None if dataset.preprocessed is None else dataset.preprocessed / "splits_final.json"
    if file is None or not file.is_file():
        content.missing["splits"] = (
            f"The splits are not shown: {content.dataset_name} has no splits_final.json in nnUNet_preprocessed on this machine."
        )
        return
    content.splits = load_json(file)
    check_splits(content.splits, str(file))


def _add_labels_and_groups(content: ReportContent, dataset: _Dataset, sources: Sources) -> None:
    """What is true, and which cases belong together."""
    folders = [folder for folder in (dataset.preprocessed, dataset.raw) if folder is not None]
    if content.tasks and sources.reference_labels is not None:
        content.case_labels = CaseLabels.read_csv(sources.reference_labels, content.tasks)
    elif content.tasks:
        loaded = (CaseLabels.load(folder, content.dataset_json) for folder in folders if _has_labels(folder, content.dataset_json))
        content.case_labels = next(loaded, None)
        predicted = content.kind == PREDICTIONS
        if content.case_labels is None or (predicted and not set(content.case_labels.rows) & set(content.identifiers)):
            content.case_labels = None
            content.missing["labels"] = (
                "The true classes of these cases were not found; --reference_labels names a table of the form of labels.csv."
            )
    content.groups = _groups(content, folders, sources)
    covered = [identifier for identifier in content.identifiers if content.groups and identifier in content.groups]
    if content.groups is not None and content.kind == PREDICTIONS and len(covered) < len(content.identifiers):
        if sources.groups_file is not None:
            missing = sorted(set(content.identifiers) - set(content.groups))
            raise ValueError(f"{sources.groups_file}: {count(len(missing), 'case')} have no group: {some(missing)}. Add them to the table.")
        if covered:
            content.notes.append(f"Groups are not used: only {len(covered)} of {len(content.identifiers)} cases have one.")
        content.groups = None


def _has_labels(folder: Path, dataset_json: Mapping[str, Any]) -> bool:
    """Whether a dataset folder holds a table of classes; dataset.json may name it or hold it."""
    return (folder / LABELS_FILE).is_file() or bool(dataset_json.get("case_labels"))


def _groups(content: ReportContent, folders: Sequence[Path], sources: Sources) -> dict[str, str] | None:
    """Group of each case from the given file, from beside the labels, or from the dataset."""
    if sources.groups_file is not None:
        return read_groups_csv(sources.groups_file)
    if sources.reference_labels is not None:
        return find_groups(None, Path(sources.reference_labels), content.dataset_json)
    for folder in folders:
        groups = load_case_groups(folder, content.dataset_json)
        if groups is not None:
            return groups
    return None


def _reader(content: ReportContent, dataset: _Dataset) -> Any:
    """Reads images and segmentations; None if no reader fits."""
    try:
        if content.plans.get("image_reader_writer"):
            return PlansManager(dict(content.plans)).image_reader_writer_class()
        return determine_reader_writer_from_dataset_json(dict(content.dataset_json), verbose=False)()
    except (RuntimeError, KeyError, ValueError) as error:
        content.notes.append(f"Images and segmentations cannot be read: {error}")
        return None


def _case_files(content: ReportContent, dataset: _Dataset, sources: Sources) -> dict[str, CaseFiles]:
    """Image, reference, prediction and saliency of every case, as far as they exist."""
    ending = content.dataset_json.get("file_ending", "")
    images = _images(content, dataset, sources, ending)
    references = _reference_folders(dataset, sources)
    listed = _raw_cases(dataset.raw) if dataset.raw is not None and not sources.reference_segmentations else {}
    files = {}
    for identifier in content.identifiers:
        fold = content.fold_of.get(identifier)
        folder = content.folder if fold is None else content.folder / f"fold_{fold}" / content.validation_name
        candidates = [reference / f"{identifier}{ending}" for reference in references]
        candidates += [Path(listed[identifier]["label"])] if identifier in listed else []
        candidates += [Path(content.recorded_references[identifier])] if content.recorded_references.get(identifier) else []
        prediction = folder / f"{identifier}{ending}"
        files[identifier] = CaseFiles(
            images=tuple(file for file in images.get(identifier, ()) if os.path.isfile(file)),
            reference=next((str(file) for file in candidates if file.is_file()), None),
            prediction=str(prediction) if prediction.is_file() else None,
            saliency_folders=tuple(f for f in (folder / SALIENCY_FOLDER,) if f.is_dir()),
        )
    if not any(case.images for case in files.values()):
        content.missing["pictures"] = (
            "The images of these cases were not found, so that no pictures are shown; --images names their folder."
            if content.kind == PREDICTIONS
            else f"The images are not on this machine (imagesTr of {content.dataset_name} in nnUNet_raw), so that no pictures are shown; "
            "--images names their folder."
        )
    return files


def _images(content: ReportContent, dataset: _Dataset, sources: Sources, ending: str) -> dict[str, Sequence[str]]:
    """Image files by identifier: of the given folder, of the one that was predicted, or of the raw dataset."""
    folder = sources.images
    recorded = content.recorded_arguments.get("list_of_lists_or_source_folder")
    if folder is None and isinstance(recorded, str) and os.path.isdir(recorded):
        folder = recorded
    if folder is None:
        return {i: case["images"] for i, case in _raw_cases(dataset.raw).items()} if dataset.raw is not None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are no images
        lists = create_lists_from_splitted_dataset_folder(folder, ending, content.identifiers)
    found = {identifier: files for identifier, files in zip(content.identifiers, lists, strict=True) if files}
    if sources.images is not None and not found:
        raise FileNotFoundError(
            f"{folder} holds no image of the cases {some(content.identifiers)}. Expected files named CASE_0000{ending}, one per channel."
        )
    return found


def _reference_folders(dataset: _Dataset, sources: Sources) -> list[Path]:
    """Folders to look into for reference segmentations, the best first."""
    if sources.reference_segmentations is not None:
        folder = Path(sources.reference_segmentations)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}. Give the folder of the reference segmentations.")
        return [folder]
    folders = [dataset.preprocessed / "gt_segmentations"] if dataset.preprocessed is not None else []
    return [*folders, *([dataset.raw / "labelsTr"] if dataset.raw is not None else [])]


def _raw_cases(raw: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """Training cases of a raw dataset; empty if it is incomplete."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_filenames_of_train_images_and_targets(raw)
    except (FileNotFoundError, ValueError, TypeError):
        return {}
