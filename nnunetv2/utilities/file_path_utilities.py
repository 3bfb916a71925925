"""Names of model and ensemble folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


def convert_trainer_plans_config_to_identifier(trainer_name: str, plans_identifier: str, configuration: str) -> str:
    """``TRAINER__PLANS__CONFIGURATION``."""
    return f"{trainer_name}__{plans_identifier}__{configuration}"


def convert_identifier_to_trainer_plans_config(identifier: str) -> tuple[str, str, str]:
    """The three parts of a model folder's name."""
    parts = os.path.basename(identifier).split("__")
    if len(parts) != 3:
        raise ValueError(f"{identifier!r} is no model folder, expected a name of the form TRAINER__PLANS__CONFIGURATION.")
    return parts[0], parts[1], parts[2]


def get_output_folder(
    dataset_name_or_id: str | int,
    trainer_name: str = "nnUNetTrainer",
    plans_identifier: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    fold: str | int | None = None,
) -> str:
    """Folder of a trained model below ``nnUNet_results``, of one fold if given."""
    model = convert_trainer_plans_config_to_identifier(trainer_name, plans_identifier, configuration)
    folder = os.path.join(nnUNet_results, maybe_convert_to_dataset_name(dataset_name_or_id), model)
    return folder if fold is None else os.path.join(folder, f"fold_{fold}")


def parse_dataset_trainer_plans_configuration_from_path(path: str) -> tuple[str, str, str, str]:
    """Dataset, trainer, plans and configuration from a path that contains ``DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION``."""
    parts = Path(path).parts
    for dataset, model in zip(parts, parts[1:]):
        if dataset.startswith("Dataset") and len(model.split("__")) == 3:
            return (dataset, *convert_identifier_to_trainer_plans_config(model))
    raise ValueError(f"{path!r} holds no DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION.")


def get_ensemble_name(model1_folder: str, model2_folder: str, folds: Sequence[int | str]) -> str:
    """Folder name of an ensemble of two model folders."""
    names = [convert_trainer_plans_config_to_identifier(*_model_parts(f)) for f in (model1_folder, model2_folder)]
    return f"ensemble___{names[0]}___{names[1]}___{folds_tuple_to_string(folds)}"


def get_ensemble_name_from_d_tr_c(
    dataset: str | int, tr1: str, p1: str, c1: str, tr2: str, p2: str, c2: str, folds: Sequence[int | str]
) -> str:
    """Folder name of an ensemble, from the parts of its two models."""
    return get_ensemble_name(get_output_folder(dataset, tr1, p1, c1), get_output_folder(dataset, tr2, p2, c2), folds)


def convert_ensemble_folder_to_model_identifiers_and_folds(ensemble_folder: str) -> tuple[list[str], str]:
    """Model identifiers and the folds string of an ensemble folder."""
    prefix, *models, folds = os.path.basename(ensemble_folder).split("___")
    if prefix != "ensemble" or len(models) != 2:
        raise ValueError(f"{ensemble_folder!r} is no ensemble folder, expected ensemble___MODEL___MODEL___FOLDS.")
    return models, folds


def folds_tuple_to_string(folds: Sequence[int | str]) -> str:
    """``(0, 1)`` to ``"0_1"``."""
    return "_".join(str(f) for f in folds)


def folds_string_to_tuple(folds_string: str) -> tuple[int | str, ...]:
    """``"0_1"`` to ``(0, 1)``; words such as ``all`` stay words."""
    return tuple(int(f) if f.isdigit() else f for f in folds_string.split("_"))


def check_workers_alive_and_busy(export_pool: Any, worker_list: list, results_list: list, allowed_num_queued: int = 0) -> bool:
    """Whether more results are outstanding than the workers and the queue should hold.

    Raises:
        RuntimeError: If a worker has died.
    """
    dead = [worker for worker in worker_list if not worker.is_alive()]
    if dead:
        codes = ", ".join(str(worker.exitcode) for worker in dead)
        raise RuntimeError(f"{len(dead)} background worker(s) died (exit codes {codes}); -9 usually means that memory ran out.")
    return sum(not result.ready() for result in results_list) >= len(worker_list) + allowed_num_queued


def _model_parts(folder: str) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a model folder."""
    return convert_identifier_to_trainer_plans_config(os.path.basename(os.path.normpath(folder)))
