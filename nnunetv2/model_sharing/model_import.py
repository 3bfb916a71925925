"""Install a zip file with trained models into ``nnUNet_results``.

Such a file comes from somebody else. All that it holds is checked before anything of it reaches a model's place: names, sizes and kinds of
the members first, then, unpacked into a temporary folder, their contents. Pickles and checkpoints are read by readers that execute nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from nnunetv2.model_sharing import model_layout as layout
from nnunetv2.model_sharing.checksum import check_sha256
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.checkpoint_io import CheckpointError, load_checkpoint_file
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, find_candidate_datasets
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, load_json, restricted_pickle_load
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

# The largest models of nnU-Net have some dozen files for each fold, with predictions of the validation cases some thousand.
MOST_FILES = 200_000
# Weights shrink by 7 %, texts and label maps up to two hundredfold. Deflate can reach a thousandfold, which only bombs do.
LARGEST_RATIO, HARMLESS_BYTES = 250, 500 * 1024**2
LONGEST_NAME = 255
FILES_SHOWN = 5
_CHUNK_BYTES = 1024**2
# First bytes of programs: Linux, Windows, macOS (four variants), scripts.
_PROGRAMS = (b"\x7fELF", b"MZ", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"#!")
# The only function that files of nnU-Net name: postprocessing.pkl says by it what to do. Here its name is enough, nothing is applied.
_REMOVE_COMPONENTS = "nnunetv2.postprocessing.remove_connected_components.remove_all_but_largest_component_from_segmentation"


class ModelZipError(ValueError):
    """A zip file that is damaged, dangerous, or holds no model."""


@dataclass(kw_only=True)
class InstalledModels:
    """What an installation did."""

    folders: list[Path] = field(default_factory=list)  # models and ensembles
    files: list[str] = field(default_factory=list)  # relative to nnUNet_results
    kept: list[Path] = field(default_factory=list)  # files that were there already and are not replaced
    notes: list[str] = field(default_factory=list)


def install_model_from_zip_file(zip_file: str, overwrite: bool = False, sha256: str | None = None) -> InstalledModels:
    """Unpack a zip file with trained models into ``nnUNet_results``.

    Args:
        zip_file: Made by ``nnUNetv2_export_model_to_zip``, here or by nnU-Net 2.8.1 and older versions.
        overwrite: Whether a model of the same name is replaced, with all of its folds.
        sha256: What the author of the file says about it; None: not checked.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If a model of the same name is there, unless it may be replaced.
        ModelZipError: If the file is damaged or incomplete, could do harm, or holds no model of nnU-Net v2. Nothing is installed then.
    """
    if not os.path.isfile(zip_file):
        raise FileNotFoundError(f"There is no file {zip_file}.")
    if sha256 is not None:
        check_sha256(zip_file, sha256)
    results = Path(nnUNet_results.require())
    results.mkdir(parents=True, exist_ok=True)
    with _opened(zip_file) as archive, tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=results) as temporary:
        members = check_members(archive, zip_file)
        places = sorted({layout.place_of(member.filename) for member in members})
        check_not_installed(results, places, overwrite)
        _check_space(members, results, zip_file)
        unpacked, replaced = Path(temporary, "unpacked"), Path(temporary, "replaced")
        extract(archive, members, unpacked, zip_file)
        check_contents(unpacked, zip_file)
        installed = _move_into_place(unpacked, results, replaced, places, overwrite)
    installed.files = sorted(member.filename for member in members)
    installed.notes = _notes_on_ids({place[0] for place in places})
    return installed


def _opened(zip_file: str) -> zipfile.ZipFile:
    """The archive, if it is one."""
    try:
        return zipfile.ZipFile(zip_file)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and not isinstance(error, zipfile.BadZipFile) and error.errno is not None:
            raise
        raise ModelZipError(
            f"{zip_file} is no whole zip file ({error}; {os.path.getsize(zip_file)} bytes). If it was downloaded, the download stopped early or "
            "brought a web page instead of the file: get it again."
        ) from error


def check_members(archive: zipfile.ZipFile, zip_file: str) -> list[zipfile.ZipInfo]:
    """The files to unpack, none of which can reach beyond a model's folder or is anything but a model's file.

    Raises:
        ModelZipError: Naming everything that is wrong.
    """
    members = [member for member in archive.infolist() if not member.is_dir() and not layout.CLUTTER.search(member.filename)]
    problems = [problem for member in archive.infolist() if (problem := _problem_of_name(member))]
    if not problems:
        problems = [f"{member.filename}: not a file of a model" for member in members if layout.place_of(member.filename) is None]
        problems += _clashes([member.filename for member in members])
    if len(members) > MOST_FILES:
        problems.append(f"{len(members)} files, expected {MOST_FILES} at most")
    if problems:
        raise ModelZipError(
            f"{zip_file} was refused, nothing was installed:\n  {_listed(problems)}\n"
            "Expected are the files that nnUNetv2_export_model_to_zip writes, below DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION/."
        )
    if not members:
        raise ModelZipError(f"{zip_file} holds no files. Ask its author to export the model again (nnUNetv2_export_model_to_zip).")
    _check_ratio(members, zip_file)
    return members


def _problem_of_name(member: zipfile.ZipInfo) -> str | None:
    """What is wrong with the name or the kind of a member."""
    name = member.filename
    shown = ascii(name)[1:-1]
    parts = name.rstrip("/").split("/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if "\\" in member.orig_filename or ":" in name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return f"{shown}: leads out of the folder"
    if not name.isprintable() or len(name) > 16 * LONGEST_NAME or any(len(part) > LONGEST_NAME or part != part.strip() for part in parts):
        return f"{shown[:LONGEST_NAME]}: a name that not every system can write"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{shown}: {'a link' if kind == stat.S_IFLNK else 'neither file nor folder'}"
    if member.flag_bits & 0x1:
        return f"{shown}: encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{shown}: compressed by method {member.compress_type}, expected deflate"
    return None


def _clashes(names: Sequence[str]) -> list[str]:
    """Names that could not lie beside each other; capital letters do not count, because not every file system tells them apart."""
    seen: set[str] = set()
    folders = {parent.as_posix().casefold() for name in names for parent in PurePosixPath(name).parents}
    problems = []
    for name in names:
        if name.casefold() in seen:
            problems.append(f"{name}: twice")
        elif name.casefold() in folders:
            problems.append(f"{name}: a file and a folder at once")
        seen.add(name.casefold())
    return problems


def _check_ratio(members: Sequence[zipfile.ZipInfo], zip_file: str) -> None:
    """Raise ModelZipError for sizes that no model has."""
    packed = sum(member.compress_size for member in members)
    if packed > os.path.getsize(zip_file):
        raise ModelZipError(f"{zip_file} was refused, nothing was installed: its files overlap each other, as in a zip bomb.")
    for size, compressed, what in (
        (sum(member.file_size for member in members), packed, "it"),
        *((member.file_size, member.compress_size, member.filename) for member in members),
    ):
        if size > HARMLESS_BYTES and size > LARGEST_RATIO * max(compressed, 1):
            raise ModelZipError(
                f"{zip_file} was refused, nothing was installed: {what} would grow from {_in_mb(compressed)} to {_in_mb(size)}, as a zip bomb does."
            )


def _check_space(members: Sequence[zipfile.ZipInfo], folder: Path, zip_file: str) -> None:
    """Raise OSError if the unpacked files do not fit on the disk."""
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{zip_file} needs {_in_mb(needed)}, but only {_in_mb(free)} are free in {folder}. Free some space, or let nnUNet_results point to "
            "another disk."
        )


def check_not_installed(results: Path, places: Iterable[tuple[str, ...]], overwrite: bool) -> None:
    """Raise FileExistsError if a model or an ensemble is there already and may not be replaced."""
    existing = [str(results.joinpath(*place)) for place in places if _is_folder(place) and os.path.lexists(results.joinpath(*place))]
    if existing and not overwrite:
        raise FileExistsError(
            f"Not installed, because it exists already: {_listed(existing)}\n"
            "Rename or remove it, or replace it and all of its folds with --overwrite."
        )


def _is_folder(place: tuple[str, ...]) -> bool:
    """Whether a place is the folder of a model or an ensemble, rather than a file beside them."""
    return len(place) == 3 or "__" in place[1] and not layout.has_allowed_name(place[1])


def extract(archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], folder: Path, zip_file: str) -> None:
    """Write the members below a folder, as plain files without the permissions that the archive gives them.

    Raises:
        ModelZipError: If a member is damaged or a program.
    """
    for member in tqdm(members, desc="unpacking"):
        target = folder / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(member) as source, open(target, "xb") as file:
                start = source.read(_CHUNK_BYTES)
                if start.startswith(_PROGRAMS):
                    raise ModelZipError(f"{zip_file} was refused, nothing was installed: {member.filename} is a program.")
                file.write(start)
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ModelZipError(
                f"{zip_file} is damaged at {member.filename} ({error}); nothing was installed. Get the file again."
            ) from error


def check_contents(folder: Path, zip_file: str) -> None:
    """Read everything that a program would read later on, without executing anything.

    Args:
        folder: The unpacked files, ``folder/DatasetXXX_Name/...``.
        zip_file: Where they come from, for messages.

    Raises:
        ModelZipError: Naming everything that is wrong.
    """
    problems = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            _read(file)
        except (ValueError, RuntimeError) as error:
            problems.append(str(error).replace(f"{folder}{os.sep}", ""))
    models = sorted(path for path in folder.glob("Dataset*/*__*__*") if path.is_dir())
    if not models:
        problems.append("there is no model DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION")
    for model in models:
        name = model.relative_to(folder)
        problems += [f"{name}: {needed} is missing" for needed in layout.NEEDED_MODEL_FILES if not (model / needed).is_file()]
        if not any(model.glob(f"fold_*/*{layout.CHECKPOINT_ENDING}")):
            problems.append(f"{name}: no fold has a checkpoint")
    if problems:
        raise ModelZipError(f"{zip_file} was refused, nothing was installed:\n  {_listed(problems)}")


def _read(file: Path) -> None:
    """Raise ValueError or RuntimeError if a file is not what its name says."""
    if file.suffix == layout.CHECKPOINT_ENDING:
        if "network_weights" not in load_checkpoint_file(file, mmap=True):
            raise CheckpointError(f"{file} is no checkpoint of a training: it lacks network_weights.")
    elif file.suffix == layout.PICKLE_ENDING:
        restricted_pickle_load(file, {_REMOVE_COMPONENTS: _REMOVE_COMPONENTS})
    elif file.suffix == ".json":
        content = load_json(file)
        if file.name == layout.PLANS and isinstance(content, dict):
            PlansManager(content)
        elif file.name == layout.PLANS:
            raise ValueError(f"{file} holds no plans.")
        elif file.name == layout.DATASET and not (isinstance(content, dict) and "labels" in content):
            raise ValueError(f"{file} has no entry labels, so it is not the dataset.json of a model.")


def _move_into_place(unpacked: Path, results: Path, replaced: Path, places: Sequence[tuple[str, ...]], overwrite: bool) -> InstalledModels:
    """Move models, ensembles and files beside them to their places; all of them, or after an error none."""
    installed = InstalledModels()
    undo: list[tuple[Path, Path]] = []  # from where to where
    try:
        for place in places:
            source, target = unpacked.joinpath(*place), results.joinpath(*place)
            if not _is_folder(place) and target.exists() and not overwrite:
                installed.kept.append(target)  # it may speak of models that this file knows nothing about
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                aside = replaced.joinpath(*place)
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(target, aside)
                undo.append((aside, target))
            shutil.move(source, target)  # the folder of a dataset may be a link to another disk
            undo.append((target, source))
            if _is_folder(place):
                installed.folders.append(target)
    except BaseException:
        for source, target in reversed(undo):
            shutil.move(source, target)
        raise
    return installed


def _notes_on_ids(dataset_names: Iterable[str]) -> list[str]:
    """Warnings about datasets that can no longer be named by their number."""
    notes = []
    for name in sorted(dataset_names):
        others = [other for other in find_candidate_datasets(convert_dataset_name_to_id(name)) if other != name]
        if others:
            notes.append(f"WARNING: {', '.join(others)} has the same number as {name}; give whole names to -d from now on.")
    return notes


def _listed(lines: Sequence[str]) -> str:
    """The first lines and how many more there are."""
    rest = len(lines) - FILES_SHOWN
    return "\n  ".join([*lines[:FILES_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])


def _in_mb(number_of_bytes: int) -> str:
    return f"{number_of_bytes / 1e6:.1f} MB"


def summary_text(installed: InstalledModels) -> str:
    """What was installed, and how to use it."""
    lines = [f"  {name}" for name in installed.files]
    if len(lines) > 40:
        lines = [*lines[:20], f"  ... {len(lines) - 20} more"]
    lines = [f"{len(installed.files)} files:", *lines]
    lines += [f"Kept as it was: {path} (--overwrite replaces it)" for path in installed.kept]
    lines += [f"Installed: {folder}" for folder in installed.folders]
    lines += installed.notes
    models = [folder for folder in installed.folders if folder.parent.name != layout.ENSEMBLES]
    model = next((folder for folder in models if folder.name.count("__") == 2), None)
    if model is not None:
        trainer, plans, configuration = model.name.split("__")
        folds = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*"))
        lines.append(
            f"Predict: nnUNetv2_predict -d {model.parent.name} -c {configuration} -tr {trainer} -p {plans} -f {' '.join(folds)} -i IN -o OUT"
        )
    return "\n".join(lines)
