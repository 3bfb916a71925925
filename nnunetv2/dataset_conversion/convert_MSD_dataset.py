"""Datasets of the Medical Segmentation Decathlon, ``TaskXX_Name``: one 4D file for each case becomes one file for each channel."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunetv2.configuration import default_num_processes
from nnunetv2.dataset_conversion.new_dataset import labels_by_name, new_dataset_folder, visible_files
from nnunetv2.imageio.nifti_file import check_nifti_is_complete
from nnunetv2.scheduling import run_per_case
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.file_io import atomic_path, copy_file, load_json, save_json

FILE_ENDING = ".nii.gz"
FOLDERS_NEEDED = ("imagesTr", "labelsTr")
KEYS_LEFT_OUT = ("training", "test", "modality")  # lists of files that are renamed, and the older name of channel_names
LARGEST_ID = 999


def split_4d_nifti(filename: str | os.PathLike, output_folder: str | os.PathLike) -> int:
    """Write every channel of a NIfTI file as a 3D file ``{name}_0000.nii.gz``, ``{name}_0001.nii.gz``, ...

    Args:
        filename: 4D with channels last, or 3D with one channel.
        output_folder: Must exist.

    Returns:
        Number of channels.

    Raises:
        ValueError: If the file has another number of dimensions, or is truncated.
    """
    path = Path(filename)
    check_nifti_is_complete(str(path))
    image = sitk.ReadImage(str(path))
    if image.GetDimension() not in (3, 4):
        raise ValueError(f"{path} has {image.GetDimension()} dimensions; expected 4 (the last of them channels), or 3.")
    name = path.name.removesuffix(FILE_ENDING)
    if image.GetDimension() == 3:
        copy_file(path, Path(output_folder) / f"{name}_0000{FILE_ENDING}")
        return 1
    channels = image.GetSize()[3]
    for channel in range(channels):
        with atomic_path(Path(output_folder) / f"{name}_{channel:04d}{FILE_ENDING}") as temporary:
            sitk.WriteImage(image[:, :, :, channel], str(temporary))
    return channels


def convert_msd_dataset(
    source_folder: str | os.PathLike, overwrite_target_id: int | None = None, num_processes: int = default_num_processes
) -> Path:
    """Write a dataset of the Medical Segmentation Decathlon into ``nnUNet_raw``; the source is not changed.

    Args:
        source_folder: ``TaskXX_Name`` with ``imagesTr``, ``labelsTr``, ``dataset.json`` and perhaps ``imagesTs``.
        overwrite_target_id: Number of the new dataset; None: that of the task.
        num_processes: Worker processes.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: If the folder is no such task, or its files do not belong together.
        FileNotFoundError: If files are missing.
        FileExistsError: If a dataset with the number exists.
    """
    source = Path(os.path.abspath(source_folder))
    number, name = _number_and_name(source)
    number = number if overwrite_target_id is None else overwrite_target_id
    if not 0 <= number <= LARGEST_ID:
        raise ValueError(f"A dataset cannot have the number {number}; expected 0 to {LARGEST_ID}.")
    taken = find_candidate_datasets(number)
    if taken:
        raise FileExistsError(
            f"The number {number} is taken by {', '.join(taken)} (in nnUNet_raw, nnUNet_preprocessed or nnUNet_results). "
            "Choose another one with -overwrite_id."
        )
    description = load_json(source / "dataset.json")
    training, test = (visible_files(source / folder, FILE_ENDING) for folder in ("imagesTr", "imagesTs"))
    labels = visible_files(source / "labelsTr", FILE_ENDING)
    _check_cases(source, training, labels)
    content = _new_dataset_json(description, source / "dataset.json", len(training))
    dataset_name = f"Dataset{number:03d}_{name}"
    with new_dataset_folder(dataset_name) as folder:
        for part in ("imagesTr", "labelsTr", *(["imagesTs"] if test else [])):
            (folder / part).mkdir()
        tasks = [(file, folder / file.parent.name, len(content["channel_names"])) for file in (*training, *test)]
        identifiers = [file.name.removesuffix(FILE_ENDING) for file in (*training, *test)]
        run_per_case(_split_case, tasks, identifiers=identifiers, num_processes=num_processes, description="splitting")
        for file in labels:
            copy_file(file, folder / "labelsTr" / file.name)
        save_json(content, folder / "dataset.json")
    return folder.with_name(dataset_name)


def _number_and_name(source: Path) -> tuple[int, str]:
    """The number and the name of a task, from its folder."""
    match = re.fullmatch(r"Task(\d{2})_(.+)", source.name)
    if match is None:
        hint = " Datasets of nnU-Net v1 (TaskXXX_Name) are converted by nnUNetv2_convert_old_nnUNet_dataset." * bool(
            re.fullmatch(r"Task\d{3}_.+", source.name)
        )
        raise ValueError(f"{source} is no task of the Medical Segmentation Decathlon; expected a folder TaskXX_Name.{hint}")
    missing = [part for part in (*FOLDERS_NEEDED, "dataset.json") if not (source / part).exists()]
    if missing:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}. Unpack the archive of the task again.")
    return int(match[1]), match[2]


def _check_cases(source: Path, training: Sequence[Path], labels: Sequence[Path]) -> None:
    """Raise unless every training image has a segmentation, and the images are not split already."""
    images, segmentations = ({file.name for file in files} for files in (training, labels))
    if not images:
        raise FileNotFoundError(f"{source / 'imagesTr'} holds no images *{FILE_ENDING}.")
    if images != segmentations:
        stems = {re.sub(rf"_\d{{4}}{re.escape(FILE_ENDING)}$", FILE_ENDING, name) for name in images}
        if stems == segmentations:
            raise ValueError(
                f"{source} holds one file for each channel already, as nnU-Net v1 writes them: nnUNetv2_convert_old_nnUNet_dataset converts it."
            )
        alone = sorted(images ^ segmentations)
        raise ValueError(f"{source}: images without segmentation, or the reverse: {', '.join(alone[:10])}{' ...' * (len(alone) > 10)}.")


def _new_dataset_json(description: dict[str, Any], file: Path, num_training: int) -> dict[str, Any]:
    """``dataset.json`` as nnU-Net v2 reads it; other entries are kept."""
    missing = [key for key in ("labels", "modality") if not isinstance(description.get(key), dict)]
    if missing:
        raise ValueError(f"{file} lacks {' and '.join(missing)}; expected the dataset.json of the Medical Segmentation Decathlon.")
    kept = {key: value for key, value in description.items() if key not in KEYS_LEFT_OUT}
    changed = {"labels": labels_by_name(description["labels"], file), "numTraining": num_training}
    return kept | changed | {"file_ending": FILE_ENDING, "channel_names": description["modality"]}


def _split_case(file: Path, folder: Path, expected_channels: int) -> None:
    """Split one file, and compare it with what ``dataset.json`` says."""
    channels = split_4d_nifti(file, folder)
    if channels != expected_channels:
        raise ValueError(f"{file} has {channels} channels, but dataset.json names {expected_channels} (modality).")


def entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_convert_MSD_dataset``, forwarded to `nnunetv2.cli`."""
    from nnunetv2.cli import convert_dataset

    convert_dataset.msd_entry(argv)
