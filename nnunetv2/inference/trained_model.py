"""A trained model from its folder: checkpoints of one or several folds, checked against each other, and their network."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nnunetv2.inference.prediction_files import existing_checkpoints
from nnunetv2.network_architecture.classification_heads import heads_from_checkpoint
from nnunetv2.network_architecture.joint_network import HEADS_PREFIX, with_classification_heads
from nnunetv2.utilities.checkpoint_io import CheckpointError, load_checkpoint_file
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.get_network_from_plans import build_trainers_network, get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

REFITTED_HEADS, JOINT_HEADS = HEAD_SETS = ("refit", "joint")  # trained after the segmentation, and together with it


LONGEST_VALUE = 100  # characters of a value in a message


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """Everything that prediction needs to know about a model."""

    network: nn.Module  # deep supervision off, weights of the first fold
    parameters: list[dict[str, Any]]  # state dict of every fold
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    trainer_name: str
    mirroring_axes: tuple[int, ...] | None
    classification_entry: dict[str, Any] | None  # which heads there are; None for segmentation alone
    head_set: str  # one of HEAD_SETS


def load_trained_model(
    model_folder: str | os.PathLike, folds: Sequence[int | str], checkpoint_name: str, heads: str | None = None
) -> TrainedModel:
    """Read the folds of a model and build its network.

    Args:
        model_folder: Folder ``TRAINER__PLANS__CONFIGURATION``.
        folds: Folds to read.
        checkpoint_name: File in each fold's folder.
        heads: Which classification heads: one of ``HEAD_SETS``; None: those refitted after the training where there are any.

    Raises:
        FileNotFoundError: If a file is missing.
        CheckpointError: If a checkpoint is damaged, would execute code, or is none of a training.
        ValueError: If the folds do not belong together, or do not fit the network of the plans.
    """
    files = existing_checkpoints(model_folder, folds, checkpoint_name)
    dataset_json = load_json(Path(model_folder) / "dataset.json")
    plans_manager = PlansManager(os.path.join(model_folder, "plans.json"))
    checkpoints = [_with_heads(_read(file), heads, file) for file in files]
    check_same_training(files, checkpoints)
    check_belongs_to_folder(files[0], checkpoints[0], plans_manager)

    first = checkpoints[0]
    configuration_manager = plans_manager.get_configuration(first["init_args"]["configuration"])
    entry = first.get("classification")
    network = build_network(first["trainer_name"], plans_manager, configuration_manager, dataset_json)
    network = with_classification_heads(network, heads_from_checkpoint(entry, network))
    for file, checkpoint in reversed(list(zip(files, checkpoints, strict=True))):  # the first fold's weights stay
        _check_weights_fit(network, checkpoint["network_weights"], file)
    axes = first.get("inference_allowed_mirroring_axes")
    return TrainedModel(
        network=network,
        parameters=[checkpoint["network_weights"] for checkpoint in checkpoints],
        plans_manager=plans_manager,
        configuration_manager=configuration_manager,
        dataset_json=dataset_json,
        trainer_name=first["trainer_name"],
        mirroring_axes=None if axes is None else tuple(int(axis) for axis in axes),
        classification_entry=entry,
        head_set=first["head_set"],
    )


def _read(file: Path) -> dict[str, Any]:
    """A checkpoint without what only training needs, so that five folds fit into memory."""
    checkpoint = load_checkpoint_file(file)
    missing = [key for key in ("network_weights", "init_args", "trainer_name") if key not in checkpoint]
    if missing or "configuration" not in checkpoint["init_args"]:
        raise CheckpointError(f"{file} is no checkpoint of a training: it lacks {', '.join(missing) or 'init_args/configuration'}.")
    kept = ("init_args", "trainer_name", "inference_allowed_mirroring_axes", "classification", "refitted_heads")
    weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    return {key: checkpoint[key] for key in kept if key in checkpoint} | {"network_weights": weights}


def _with_heads(checkpoint: dict[str, Any], heads: str | None, file: Path) -> dict[str, Any]:
    """The checkpoint with the chosen set of heads in its ``classification`` and ``network_weights``, and no other."""
    refitted = checkpoint.pop("refitted_heads", None)
    entry = checkpoint.get("classification")
    available = [name for name, there in zip(HEAD_SETS, (refitted, entry and entry.get("trained", True)), strict=True) if there]
    if heads is not None and heads not in available:
        raise ValueError(
            f"{file} has no heads {heads!r}" + (f"; it has {' and '.join(available)} (--cls_heads)." if available else ", nor any others.")
        )
    checkpoint["head_set"] = REFITTED_HEADS if refitted and heads in (None, REFITTED_HEADS) else JOINT_HEADS
    if checkpoint["head_set"] == REFITTED_HEADS:
        checkpoint["classification"] = refitted["classification"]
        segmentation = {key: value for key, value in checkpoint["network_weights"].items() if not key.startswith(HEADS_PREFIX)}
        checkpoint["network_weights"] = segmentation | dict(refitted["weights"])
    return checkpoint


def check_same_training(files: Sequence[Path], checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if folds come from different trainings, whose average would mean nothing."""
    aspects = {
        "trainer": lambda c: c["trainer_name"],
        "configuration": lambda c: c["init_args"]["configuration"],
        "plans": lambda c: (c["init_args"].get("plans") or {}).get("plans_name"),
        "mirroring axes": lambda c: c.get("inference_allowed_mirroring_axes"),
        "classification tasks": lambda c: (c.get("classification") or {}).get("tasks") or "none",
        "classification heads": lambda c: (c.get("classification") or {}).get("heads"),
    }
    problems = []
    for aspect, value_of in aspects.items():
        values = [_comparable(value_of(checkpoint)) for checkpoint in checkpoints]
        if any(value != values[0] for value in values):
            shown = [f"{file.parent.name} {textwrap.shorten(str(value), LONGEST_VALUE)}" for file, value in zip(files, values, strict=True)]
            problems.append(f"  {aspect}: " + "; ".join(shown))
    if problems:
        raise ValueError(
            "The checkpoints of these folds come from different trainings and cannot be averaged:\n" + "\n".join(problems) + "\n"
            "Predict with folds of one training only (-f), or train the others again."
        )


def check_belongs_to_folder(file: Path, checkpoint: Mapping[str, Any], plans_manager: PlansManager) -> None:
    """Raise ValueError if a checkpoint was made by another trainer than its folder is named after, or with other plans than lie there.

    Args:
        file: ``TRAINER__PLANS__CONFIGURATION/fold_X/checkpoint.pth``; folders with other names are of any trainer.
        checkpoint: Its content.
        plans_manager: ``plans.json`` of the folder.
    """
    folder = file.absolute().parent.parent
    parts = folder.name.split("__")
    plans = checkpoint["init_args"].get("plans") or {}
    compared = [
        ("trainer", checkpoint["trainer_name"], parts[0] if len(parts) == 3 else None),
        ("dataset", plans.get("dataset_name"), plans_manager.plans.get("dataset_name")),
        ("plans", plans.get("plans_name"), plans_manager.plans.get("plans_name")),
    ]
    differing = [
        f"{what} {found}, not {expected}" for what, found, expected in compared if None not in (found, expected) and found != expected
    ]
    if differing:
        raise ValueError(
            f"{file} is not of the model in {folder}: it was trained with {'; '.join(differing)}. Put the checkpoint back into the folder of "
            "its own training, or choose that model (-tr, -p, -m)."
        )


def _comparable(value: Any) -> Any:
    """Tuples as lists, whatever the depth: a checkpoint may hold either."""
    if isinstance(value, (list, tuple)):
        return [_comparable(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _comparable(entry) for key, entry in value.items()}
    return value


def build_network(
    trainer_name: str, plans_manager: PlansManager, configuration_manager: ConfigurationManager, dataset_json: dict
) -> nn.Module:
    """The segmentation network of a trainer, with deep supervision off and random weights.

    A trainer that cannot be used here is replaced by the network that the plans describe, with a warning: if the weights fit, it is
    the same network.
    """
    num_input = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    num_output = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    try:
        build = recursive_find_trainer_class_by_name(trainer_name).build_network_architecture
    except (RuntimeError, ImportError, AssertionError) as error:
        warnings.warn(f"{error} The network is built from the plans instead.", stacklevel=2)
        return get_network_from_plans(*_architecture(configuration_manager), num_input, num_output, deep_supervision=False)
    return build_trainers_network(
        build, plans_manager, configuration_manager, dataset_json, num_input, num_output, enable_deep_supervision=False
    )


def _architecture(configuration_manager: ConfigurationManager) -> tuple[str, dict, Sequence[str]]:
    """The architecture section of a configuration as positional arguments."""
    return (
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
    )


def _check_weights_fit(network: nn.Module, weights: Mapping[str, Any], file: Path) -> None:
    """Load weights into the network, all of them and nothing else."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ValueError(
            f"The weights in {file} do not fit the network of plans.json and dataset.json beside it: {' '.join(lines)[:600]} "
            "The files may come from different trainings, or the trainer that built the network is not installed here."
        ) from error
