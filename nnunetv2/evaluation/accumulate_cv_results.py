"""The validation of all folds in one folder, scored as one set: every training case once, predicted by a model that never saw it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import CASES_SHOWN, compute_metrics_on_folder, load_summary_json
from nnunetv2.evaluation.validation_tables import (
    CHECKPOINT_NAME,
    CROSS_VALIDATION_FILE,
    FINAL_CHECKPOINT,
    VALIDATION,
    known_labels,
    pooled_class_tables,
    validation_folder_name,
    write_pooled_tables,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.file_io import copy_file, load_json, save_json
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def accumulate_cv_results(
    trained_model_folder: str | os.PathLike,
    merged_output_folder: str | os.PathLike,
    folds: Sequence[int | str],
    num_processes: int = default_num_processes,
    overwrite: bool = True,
    *,
    checkpoint: str = FINAL_CHECKPOINT,
) -> None:
    """Copy the validation predictions of the folds into one folder, and write ``summary.json`` and the scores of classes there.

    Args:
        trained_model_folder: Folder ``TRAINER__PLANS__CONFIGURATION``.
        merged_output_folder: Created. Holds the segmentations, ``summary.json``, ``dataset.json``, ``plans.json``,
            ``cross_validation.json`` (the fold of every case), and where all folds have classes ``classification.csv``,
            ``classification_<heads>.csv`` for further heads and ``classification_summary.json``.
        folds: Numbers, or ``all``, whose validation cases are its training cases.
        num_processes: For the scores.
        overwrite: Remove what is in the output folder first. Otherwise files that are there stay, and so does a summary of the same cases.
        checkpoint: Whose validation; further ones than the final one are validated by ``nnUNetv2_train ... -val_chk``.

    Raises:
        RuntimeError: If a fold has no validation predictions, or a case stands in several folds.
        FileNotFoundError: If ``dataset.json``, ``plans.json`` or the reference segmentations are missing.
    """
    model, merged = Path(trained_model_folder), Path(merged_output_folder)
    dataset_json, plans_manager = model_description(model)
    validation_name = validation_folder_name(checkpoint)
    files = validation_files(model, folds, dataset_json["file_ending"], validation_name)
    _warn_about_folds(model, plans_manager.dataset_name, folds, files)
    pooled = pooled_class_tables(model, folds, classification_tasks(dataset_json), validation_name)
    references = _reference_folder(plans_manager.dataset_name)

    prepare_output(merged, [model], overwrite)
    for identifier, (_, file) in files.items():
        target = merged / f"{identifier}{dataset_json['file_ending']}"
        if not target.is_file():
            copy_file(file, target)
    describe_cross_validation(merged, [model], folds, {identifier: fold for identifier, (fold, _) in files.items()})
    score_segmentations(merged, references, files, dataset_json, plans_manager, num_processes, keep_existing=not overwrite)
    for note in pooled.notes:
        print(f"WARNING: {note}")
    if pooled.tables:
        labels = known_labels(plans_manager.dataset_name, dataset_json)
        if labels is None:
            print(f"The labels of {plans_manager.dataset_name} are not on this machine, so the classes are pooled but not scored.")
        write_pooled_tables(merged, classification_tasks(dataset_json), pooled.tables, labels)


def model_description(model_folder: Path) -> tuple[dict, PlansManager]:
    """``dataset.json`` and plans of a model; raises FileNotFoundError with the remedy if there is no model."""
    missing = [name for name in ("dataset.json", "plans.json") if not (model_folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{model_folder} is no folder of a trained model: {' and '.join(missing)} missing. Check dataset, configuration (-c), trainer "
            "(-tr) and plans (-p), and the environment variable nnUNet_results."
        )
    return load_json(model_folder / "dataset.json"), PlansManager(str(model_folder / "plans.json"))


def validation_files(
    model_folder: Path, folds: Sequence[int | str], file_ending: str, validation_name: str = VALIDATION
) -> dict[str, tuple[int | str, Path]]:
    """Fold and file of every validation case, by identifier, in the order of folds and names.

    Args:
        model_folder: With ``fold_0``, ...
        folds: Which of them.
        file_ending: Of the files: of segmentations, or ``.npz``.
        validation_name: Folder in each fold.

    Raises:
        RuntimeError: If a fold or its predictions are missing, or a case stands in several folds.
    """
    if not folds:
        raise RuntimeError("No fold was given. Give at least one, such as 0 or all.")
    files: dict[str, tuple[int | str, Path]] = {}
    problems, repeated = [], []
    for fold in dict.fromkeys(folds):
        validation = model_folder / f"fold_{fold}" / validation_name
        names = sorted(validation.glob(f"*{file_ending}")) if validation.is_dir() else []
        found = [file for file in names if not file.name.startswith(".")]
        if not found:
            problems.append(f"fold {fold} has no *{file_ending} in {validation}")
        for file in found:
            identifier = file.name.removesuffix(file_ending)
            if identifier in files:
                repeated.append(f"{identifier} in fold {files[identifier][0]} and fold {fold}")
            files.setdefault(identifier, (fold, file))
    if problems:
        raise RuntimeError(
            f"The validation of {model_folder.name} is not complete: {'; '.join(problems)}. It is written at the end of a training; for a "
            f"finished one run nnUNetv2_train with --val{option_of(validation_name)}, or choose other folds with -f."
        )
    if repeated:
        raise RuntimeError(
            f"{model_folder.name}: {len(repeated)} cases stand in the validation of several folds: {some(repeated)}. Every case must be "
            "predicted once: choose folds of one split, and remove what a validation with an older split has left."
        )
    return files


def option_of(validation_name: str) -> str:
    """What besides ``--val`` makes nnUNetv2_train write a folder."""
    return "" if validation_name == VALIDATION else f" -val_chk checkpoint_{validation_name.removeprefix(f'{VALIDATION}_')}.pth"


def some(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    names = list(names)
    return ", ".join(names[:CASES_SHOWN]) + (f" and {len(names) - CASES_SHOWN} more" if len(names) > CASES_SHOWN else "")


def prepare_output(output_folder: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Make the output folder, empty if `overwrite`; raises ValueError rather than remove what is read."""
    resolved = output_folder.resolve()
    for folder in [*inputs, *(validation for model in inputs for validation in model.glob(f"fold_*/{VALIDATION}*"))]:
        if resolved == folder.resolve() or resolved in folder.resolve().parents:
            raise ValueError(f"The output folder {output_folder} holds {folder} and would be replaced. Choose another one.")
    if overwrite and output_folder.is_dir():
        shutil.rmtree(output_folder)
    output_folder.mkdir(parents=True, exist_ok=True)
    for name in ("dataset.json", "plans.json"):
        copy_file(inputs[0] / name, output_folder / name)


def describe_cross_validation(folder: Path, models: Sequence[Path], folds: Sequence[int | str], fold_of: Mapping[str, int | str]) -> None:
    """Write ``cross_validation.json``: by which model every case of a folder was predicted."""
    content = {"models": [model.name for model in models], "folds": list(folds), "fold_of": dict(sorted(fold_of.items()))}
    save_json(content, folder / CROSS_VALIDATION_FILE)


def score_segmentations(
    folder: Path,
    references: Path,
    identifiers: Iterable[str],
    dataset_json: dict,
    plans_manager: PlansManager,
    num_processes: int,
    *,
    keep_existing: bool,
) -> None:
    """Write ``summary.json`` of a folder, unless it is to be kept and is there for the same cases."""
    summary, ending = folder / "summary.json", dataset_json["file_ending"]
    if keep_existing and summary.is_file():
        scored = {os.path.basename(case["prediction_file"]).removesuffix(ending) for case in load_summary_json(summary)["metric_per_case"]}
        if scored == set(identifiers):
            return
    label_manager = plans_manager.get_label_manager(dataset_json)
    compute_metrics_on_folder(
        str(references),
        str(folder),
        str(summary),
        plans_manager.image_reader_writer_class(),
        ending,
        label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels,
        label_manager.ignore_label,
        num_processes,
    )


def default_output_folder(trained_model_folder: str | os.PathLike, folds: Sequence[int | str], checkpoint: str = FINAL_CHECKPOINT) -> str:
    """``crossval_results_folds_0_1_2_3_4`` in the model's folder, with ``_best_joint`` or the like for another checkpoint."""
    suffix = validation_folder_name(checkpoint).removeprefix(VALIDATION)
    return os.path.join(trained_model_folder, f"crossval_results_folds_{folds_tuple_to_string(folds)}{suffix}")


def validated_checkpoints(model_folder: str | os.PathLike, folds: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """The checkpoints that all folds have validated into a folder of their own, and why others are left out, one line each.

    A folder counts if its checkpoint is there and has not changed since: a new training leaves the folders of an older one as they are.
    """
    model = Path(model_folder)
    names = {file.parent.name for fold in folds for file in model.glob(f"fold_{fold}/{VALIDATION}_*/summary.json")}
    complete, reasons = [], []
    for name in sorted(names):
        checkpoint = f"checkpoint_{name.removeprefix(f'{VALIDATION}_')}.pth"
        if not CHECKPOINT_NAME.fullmatch(checkpoint) or checkpoint == FINAL_CHECKPOINT:
            continue  # a folder of the user's; the final one's is VALIDATION
        problems = {fold: problem for fold in folds if (problem := problem_of_validation(model / f"fold_{fold}" / name, checkpoint))}
        if not problems:
            complete.append(checkpoint)
            continue
        listed = "; ".join(f"fold {fold}: {problem}" for fold, problem in problems.items())
        reasons.append(f"{checkpoint} of {model.name} is left out, because not every fold has {name} of this checkpoint ({listed}).")
    return complete, reasons


def problem_of_validation(folder: Path, checkpoint: str) -> str:
    """Why a folder does not hold the validation of the checkpoint beside it; empty if it does."""
    summary, file = folder / "summary.json", folder.parent / checkpoint
    if not summary.is_file():
        return f"no {folder.name}/summary.json, which nnUNetv2_train ... --val -val_chk {checkpoint} writes"
    if not file.is_file():
        return f"no {checkpoint}"
    if file.stat().st_mtime > summary.stat().st_mtime:
        return f"{checkpoint} is newer than its validation; run nnUNetv2_train ... --val -val_chk {checkpoint} again"
    return ""


def validated_checkpoint(model_folder: str | os.PathLike, folds: Sequence[int | str]) -> str:
    """Which checkpoint predicted the validation of the folds, as their ``summary.json`` says.

    Raises:
        RuntimeError: If the folds were validated with different ones.
    """
    names = {}
    for fold in folds:
        summary = Path(model_folder) / f"fold_{fold}" / "validation" / "summary.json"
        names[fold] = (load_json(summary).get("checkpoint") if summary.is_file() else None) or FINAL_CHECKPOINT
    if len(set(names.values())) > 1:
        listed = ", ".join(f"fold {fold}: {name}" for fold, name in names.items())
        raise RuntimeError(
            f"The folds of {Path(model_folder).name} were validated with different checkpoints ({listed}), so their scores are of no model "
            "that can be predicted with. Validate all with --val, or all with --val_best."
        )
    return next(iter(names.values()))


def _warn_about_folds(
    model_folder: Path, dataset_name: str, folds: Sequence[int | str], files: Mapping[str, tuple[int | str, Path]]
) -> None:
    """Say where the pooled cases are not what a cross-validation means."""
    if "all" in folds:
        print(f"WARNING: fold all of {model_folder.name} validates on its training cases. These scores say nothing about new cases.")
    splits_file = nnUNet_preprocessed / dataset_name / "splits_final.json" if nnUNet_preprocessed.is_set() else None
    if splits_file is None or not splits_file.is_file():
        return
    splits = load_json(splits_file)
    expected = {case: fold for fold in folds if fold != "all" and int(fold) < len(splits) for case in splits[int(fold)]["val"]}
    missing = [f"{case} (fold {fold})" for case, fold in expected.items() if case not in files]
    if missing:
        print(f"WARNING: {model_folder.name}: {len(missing)} validation cases have no prediction and do not count: {some(missing)}.")


def _reference_folder(dataset_name: str) -> Path:
    """Where the annotations of the training cases are: as they were given, or the copies that preprocessing made."""
    candidates = [nnUNet_raw / dataset_name / "labelsTr"] if nnUNet_raw.is_set() else []
    candidates += [nnUNet_preprocessed / dataset_name / "gt_segmentations"] if nnUNet_preprocessed.is_set() else []
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The annotations of {dataset_name} were not found. Looked for {' and '.join(map(str, candidates)) or 'nothing'}; set nnUNet_raw or "
        "nnUNet_preprocessed to where the dataset is."
    )
