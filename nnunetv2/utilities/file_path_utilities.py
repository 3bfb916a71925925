"""Names of result folders, and what they say about the model in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


def convert_trainer_plans_config_to_identifier(trainer_name: str, plans_identifier: str, configuration: str) -> str:
    """Folder name of a model: ``{trainer}__{plans}__{configuration}``."""
    return f"{trainer_name}__{plans_identifier}__{configuration}"


def convert_identifier_to_trainer_plans_config(identifier: str) -> list[str]:
    """Trainer, plans and configuration of a model's folder name."""
    parts = os.path.basename(identifier.rstrip("/" + os.sep)).split("__")
    if len(parts) != 3:
        raise ValueError(f"{identifier!r} is no model folder; expected a name of the form trainer__plans__configuration.")
    return parts


def get_output_folder(
    dataset_name_or_id: str | int,
    trainer_name: str = "nnUNetTrainer",
    plans_identifier: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    fold: str | int | None = None,
) -> str:
    """Folder of a model below ``nnUNet_results``, or of one of its folds."""
    name = convert_trainer_plans_config_to_identifier(trainer_name, plans_identifier, configuration)
    folder = os.path.join(nnUNet_results, maybe_convert_to_dataset_name(dataset_name_or_id), name)
    return folder if fold is None else os.path.join(folder, f"fold_{fold}")


def parse_dataset_trainer_plans_configuration_from_path(path: str | os.PathLike[str]) -> tuple[str, str, str, str] | None:
    """Dataset, trainer, plans and configuration of a path at or below a model folder; None if it names no such folder."""
    parts = [part for part in os.fspath(path).replace("\\", "/").split("/") if part]
    for dataset, model in pairwise(parts):
        pieces = model.split("__")
        if dataset.startswith("Dataset") and len(pieces) == 3 and all(pieces):
            return dataset, pieces[0], pieces[1], pieces[2]
    return None


def get_ensemble_name(model1_folder: str, model2_folder: str, folds: Iterable[int | str]) -> str:
    """``ensemble___{model 1}___{model 2}___{folds}``."""
    names = [os.path.basename(os.fspath(folder).rstrip("/" + os.sep)) for folder in (model1_folder, model2_folder)]
    return "___".join(["ensemble", *names, folds_tuple_to_string(folds)])


def get_ensemble_name_from_d_tr_c(
    dataset: str | int, tr1: str, p1: str, c1: str, tr2: str, p2: str, c2: str, folds: Iterable[int | str]
) -> str:
    """The same for two models of a dataset, given by trainer, plans and configuration."""
    return get_ensemble_name(get_output_folder(dataset, tr1, p1, c1), get_output_folder(dataset, tr2, p2, c2), folds)


def convert_ensemble_folder_to_model_identifiers_and_folds(ensemble_folder: str) -> tuple[list[str], str]:
    """The model folder names and the folds, as in the name, of an ensemble's folder."""
    prefix, *models, folds = os.path.basename(os.fspath(ensemble_folder).rstrip("/" + os.sep)).split("___")
    if prefix != "ensemble" or not models:
        raise ValueError(f"{ensemble_folder!r} is no ensemble folder; expected ensemble___model1___model2___folds.")
    return models, folds


def folds_tuple_to_string(folds: Iterable[int | str]) -> str:
    """``(0, 1, 'all')`` -> ``0_1_all``."""
    return "_".join(str(fold) for fold in folds)


def folds_string_to_tuple(folds_string: str) -> list[int | str]:
    """``0_1_all`` -> ``[0, 1, 'all']``."""
    return [int(part) if part.isdigit() else part for part in folds_string.split("_")]


def check_workers_alive_and_busy(export_pool: Any, worker_list: list, results_list: list, allowed_num_queued: int = 0) -> bool:
    """Whether a pool has as much to do as it should get: more than `allowed_num_queued` results beyond one per worker.

    Args:
        export_pool: The pool that the results come from.
        worker_list: Its processes, as they were when it was started.
        results_list: Asynchronous results that were asked for so far.
        allowed_num_queued: Tasks that may wait beyond those at work.

    Raises:
        RuntimeError: If a worker has died; a pool would silently wait for ever for its task.
    """
    dead = [worker for worker in worker_list if not worker.is_alive()]
    if dead:
        codes = ", ".join(f"{worker.name} (exit code {worker.exitcode})" for worker in dead)
        raise RuntimeError(
            f"{len(dead)} of {len(worker_list)} background workers died: {codes}. Usually the memory (RAM) ran out: "
            "use fewer processes, or a machine with more memory, and start again."
        )
    unfinished = sum(not result.ready() for result in results_list)
    return unfinished >= len(worker_list) + allowed_num_queued


def file_state(file: str | os.PathLike[str]) -> tuple[str, int, int] | None:
    """Absolute path, size in bytes and time of the last change in ns, by which a file is known again; None if it does not exist."""
    try:
        state = os.stat(file)
    except OSError:
        return None
    return os.path.abspath(file), state.st_size, state.st_mtime_ns
