"""Raw datasets of nnU-Net v1, ``TaskXXX_Name``: the files stay as they are, ``dataset.json`` is written anew."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.dataset_conversion.new_dataset import labels_by_name, new_dataset_folder, visible_files
from nnunetv2.utilities.file_io import load_json, save_json

FILE_ENDING = ".nii.gz"
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesVal", "labelsVal")
FOLDERS_NEEDED = FOLDERS[:2]
KEYS_LEFT_OUT = ("tensorImageSize", "numTest", "training", "test", "modality")


def convert(source_folder: str | os.PathLike, target_dataset_name: str) -> Path:
    """Copy a raw dataset of nnU-Net v1 into ``nnUNet_raw``; the source is not changed.

    Args:
        source_folder: ``TaskXXX_Name`` with ``imagesTr``, ``labelsTr`` and ``dataset.json``.
        target_dataset_name: ``DatasetXXX_Name``.

    Returns:
        The folder of the dataset.

    Raises:
        FileNotFoundError: If the source lacks a folder or file.
        FileExistsError: If the dataset exists.
        ValueError: If the name is none of a dataset, or the source is of another format.
    """
    source = Path(source_folder)
    missing = [part for part in (*FOLDERS_NEEDED, "dataset.json") if not (source / part).exists()]
    if missing:
        raise FileNotFoundError(
            f"{source} is no raw dataset of nnU-Net v1: it lacks {', '.join(missing)}. Give the path of a folder TaskXXX_Name."
        )
    file = source / "dataset.json"
    content = load_json(file)
    absent = [key for key in ("labels", "modality") if not isinstance(content.get(key), dict)]
    if absent:
        raise ValueError(f"{file} lacks {' and '.join(absent)}; expected the dataset.json of nnU-Net v1.")
    images = [image.name for image in visible_files(source / "imagesTr", FILE_ENDING)]
    unnumbered = [name for name in images if not re.search(rf"_\d{{4}}{re.escape(FILE_ENDING)}$", name)]
    if unnumbered or not images:
        raise ValueError(
            f"{source / 'imagesTr'}: expected images CASE_0000{FILE_ENDING}, found {', '.join(unnumbered[:5]) or 'none'}. Tasks of the Medical "
            "Segmentation Decathlon as they are distributed are converted by nnUNetv2_convert_MSD_dataset."
        )
    kept = {key: value for key, value in content.items() if key not in KEYS_LEFT_OUT}
    changed = {"labels": labels_by_name(content["labels"], file), "numTraining": len(visible_files(source / "labelsTr", FILE_ENDING))}
    with new_dataset_folder(target_dataset_name) as folder:
        for part in FOLDERS:
            if (source / part).is_dir():
                shutil.copytree(source / part, folder / part, ignore=shutil.ignore_patterns(".*"))
        save_json(kept | changed | {"channel_names": content["modality"], "file_ending": FILE_ENDING}, folder / "dataset.json")
    return folder.with_name(target_dataset_name)


def convert_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_convert_old_nnUNet_dataset``, forwarded to `nnunetv2.cli`."""
    from nnunetv2.cli import convert_dataset

    convert_dataset.old_entry(argv)
