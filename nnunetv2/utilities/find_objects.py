"""Trainer classes by name, in this package and in the user's own folders."""

from __future__ import annotations

import importlib
import importlib.util
import os

from nnunetv2.paths import nnUNet_extTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

TRAINER_PACKAGE = "nnunetv2.training.nnUNetTrainer"


def recursive_find_trainer_class_by_name(trainer_name: str) -> type:
    """The trainer class of a name: from this package, then from the folders in ``nnUNet_extTrainer``.

    Raises:
        RuntimeError: If there is none; the message names the folders searched.
        ImportError: If files define it, but none of them can be imported.
        AssertionError: If the object of that name is no ``nnUNetTrainer``.
    """
    package_folder = os.path.dirname(importlib.util.find_spec(TRAINER_PACKAGE).origin)
    own_folders = [folder for folder in (nnUNet_extTrainer.get() or "").split(os.pathsep) if folder.strip() and os.path.isdir(folder)]
    searched = [package_folder, *own_folders]
    trainer, failure = None, None
    for folder in searched:
        is_package = folder == package_folder
        try:
            trainer = recursive_find_python_class(
                folder, trainer_name, TRAINER_PACKAGE if is_package else None, cleanup_imports_from_base_folder=not is_package
            )
        except ImportError as error:  # a later folder may have one that works
            failure = failure or error
        if trainer is not None:
            break
    if trainer is None and failure is not None:
        raise failure
    if trainer is None:
        raise RuntimeError(
            f"No trainer named {trainer_name} was found in {', '.join(searched)}. Check the spelling; folders with trainers of your "
            "own are named in the environment variable nnUNet_extTrainer."
        )
    base = importlib.import_module(f"{TRAINER_PACKAGE}.nnUNetTrainer").nnUNetTrainer
    if not (isinstance(trainer, type) and issubclass(trainer, base)):
        raise AssertionError(
            f"{trainer_name} is no subclass of nnUNetTrainer. Trainers derive from {TRAINER_PACKAGE}.nnUNetTrainer.nnUNetTrainer."
        )
    return trainer
