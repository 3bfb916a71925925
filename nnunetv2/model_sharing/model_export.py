"""Trained models as one zip file, which ``nnUNetv2_install_pretrained_model_from_zip`` puts into place elsewhere.

The members are those of nnU-Net 2.8.1, which installs such a file too, and what the prediction of classes needs besides: the calibration
beside the plans. Heads, also refitted ones, are in the checkpoints.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2.evaluation.validation_tables import CHECKPOINT_NAME, FINAL_CHECKPOINT, validation_folder_name
from nnunetv2.model_sharing import model_layout as layout
from nnunetv2.model_sharing.checksum import sha256_of
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file, save_checkpoint_file
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, atomic_path, load_json, save_json
from nnunetv2.utilities.file_path_utilities import (
    convert_ensemble_folder_to_model_identifiers_and_folds,
    convert_trainer_plans_config_to_identifier,
    get_output_folder,
)
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

DEFAULT_CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
DEFAULT_FOLDS = (0, 1, 2, 3, 4)
DEFAULT_CHECKPOINTS = ("checkpoint_final.pth",)
# Weights shrink by 7 % at every level; higher ones only take longer.
COMPRESSION_LEVEL = 1
# A value of debug.json that is longer is a table or a whole description, and may name every case of the training.
LONGEST_SETTING = 200
MACHINE_KEYS = ("hostname", "folder", "file", "path")


@dataclass(kw_only=True)
class SharedFile:
    """A file and its name in the zip file."""

    source: Path
    name: str


@dataclass(kw_only=True)
class ModelExport:
    """What is exported, and what was written in the end."""

    dataset_name: str
    files: list[SharedFile] = field(default_factory=list)
    models: dict[str, list[str]] = field(default_factory=dict)  # fold folders by model folder
    ensembles: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # asked for, but not there
    notes: list[str] = field(default_factory=list)  # what else is needed to predict
    output_file: Path | None = None
    sha256: str = ""


def export_pretrained_model(
    dataset_name_or_id: int | str,
    output_file: str,
    configurations: Sequence[str] = DEFAULT_CONFIGURATIONS,
    trainer: str = "nnUNetTrainer",
    plans_identifier: str = "nnUNetPlans",
    folds: Sequence[int | str] = DEFAULT_FOLDS,
    strict: bool = True,
    save_checkpoints: Sequence[str] = DEFAULT_CHECKPOINTS,
    export_crossval_predictions: bool = False,
) -> ModelExport:
    """Write trained models of a dataset into a zip file.

    Labels and groups of cases that are written in ``dataset.json`` itself are left out, there and in the checkpoints.

    Args:
        dataset_name_or_id: Dataset of the models.
        output_file: The zip file; an older zip file is replaced when the new one is complete.
        configurations: Configurations to export.
        trainer: Trainer of the models.
        plans_identifier: Plans of the models.
        folds: Folds of each configuration, numbers or ``all``.
        strict: Whether missing configurations, folds and checkpoints are an error; otherwise they are left out.
        save_checkpoints: Checkpoints of each fold.
        export_crossval_predictions: Whether segmentations and tables of the validation cases are exported too.

    Returns:
        What was exported.

    Raises:
        FileNotFoundError: If something is missing, listing everything, or if nothing is left to export.
        FileExistsError: If the output file exists and is no zip file.
    """
    output_file = Path(output_file)
    _check_output(output_file)
    export = find_model_files(
        maybe_convert_to_dataset_name(dataset_name_or_id),
        [Path(get_output_folder(dataset_name_or_id, trainer, plans_identifier, name)) for name in dict.fromkeys(configurations)],
        list(dict.fromkeys(str(fold) for fold in folds)),
        list(dict.fromkeys(save_checkpoints)),
        export_crossval_predictions,
    )
    if export.left_out and (strict or not export.models):
        raise FileNotFoundError(_missing_text(export))
    export.notes = [*_note_on_trainer(trainer), *_notes_on_cascades(export), *_notes_on_instructions(export, save_checkpoints)]
    with atomic_path(output_file) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive:
            for file in tqdm(export.files, desc="exporting"):
                _add(archive, file, output_file.parent)
        export.sha256 = sha256_of(temporary)
    export.output_file = output_file
    return export


def find_model_files(
    dataset_name: str, model_folders: Sequence[Path], folds: Sequence[str], checkpoint_names: Sequence[str], with_predictions: bool = False
) -> ModelExport:
    """The files to export, and what is missing.

    Args:
        dataset_name: ``DatasetXXX_Name``.
        model_folders: Folders ``TRAINER__PLANS__CONFIGURATION`` of the dataset, whether they exist or not.
        folds: ``0``, ``1``, ... or ``all``.
        checkpoint_names: Files of each fold.
        with_predictions: Whether predictions of the validation cases are exported too.
    """
    export = ModelExport(dataset_name=dataset_name)
    for folder in model_folders:
        _find_files_of_model(export, folder, folds, checkpoint_names, with_predictions)
    dataset_folder = Path(nnUNet_results) / dataset_name
    for ensemble in _ensembles_of(dataset_folder, set(export.models), folds):
        export.ensembles.append(ensemble.name)
        _take(export, dataset_folder, _files_of_predictions(ensemble, layout.POOLED_FILES, with_predictions=False))
    if export.models:
        _take(export, dataset_folder, [dataset_folder / name for name in layout.DATASET_FILES])
    return export


def _find_files_of_model(
    export: ModelExport, folder: Path, folds: Sequence[str], checkpoint_names: Sequence[str], with_predictions: bool
) -> None:
    """Add the files of one configuration to the export."""
    missing = [name for name in layout.NEEDED_MODEL_FILES if not (folder / name).is_file()]
    if not folder.is_dir() or missing:
        export.left_out.append(f"{folder.name}: " + (f"{' and '.join(missing)} missing" if folder.is_dir() else "never trained"))
        return
    complete = []
    for fold in (folder / f"fold_{fold}" for fold in folds):
        absent = [name for name in checkpoint_names if not (fold / name).is_file()]
        if absent:
            export.left_out.append(f"{folder.name}/{fold.name}: {', '.join(absent) if fold.is_dir() else 'never trained'}")
        if len(absent) < len(checkpoint_names):
            complete.append(fold)
    if not complete:
        return
    export.models[folder.name] = [fold.name for fold in complete]
    dataset_folder = folder.parent
    names = [name for name in checkpoint_names if CHECKPOINT_NAME.fullmatch(name)]
    validations = list(dict.fromkeys([layout.VALIDATION, *map(validation_folder_name, names)]))
    for fold in complete:
        _take(export, dataset_folder, [fold / name for name in (layout.DEBUG_FILE, *checkpoint_names, *layout.FOLD_FILES)])
        for validation in validations:
            _take(export, dataset_folder, _files_of_predictions(fold / validation, layout.SUMMARIES, with_predictions))
    # Those of another checkpoint end in its name.
    suffixes = [validation.removeprefix(layout.VALIDATION) for validation in validations]
    for results in sorted(folder.glob(f"{layout.CROSSVALIDATION}*")):
        if any(_pools(results.name, suffix, folds) for suffix in suffixes):
            _take(export, dataset_folder, _files_of_predictions(results, layout.POOLED_FILES, with_predictions))
    _take(export, dataset_folder, [folder / name for name in layout.MODEL_FILES])


def _pools(name: str, suffix: str, folds: Sequence[str]) -> bool:
    """Whether a folder pools exported folds alone, of the checkpoint with this suffix."""
    return name.endswith(suffix) and set(name.removeprefix(layout.CROSSVALIDATION).removesuffix(suffix).split("_")) <= set(folds)


def _files_of_predictions(folder: Path, patterns: Sequence[str], with_predictions: bool) -> list[Path]:
    """The files of a folder with predictions that match a pattern; all but probabilities where predictions are wanted."""
    return sorted(
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if any(fnmatchcase(file.name, pattern) for pattern in patterns)
        or (with_predictions and layout.has_allowed_name(file.name) and not file.name.endswith(layout.PROBABILITY_ENDINGS))
    )


def _ensembles_of(dataset_folder: Path, models: set[str], folds: Sequence[str]) -> Iterator[Path]:
    """Ensembles that consist of exported models and folds alone."""
    for folder in sorted((dataset_folder / layout.ENSEMBLES).glob("ensemble___*")):
        try:
            members, ensemble_folds = convert_ensemble_folder_to_model_identifiers_and_folds(str(folder))
        except ValueError:  # not one that nnU-Net named
            continue
        if set(members) <= models and set(ensemble_folds.split("_")) <= set(folds):
            yield folder


def _take(export: ModelExport, dataset_folder: Path, files: Sequence[Path]) -> None:
    """Add those of the files that exist."""
    for file in files:
        if file.is_file():
            name = f"{export.dataset_name}/{file.relative_to(dataset_folder).as_posix()}"
            export.files.append(SharedFile(source=file, name=name))


def _add(archive: zipfile.ZipFile, file: SharedFile, folder_for_temporary_files: Path) -> None:
    """Write one member; what names cases or the machine is left out of it."""
    content = _without_private(file.source)
    if content is None:
        archive.write(file.source, file.name)
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder_for_temporary_files) as temporary:
        cleaned = Path(temporary) / file.source.name
        save = save_checkpoint_file if cleaned.suffix == layout.CHECKPOINT_ENDING else save_json
        save(content, cleaned)
        archive.write(cleaned, file.name)


def _without_private(file: Path) -> dict[str, Any] | None:
    """What to write in place of a file; None for the file as it is."""
    if file.name == layout.DEBUG_FILE:
        return settings_of(load_json(file))
    if file.name == layout.DATASET:
        content = load_json(file)
        return {k: v for k, v in content.items() if k not in layout.PRIVATE_KEYS} if set(layout.PRIVATE_KEYS) & set(content) else None
    if file.suffix == layout.CHECKPOINT_ENDING:
        checkpoint = load_checkpoint_file(file, mmap=True)
        dataset_json = (checkpoint.get("init_args") or {}).get("dataset_json")
        if isinstance(dataset_json, Mapping) and set(layout.PRIVATE_KEYS) & set(dataset_json):
            kept = {key: value for key, value in dataset_json.items() if key not in layout.PRIVATE_KEYS}
            return checkpoint | {"init_args": checkpoint["init_args"] | {"dataset_json": kept}}
    return None


def settings_of(debug: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``debug.json`` that describe the training, without tables of cases, machine and folders."""
    return {
        key: value
        for key, value in debug.items()
        if len(str(value)) <= LONGEST_SETTING and not any(word in key for word in MACHINE_KEYS) and os.sep not in str(value)
    }


def _note_on_trainer(trainer: str) -> list[str]:
    """That a trainer of the user's own is not in the zip file."""
    try:
        module = recursive_find_trainer_class_by_name(trainer).__module__
    except (RuntimeError, ImportError, AssertionError):  # prediction says the same, where it matters
        module = ""
    if module.startswith("nnunetv2."):
        return []
    note = (
        f"{trainer} is not part of nnunetv2, and code is not put into the zip file: pass on its file too (nnUNet_extTrainer). Without it the "
        "network is built from the plans."
    )
    return [note]


def _notes_on_cascades(export: ModelExport) -> list[str]:
    """Which other models the exported ones start from."""
    notes = []
    for model in export.models:
        trainer, plans, configuration = model.rsplit("__", 2)
        plans_manager = PlansManager(str(Path(nnUNet_results) / export.dataset_name / model / layout.PLANS))
        previous = plans_manager.get_configuration(configuration).previous_stage_name
        if previous is not None and f"{trainer}__{plans}__{previous}" not in export.models:
            notes.append(f"{configuration} starts from predictions of {previous}, which is not in the zip file.")
    return notes


def _notes_on_instructions(export: ModelExport, checkpoint_names: Sequence[str]) -> list[str]:
    """Which checkpoints of exported models the instructions beside them predict with, though they were not exported."""
    file = Path(nnUNet_results) / export.dataset_name / layout.INFORMATION
    best = load_json(file).get("best_model_or_ensemble", {}) if file.is_file() else {}
    notes = []
    for entry in best.get("selected_model_or_models", []):
        model = convert_trainer_plans_config_to_identifier(entry["trainer"], entry["plans_identifier"], entry["configuration"])
        checkpoint = entry.get("checkpoint", FINAL_CHECKPOINT)
        if model in export.models and checkpoint not in checkpoint_names:
            notes.append(f"The instructions predict {model} with {checkpoint}, which is not in the zip file. Add it with -chk.")
    return notes


def _check_output(output_file: Path) -> None:
    """Raise unless a zip file can be written there without replacing anything else."""
    if not output_file.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {output_file}: the folder {output_file.parent} does not exist. Make it, or choose another one."
        )
    if output_file.exists() and not (output_file.is_file() and (zipfile.is_zipfile(output_file) or output_file.stat().st_size == 0)):
        raise FileExistsError(f"{output_file} exists and is no zip file, so it is not replaced. Choose another name with -o.")


def _missing_text(export: ModelExport) -> str:
    """What is missing of what was asked for, what is there, and how to go on."""
    folder = Path(nnUNet_results) / export.dataset_name
    there = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*__*__*/fold_*/checkpoint_*.pth"))
    listed = "\n".join(f"  {line}" for line in export.left_out)
    advice = "Choose configurations (-c), trainer (-tr), plans (-p), folds (-f) and checkpoints (-chk)"
    advice += ", or leave out what is missing with --not_strict." if export.models else "."
    return f"Missing of {export.dataset_name}:\n{listed}\nThere is: {', '.join(there) or 'no checkpoint at all'}. {advice}"


def summary_text(export: ModelExport) -> str:
    """What was written, and how to use it."""
    size_mb = export.output_file.stat().st_size / 1e6
    lines = [f"{model}: {', '.join(folds)}" for model, folds in export.models.items()]
    lines += [f"Ensemble: {name}" for name in export.ensembles]
    lines += [f"Left out, because it is missing: {line}" for line in export.left_out]
    lines += [f"Note: {note}" for note in export.notes]
    lines += [
        f"Written: {export.output_file} ({len(export.files)} files, {size_mb:.1f} MB)",
        f"SHA-256: {export.sha256}",
        f"Install it elsewhere: nnUNetv2_install_pretrained_model_from_zip {export.output_file.name}",
    ]
    return "\n".join(lines)
