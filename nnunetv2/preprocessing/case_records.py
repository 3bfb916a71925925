"""What every preprocessed case was made from: ``{data_identifier}.cases/{case}.json`` beside the folder of the cases.

With these records preprocessing goes on where it was interrupted, and takes up new and changed cases alone. A case is kept only if
everything that decides what it looks like is as it was: its raw files (path, size, time of change), the settings in plans and
dataset.json, the code, and the files that were written. Whatever cannot be told counts as changed, and the case is made again; that
it was made is noted all the same, so that runs which share the cases know when all are there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.preprocessing.settings import preprocessing_settings
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.file_path_utilities import file_state
from nnunetv2.utilities.json_export import json_ready
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")
ARRAYS = (".b2nd", "_seg.b2nd")  # of ENDINGS, those that no other way of storing cases has
PACKAGE = Path(nnunetv2.__file__).parent
# Of this package: whatever a case passes through between its raw files and the preprocessed ones.
CODE_OF_PREPROCESSING = ("preprocessing", "imageio", "utilities/label_handling/label_handling.py")
OWN_PREPROCESSOR = "nnunetv2.preprocessing.preprocessors.default_preprocessor"
LIBRARIES = ("numpy", "scipy", "SimpleITK", "nibabel", "tifffile", "scikit-image", "torch")
# Entries of dataset.json without influence on the voxels; they change when cases are added or described.
DESCRIPTIVE_KEYS = ("dataset", "description", "licence", "license", "name", "numTraining", "reference", "release", "tensorImageSize")

FileState = list[str | int]  # path, bytes, time of change in ns


@dataclass(frozen=True)
class CaseRecord:
    """The record that a case has when it is made, or was made, from these files with these settings."""

    file: str
    output_truncated: str
    settings: str  # digest
    inputs: list[FileState]
    is_code_known: bool = True  # else changes of the code are not seen

    def is_current(self) -> bool:
        """Whether the preprocessed case is there, and surely nothing has changed since."""
        return self.is_code_known and self._outputs() is not None and self.is_made()

    def is_made(self) -> bool:
        """Whether the case was made and, as far as can be told, nothing has changed since."""
        try:
            return load_json(self.file) == self._content()
        except (FileNotFoundError, ValueError):
            return False

    def has_arrays(self) -> bool:
        """Whether an array is there as this package stores it. Properties alone say nothing: a user's arrays may lie beside them."""
        return any(os.path.exists(self.output_truncated + ending) for ending in ARRAYS)

    def remove(self) -> None:
        """Before the case is written: one that is half replaced has no record."""
        Path(self.file).unlink(missing_ok=True)

    def write(self) -> None:
        """After the case is written. One that a preprocessor of the user stores in other files is never current, only made.

        Raises:
            FileNotFoundError: If some of its files are gone; another program works in the same folder.
        """
        content = self._content()
        if content["outputs"] is None and self.has_arrays():
            raise FileNotFoundError(
                f"{self.output_truncated}: the files that were just written are gone. Another program changes this folder at the same "
                "time; let it end and run the command again."
            )
        save_json(content, self.file, indent=None)

    def _content(self) -> dict[str, Any]:
        return {"settings": self.settings, "inputs": self.inputs, "outputs": self._outputs()}

    def _outputs(self) -> list[FileState] | None:
        """None where the case is not stored as this package does."""
        return file_states([self.output_truncated + ending for ending in ENDINGS])


def records_folder(output_folder: str) -> str:
    """Folder of the records that belong to a folder of preprocessed cases; not inside, where nnU-Net accepts cases only."""
    return f"{output_folder}.cases"


def records_of_cases(
    preprocessor: Any,
    output_folder: str,
    dataset: Mapping[str, Mapping[str, Any]],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> dict[str, CaseRecord]:
    """The record that every case should have, by identifier. The raw files are looked at now: call it before they are read."""
    settings = settings_digest(preprocessor, plans_manager, configuration_manager, dataset_json)
    is_code_known = code_digest(*_code_used(preprocessor, plans_manager, configuration_manager)) is not None
    return {
        identifier: CaseRecord(
            file=os.path.join(records_folder(output_folder), f"{identifier}.json"),
            output_truncated=os.path.join(output_folder, identifier),
            settings=settings,
            inputs=file_states([*case["images"], case["label"]]) or [],
            is_code_known=is_code_known,
        )
        for identifier, case in dataset.items()
    }


def prepare_records(output_folder: str, identifiers: Iterable[str]) -> None:
    """Make the folder of the records, and remove those of cases that the dataset no longer has."""
    folder = records_folder(output_folder)
    os.makedirs(folder, exist_ok=True)
    kept = {f"{identifier}.json" for identifier in identifiers}
    for entry in os.scandir(folder):
        if entry.is_file() and entry.name.endswith(".json") and not entry.name.startswith(".") and entry.name not in kept:
            Path(entry.path).unlink(missing_ok=True)  # another part may have removed it just now


def file_states(files: Sequence[str]) -> list[FileState] | None:
    """Path, size and time of change of every file; None if one does not exist."""
    states = [file_state(file) for file in files]
    return None if None in states else [list(state) for state in states]


def settings_digest(
    preprocessor: Any, plans_manager: PlansManager, configuration_manager: ConfigurationManager, dataset_json: dict[str, Any]
) -> str:
    """One text for all that the cases of a configuration have in common: plans, dataset.json and code.

    The package's own preprocessor reads known entries of the plans; one of the user may read any.
    """
    settings = preprocessing_settings(plans_manager, configuration_manager)
    del settings["plans_name"]  # plans that preprocess alike share a folder
    configuration = configuration_manager.configuration
    settings["patch_size"] = configuration["patch_size"]  # decides how arrays are laid out in the files
    if type(preprocessor).__module__ != OWN_PREPROCESSOR:
        settings["configuration"] = configuration
        settings["plans"] = {key: value for key, value in plans_manager.plans.items() if key not in ("configurations", "plans_name")}
    content = {
        "settings": settings,
        "dataset": {key: value for key, value in dataset_json.items() if key not in DESCRIPTIVE_KEYS},
        "code": code_digest(*_code_used(preprocessor, plans_manager, configuration_manager)),
    }
    return hashlib.sha256(json.dumps(json_ready(content), sort_keys=True).encode()).hexdigest()


def _code_used(preprocessor: Any, plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> list[Any]:
    """Classes and functions that plans may take from a user's code."""
    return [
        type(preprocessor),
        plans_manager.image_reader_writer_class,
        plans_manager.label_manager_class,
        configuration_manager.resampling_fn_data,
        configuration_manager.resampling_fn_seg,
    ]


def code_digest(*used: Any) -> str | None:
    """Digest of the package's code, the versions of libraries, and the files that define `used` (classes and functions).

    Beside a file of the user his other modules in the same folder count as well, because it may import them. None if some code has no
    file, as in a notebook.
    """
    digest = hashlib.sha256(_package_digest().encode())
    for thing in used:
        thing = getattr(thing, "func", thing)  # of functools.partial
        for definition in inspect.getmro(thing) if isinstance(thing, type) else (thing,):
            if _is_own(definition) or definition.__module__.split(".")[0] in sys.stdlib_module_names:
                continue
            digest_of_file = _digest_of_foreign(definition)
            if digest_of_file is None:
                return None
            digest.update(f"{definition.__module__}.{definition.__qualname__}".encode())
            digest.update(digest_of_file.encode())
    return digest.hexdigest()


def _is_own(definition: Any) -> bool:
    """Whether a class or function is one of those below CODE_OF_PREPROCESSING."""
    folders = {part.split("/")[0] for part in CODE_OF_PREPROCESSING}
    names = definition.__module__.split(".")
    if names[0] != PACKAGE.name or len(names) < 2 or names[1] not in folders:
        return False
    try:
        return PACKAGE in Path(inspect.getfile(definition)).resolve().parents or PACKAGE in Path(inspect.getfile(definition)).parents
    except (TypeError, OSError):
        return False


def _digest_of_foreign(definition: Any) -> str | None:
    try:
        file = Path(inspect.getfile(definition))
        return _digest_of_files(sorted(file.parent.glob("*.py")) if file.suffix == ".py" else [file])
    except (TypeError, OSError):
        return None


@cache
def _package_digest() -> str:
    files: list[Path] = []
    for part in CODE_OF_PREPROCESSING:
        files += [PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py"))
    return _digest_of_files(files) + json.dumps({name: _version(name) for name in LIBRARIES})


def _digest_of_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
