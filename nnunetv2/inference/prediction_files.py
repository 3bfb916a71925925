"""Which cases to predict, where their results go, and what can be checked before anything is predicted. Imports no torch."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nifti_file import check_nifti_is_complete
from nnunetv2.inference.data_iterators import case_identifier
from nnunetv2.utilities.file_io import atomic_path, load_properties
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

FILES_SHOWN = 5


def find_input_cases(folder: str, file_ending: str) -> list[list[str]]:
    """Image files of every case in a folder, one list of channels per case, in sorted order.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no image of this kind.
        ValueError: If the channels of cases are not numbered from 0000 without gaps; names them all.
    """
    cases = create_lists_from_splitted_dataset_folder(folder, file_ending)
    if not cases:
        others = sorted(name for name in os.listdir(folder) if not name.startswith("."))[:FILES_SHOWN]
        raise FileNotFoundError(
            f"{folder} holds no images for this model. Expected files named CASE_0000{file_ending}, one per channel; "
            f"found {', '.join(others) if others else 'an empty folder'}."
        )
    wrong = [files for files in cases if not _channels_are_complete(files, file_ending)]
    if wrong:
        names = [f"{case_identifier(files, file_ending)} ({', '.join(os.path.basename(file) for file in files)})" for files in wrong]
        raise ValueError(
            f"{folder}: channels of {len(wrong)} of {len(cases)} cases are missing: {_shown(names)}. Expected files named "
            f"CASE_0000{file_ending}, CASE_0001{file_ending}, ... for the channels of the model, from 0000 on without gaps."
        )
    return cases


def _channels_are_complete(files: Sequence[str], file_ending: str) -> bool:
    """Whether the files of a case, in order, are numbered from 0."""
    numbers = [int(file.removesuffix(file_ending)[-4:]) for file in files]
    return numbers == list(range(len(numbers)))


def check_part(part_id: int, num_parts: int) -> None:
    """Raise ValueError unless the part is one of the parts."""
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise ValueError(f"part_id is {part_id} and num_parts {num_parts}; parts are counted from 0 to num_parts - 1.")


def check_different_folders(input_folder: str | os.PathLike, output_folder: str | os.PathLike) -> None:
    """Raise ValueError if predictions would be written between the images, or the output is no folder."""
    if os.path.exists(output_folder) and not os.path.isdir(output_folder):
        raise ValueError(f"{os.fspath(output_folder)} is a file. Give a folder for the predictions; it is made if it does not exist.")
    if os.path.realpath(input_folder) == os.path.realpath(output_folder):
        raise ValueError(f"Input and output are the same folder, {os.fspath(input_folder)}. Choose another folder for the predictions.")


def check_outputs(list_of_lists: Sequence[Sequence[str]], output_files_truncated: Sequence[str | None] | None, file_ending: str) -> None:
    """Raise ValueError unless every case has a result of its own that replaces no image.

    Args:
        list_of_lists: Image files of every case.
        output_files_truncated: Result of every case without file ending; None if results are returned.
        file_ending: Of the results.
    """
    if output_files_truncated is None:
        return
    if len(output_files_truncated) != len(list_of_lists):
        raise ValueError(f"There are {len(list_of_lists)} cases but {len(output_files_truncated)} output files; give one for each case.")
    outputs = [os.path.realpath(name + file_ending) for name in output_files_truncated if name is not None]
    twice = sorted(name for name, count in Counter(outputs).items() if count > 1)
    if twice:
        raise ValueError(f"Several cases would be written to the same file: {_shown(twice)}. Give every case a name of its own.")
    overwritten = sorted(set(outputs) & {os.path.realpath(file) for files in list_of_lists for file in files})
    if overwritten:
        raise ValueError(f"Predictions would overwrite their own images: {_shown(overwritten)}. Choose another output folder.")


def output_files_for(list_of_lists: Sequence[Sequence[str]], output_folder: str, file_ending: str) -> list[str]:
    """Result of every case, without file ending, in a folder."""
    return [os.path.join(output_folder, case_identifier(files, file_ending)) for files in list_of_lists]


def is_complete(output_file_truncated: str, file_ending: str, reader_writer: BaseReaderWriter, with_probabilities: bool) -> bool:
    """Whether an earlier run left the whole result of a case: every file is there and can be read to its end."""
    checks: list[tuple[str, Callable[[str], object]]] = [(file_ending, reader_writer.read_seg)]
    if with_probabilities:
        checks += [(".npz", _read_probabilities), (".pkl", load_properties)]
    for ending, read in checks:
        file = output_file_truncated + ending
        if not os.path.isfile(file):
            return False
        try:
            read(file)
        except Exception as error:  # decoders raise anything for a broken file
            print(f"{file} is there but cannot be read ({type(error).__name__}); its case is predicted again.")
            return False
    return True


def write_probability_file(
    file: str | os.PathLike, shape: Sequence[int], channels: Iterable[np.ndarray], classes: Mapping[str, np.ndarray]
) -> None:
    """Write what ``numpy.savez_compressed`` would, with one channel of the probabilities in memory at a time.

    Args:
        file: The ``.npz``.
        shape: Of all probabilities, ``(heads, X, Y, Z)``.
        channels: Float32 ``(X, Y, Z)``, as many as the shape says.
        classes: Further arrays by name.
    """
    with atomic_path(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("probabilities.npy", "w", force_zip64=True) as entry:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(entry, header)
            for channel in channels:
                entry.write(np.ascontiguousarray(channel, dtype=np.float32).data.cast("B"))
        for name, values in classes.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)


def is_complete_nifti(file: str) -> bool:
    """Whether a NIfTI file is there with all its voxels."""
    if not os.path.isfile(file):
        return False
    try:
        check_nifti_is_complete(file)
    except Exception as error:  # a damaged file may raise anything from EOFError to zlib.error
        print(f"{file} is there but cannot be read ({type(error).__name__}); its case is predicted again.")
        return False
    return True


def _read_probabilities(file: str) -> None:
    """Raise unless the archive is undamaged and holds what ensembling needs."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in {file} is damaged")
    with np.load(file, allow_pickle=False) as content:
        if "probabilities" not in content.files:
            raise ValueError(f"{file} holds no probabilities")


def existing_checkpoints(model_folder: str | Path, folds: Sequence[int | str], checkpoint_name: str) -> list[Path]:
    """The checkpoint of every fold.

    Raises:
        FileNotFoundError: Naming everything that is missing, and what is there instead.
    """
    model_folder = Path(model_folder)
    if not model_folder.is_dir():
        raise FileNotFoundError(
            f"There is no trained model in {model_folder}. Check dataset, configuration (-c), trainer (-tr) and plans (-p), "
            "and the environment variable nnUNet_results."
        )
    missing = [name for name in ("dataset.json", "plans.json") if not (model_folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{model_folder} is no folder of a trained model: {' and '.join(missing)} missing.")
    if not folds:
        raise ValueError("No fold to predict with. Give at least one, such as 0 or all.")
    files = [model_folder / f"fold_{fold}" / checkpoint_name for fold in folds]
    absent = [file for file in files if not file.is_file()]
    if absent:
        there = sorted(str(file.relative_to(model_folder)) for file in model_folder.glob("fold_*/checkpoint_*.pth"))
        raise FileNotFoundError(
            f"Missing in {model_folder}: {', '.join(str(file.relative_to(model_folder)) for file in absent)}. "
            f"There is: {', '.join(there) if there else 'no checkpoint at all'}. Choose folds with -f and the checkpoint with -chk."
        )
    return files


def _shown(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    rest = len(names) - FILES_SHOWN
    return ", ".join(names[:FILES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
