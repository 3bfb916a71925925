"""The segmentation part of a trained model, as stock nnU-Net 2.8.1 reads it.

Stock nnU-Net finds a trainer by its name, builds that trainer's network and loads all weights into it, so a checkpoint with classification
heads, or of a trainer that it does not know, cannot be opened. The export leaves both out and changes nothing else: the same segmentation.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.inference.prediction_files import existing_checkpoints
from nnunetv2.inference.trained_model import build_network, check_belongs_to_folder
from nnunetv2.network_architecture.joint_network import HEADS_PREFIX
from nnunetv2.utilities.checkpoint_io import SEGMENTATION_KEYS, CheckpointError, load_checkpoint_file, save_checkpoint_file
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, copy_file, load_json, save_json
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

STOCK_TRAINER = "nnUNetTrainer"
FINGERPRINT_FILE = "dataset_fingerprint.json"
# What nnU-Net 2.8.1 writes into its checkpoints and its curves.
CHECKPOINT_KEYS = (
    "network_weights",
    "optimizer_state",
    "grad_scaler_state",
    "logging",
    "_best_ema",
    "current_epoch",
    "init_args",
    "trainer_name",
    "inference_allowed_mirroring_axes",
)
# Of no use without heads, and `case_labels` and `case_groups` may hold what is known about every patient of the training.
DATASET_KEYS_LEFT_OUT = ("classification", "case_labels", "case_groups")


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """What an export wrote."""

    folder: Path
    checkpoints: tuple[str, ...]  # relative to the folder
    trainer_name: str  # of the checkpoints that were read
    num_head_weights: int  # left out of each checkpoint
    has_fingerprint: bool
    stock_folder_name: str  # by which nnUNetv2_predict finds the model below nnUNet_results


def export_segmentation_model(
    model_folder: str | os.PathLike,
    output_folder: str | os.PathLike,
    folds: Sequence[int | str] | None = None,
    checkpoint_names: Sequence[str] = ("checkpoint_final.pth",),
) -> ExportedModel:
    """Write the folder of a model for stock nnU-Net.

    Args:
        model_folder: Folder ``TRAINER__PLANS__CONFIGURATION`` of a training, with or without heads. It is not changed.
        output_folder: New folder, which appears when everything is written.
        folds: Folds to export; None: all that have one of the checkpoints.
        checkpoint_names: Files of every fold.

    Raises:
        FileExistsError: If the output folder holds something already.
        FileNotFoundError: If a fold lacks a checkpoint, or the model a file.
        CheckpointError: If a checkpoint is damaged, would execute code, or is none of a training.
        ValueError: If the weights do not fit the network that stock nnU-Net builds from the plans.
    """
    model_folder, output_folder = Path(model_folder), Path(output_folder)
    check_output_is_free(output_folder)
    files = checkpoints_to_export(model_folder, folds, checkpoint_names)
    plans_manager = PlansManager(str(model_folder / "plans.json"))
    dataset_json = without_classification(load_json(model_folder / "dataset.json"))
    output_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=output_folder.parent) as temporary:
        staged = Path(temporary) / output_folder.name
        staged.mkdir()
        for file in files:
            checkpoint = load_checkpoint_file(file)
            content = segmentation_checkpoint(checkpoint, file, plans_manager, dataset_json)
            target = staged / file.relative_to(model_folder)
            target.parent.mkdir(exist_ok=True)
            save_checkpoint_file(content, target)
        copy_file(model_folder / "plans.json", staged / "plans.json")
        save_json(dataset_json, staged / "dataset.json")
        has_fingerprint = (model_folder / FINGERPRINT_FILE).is_file()
        if has_fingerprint:
            copy_file(model_folder / FINGERPRINT_FILE, staged / FINGERPRINT_FILE)
        if output_folder.is_dir():
            output_folder.rmdir()  # empty, and not every system renames onto a folder
        shutil.move(staged, output_folder)
    return ExportedModel(
        folder=output_folder,
        checkpoints=tuple(file.relative_to(model_folder).as_posix() for file in files),
        trainer_name=checkpoint["trainer_name"],
        num_head_weights=len(checkpoint["network_weights"]) - len(content["network_weights"]),
        has_fingerprint=has_fingerprint,
        stock_folder_name=convert_trainer_plans_config_to_identifier(
            STOCK_TRAINER, plans_manager.plans_name, content["init_args"]["configuration"]
        ),
    )


def check_output_is_free(output_folder: str | os.PathLike) -> None:
    """Raise FileExistsError if there is something in the output folder, or a file of its name."""
    folder = Path(output_folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already and is not overwritten. Choose another folder with -o, or remove it first.")


def checkpoints_to_export(model_folder: Path, folds: Sequence[int | str] | None, checkpoint_names: Sequence[str]) -> list[Path]:
    """The chosen checkpoints of the chosen folds; raises FileNotFoundError for those that are missing."""
    if folds is None:
        found = {file.parent.name.removeprefix("fold_") for name in checkpoint_names for file in model_folder.glob(f"fold_*/{name}")}
        found = {fold for fold in found if fold.isdecimal() or fold == "all"}  # no copies such as fold_0_old
        # Without any, the first fold is asked for, to get the message that says what is there.
        folds = sorted(found, key=lambda fold: (not fold.isdigit(), int(fold) if fold.isdigit() else 0, fold)) or [0]
    return [file for name in dict.fromkeys(checkpoint_names) for file in existing_checkpoints(model_folder, folds, name)]


def without_classification(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """``dataset.json`` without what it says about classes of cases."""
    return {key: value for key, value in dataset_json.items() if key not in DATASET_KEYS_LEFT_OUT}


def segmentation_checkpoint(
    checkpoint: Mapping[str, Any], file: Path, plans_manager: PlansManager, dataset_json: dict[str, Any]
) -> dict[str, Any]:
    """A checkpoint as stock nnU-Net would have written it; nothing is copied that need not be.

    Args:
        checkpoint: Content of a checkpoint.
        file: Where it comes from, for messages.
        plans_manager: ``plans.json`` of its folder.
        dataset_json: Of its folder.
    """
    missing = [key for key in ("network_weights", "init_args", "trainer_name") if key not in checkpoint]
    if missing or "configuration" not in checkpoint["init_args"]:
        raise CheckpointError(f"{file} is no checkpoint of a training: it lacks {', '.join(missing) or 'init_args/configuration'}.")
    check_belongs_to_folder(file, checkpoint, plans_manager)
    weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    if checkpoint.get("classification"):
        weights = {key: value for key, value in weights.items() if not key.startswith(HEADS_PREFIX)}
    _check_fits_stock_network(weights, checkpoint, file, plans_manager, dataset_json)
    result = {key: checkpoint[key] for key in CHECKPOINT_KEYS if key in checkpoint}
    result |= {"network_weights": weights, "trainer_name": STOCK_TRAINER, "init_args": dict(checkpoint["init_args"])}
    if isinstance(result["init_args"].get("dataset_json"), Mapping):
        result["init_args"]["dataset_json"] = without_classification(result["init_args"]["dataset_json"])
    if "logging" in result:
        result["logging"] = {key: values for key, values in result["logging"].items() if key in SEGMENTATION_KEYS}
    return result


def _check_fits_stock_network(
    weights: Mapping[str, Any], checkpoint: Mapping[str, Any], file: Path, plans_manager: PlansManager, dataset_json: dict[str, Any]
) -> None:
    """Raise ValueError unless the weights are those of the network that ``nnUNetTrainer`` builds from the plans."""
    configuration_manager = plans_manager.get_configuration(checkpoint["init_args"]["configuration"])
    network = build_network(STOCK_TRAINER, plans_manager, configuration_manager, dataset_json)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ValueError(
            f"{file} cannot be exported: its trainer {checkpoint['trainer_name']} has another network than nnUNetTrainer builds from "
            f"plans.json, so stock nnU-Net could not open it. {' '.join(lines)[:600]}"
        ) from error


def summary_text(exported: ExportedModel) -> str:
    """What was done, and how to use it."""
    lines = [f"Exported from {exported.trainer_name} to {STOCK_TRAINER}: {', '.join(exported.checkpoints)}"]
    if exported.num_head_weights:
        lines.append(f"Left out: {exported.num_head_weights} tensors of classification heads per checkpoint. The segmentation is the same.")
    else:
        lines.append("The model had no classification heads; its segmentation is the same.")
    if not exported.has_fingerprint:
        lines.append(
            f"The model folder has no {FINGERPRINT_FILE}; prediction does without it, stock nnU-Net's nnUNetv2_export_model_to_zip needs it."
        )
    lines += [
        f"Written: {exported.folder}",
        f"Predict with stock nnU-Net: nnUNetv2_predict_from_modelfolder -m {exported.folder} -i IN -o OUT -f FOLDS",
        f"For nnUNetv2_predict, put the folder into nnUNet_results/DATASET under the name {exported.stock_folder_name}",
    ]
    return "\n".join(lines)
