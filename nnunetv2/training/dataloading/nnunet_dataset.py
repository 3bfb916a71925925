"""Preprocessed cases as datasets: identifiers, and loading and saving of one case.

Nothing here imports torch. Arrays are opened lazily; the properties of a case, which hold all its class locations, are read
once and kept in a compact form.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from os.path import isfile, join
from typing import Any

import blosc2
import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.preprocessing.case_storage import (
    comp_blosc2_params,  # noqa: F401 - part of this module's public names
    open_array,
    select_filter,
    store_case,
    write_array,
)
from nnunetv2.training.dataloading.utils import unpack_dataset
from nnunetv2.utilities.file_io import atomic_path, load_properties, save_pickle

LoadedCase = tuple[Any, Any, Any, dict[str, Any]]

# Class locations kept in memory per dataset object, of which every loading process has one: about 500 cases of three classes.
# The cases that were not used for the longest time give way.
MAX_CACHED_BYTES = 128 * 1024**2
# Coordinates below this are kept as int16: adding a patch size to one must not overflow.
MAX_INT16_COORDINATE = 2**14


class nnUNetBaseDataset(ABC):
    """Cases of one preprocessed folder.

    Args:
        folder: Folder of one configuration.
        identifiers: Cases; None: all. Sorted in place.
        folder_with_segs_from_previous_stage: Segmentations of the stage before, in a cascade.
    """

    def __init__(self, folder: str, identifiers: list[str] | None = None, folder_with_segs_from_previous_stage: str | None = None) -> None:
        self.source_folder = folder
        self.folder_with_segs_from_previous_stage = folder_with_segs_from_previous_stage
        self.identifiers = self.get_identifiers(folder) if identifiers is None else identifiers
        self.identifiers.sort()
        self._cached_properties: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy sent to another process starts with an empty cache."""
        return self.__dict__ | {"_cached_properties": OrderedDict(), "_cached_bytes": 0}

    def __getitem__(self, identifier: str) -> LoadedCase:
        return self.load_case(identifier)

    @abstractmethod
    def load_case(self, identifier: str) -> LoadedCase:
        """``data (C, X, Y, Z), seg (1, X, Y, Z), segmentation of the previous stage or None, properties``."""

    @staticmethod
    @abstractmethod
    def save_case(data: np.ndarray, seg: np.ndarray, properties: dict, output_filename_truncated: str) -> None:
        """Write a case; the name has no ending."""

    @staticmethod
    @abstractmethod
    def get_identifiers(folder: str) -> list[str]:
        """Sorted identifiers of the whole cases in a folder."""

    @staticmethod
    def unpack_dataset(
        folder: str, overwrite_existing: bool = False, num_processes: int = default_num_processes, verify: bool = True
    ) -> None:
        """Make files that load faster, where the format needs it."""

    def load_properties(self, identifier: str) -> dict[str, Any]:
        """Properties of a case; read once, the file can be larger than a patch.

        Class locations are rows ``(0, x, y, z)`` of a small integer dtype and not to be changed; the dict is the caller's.
        """
        properties = self._cached_properties.get(identifier)
        if properties is None:
            properties = load_properties(join(self.source_folder, f"{identifier}.pkl"))
            locations = properties.get("class_locations")
            if locations is not None:
                properties["class_locations"] = {key: _compact(rows) for key, rows in locations.items()}
            self._cached_properties[identifier] = properties
            self._cached_bytes += _bytes_of_locations(properties)
            while self._cached_bytes > MAX_CACHED_BYTES and len(self._cached_properties) > 1:
                _, least_used = self._cached_properties.popitem(last=False)
                self._cached_bytes -= _bytes_of_locations(least_used)
        else:
            self._cached_properties.move_to_end(identifier)
        return dict(properties)


class nnUNetDatasetBlosc2(nnUNetBaseDataset):
    """Compressed, chunked arrays (``.b2nd``), the format since nnU-Net 2.6."""

    def load_case(self, identifier: str) -> LoadedCase:
        data = open_array(join(self.source_folder, f"{identifier}.b2nd"))
        seg = open_array(join(self.source_folder, f"{identifier}_seg.b2nd"))
        previous = None
        if self.folder_with_segs_from_previous_stage is not None:
            previous = open_array(join(self.folder_with_segs_from_previous_stage, f"{identifier}.b2nd"))
        return data, seg, previous, self.load_properties(identifier)

    @staticmethod
    def _select_filter(
        arr: np.ndarray, blocks: Sequence[int] | None, chunks: Sequence[int] | None, codec: blosc2.Codec, clevel: int
    ) -> blosc2.Filter:
        return select_filter(arr, blocks, chunks, codec, clevel)

    @staticmethod
    def save_case(
        data: np.ndarray,
        seg: np.ndarray,
        properties: dict,
        output_filename_truncated: str,
        chunks: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        chunks_seg: Sequence[int] | None = None,
        blocks_seg: Sequence[int] | None = None,
        clevel: int | None = None,
        codec: blosc2.Codec | None = None,
        filters: blosc2.Filter | Sequence[blosc2.Filter] | None = None,
        filters_seg: blosc2.Filter | Sequence[blosc2.Filter] | None = None,
    ) -> None:
        """Write a case; an older version of it stays until the new one is complete.

        Chunk and block shapes come from ``comp_blosc2_params``; those of the image are used for a segmentation without its own.
        ``codec`` and ``clevel``: see ``case_storage.write_array``.
        """
        blocks_seg, chunks_seg = blocks if blocks_seg is None else blocks_seg, chunks if chunks_seg is None else chunks_seg
        store_case(
            output_filename_truncated,
            data,
            seg,
            properties,
            (blocks, chunks),
            (blocks_seg, chunks_seg),
            filters,
            filters_seg,
            codec=codec,
            clevel=clevel,
        )

    @staticmethod
    def save_seg(
        seg: np.ndarray, output_filename_truncated: str, chunks_seg: Sequence[int] | None = None, blocks_seg: Sequence[int] | None = None
    ) -> None:
        """Write a segmentation for the next stage of a cascade."""
        write_array(seg, output_filename_truncated + ".b2nd", blocks_seg, chunks_seg)

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        names = _file_names(folder)
        return sorted(name[:-4] for name in names if name.endswith(".pkl") and name[:-4] + ".b2nd" in names)


class nnUNetDatasetNumpy(nnUNetBaseDataset):
    """``.npz`` files, unpacked to ``.npy`` before training: the format of nnU-Net 2.5 and older."""

    def load_case(self, identifier: str) -> LoadedCase:
        base = join(self.source_folder, identifier)
        data = np.load(base + ".npy", mmap_mode="r") if isfile(base + ".npy") else np.load(base + ".npz")["data"]
        seg = np.load(base + "_seg.npy", mmap_mode="r") if isfile(base + "_seg.npy") else np.load(base + ".npz")["seg"]
        previous = None
        if self.folder_with_segs_from_previous_stage is not None:
            previous_base = join(self.folder_with_segs_from_previous_stage, identifier)
            is_unpacked = isfile(previous_base + ".npy")
            previous = np.load(previous_base + ".npy", mmap_mode="r") if is_unpacked else np.load(previous_base + ".npz")["seg"]
        return data, seg, previous, self.load_properties(identifier)

    @staticmethod
    def save_case(data: np.ndarray, seg: np.ndarray, properties: dict, output_filename_truncated: str) -> None:
        with atomic_path(output_filename_truncated + ".npz") as temporary:
            np.savez_compressed(temporary, data=data, seg=seg)
        save_pickle(properties, output_filename_truncated + ".pkl")

    @staticmethod
    def save_seg(seg: np.ndarray, output_filename_truncated: str) -> None:
        """Write a segmentation for the next stage of a cascade."""
        with atomic_path(output_filename_truncated + ".npz") as temporary:
            np.savez_compressed(temporary, seg=seg)

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        return sorted(n[:-4] for n in _file_names(folder) if n.endswith(".npz"))

    @staticmethod
    def unpack_dataset(
        folder: str, overwrite_existing: bool = False, num_processes: int = default_num_processes, verify: bool = True
    ) -> None:
        unpack_dataset(folder, True, overwrite_existing, num_processes, verify)


file_ending_dataset_mapping = {"npz": nnUNetDatasetNumpy, "b2nd": nnUNetDatasetBlosc2}


def infer_dataset_class(folder: str) -> type[nnUNetDatasetBlosc2 | nnUNetDatasetNumpy]:
    """The dataset class of the files in a preprocessed folder.

    Raises:
        FileNotFoundError: If the folder is absent or holds no case.
        ValueError: If it holds both formats.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} does not exist. Preprocess this configuration first: nnUNetv2_preprocess.")
    endings = {name.rsplit(".", 1)[-1] for name in _file_names(folder)} & set(file_ending_dataset_mapping)
    if not endings:
        raise FileNotFoundError(
            f"{folder} holds no preprocessed case (.b2nd or .npz). Preprocess this configuration first: nnUNetv2_preprocess."
        )
    if len(endings) > 1:
        raise ValueError(f"{folder} holds both .npz and .b2nd files. Remove the folder and run nnUNetv2_preprocess again.")
    return file_ending_dataset_mapping[endings.pop()]


def _compact(rows: np.ndarray | Sequence[Any]) -> np.ndarray | Sequence[Any]:
    """Class locations in the smallest signed dtype that leaves room for arithmetic; files hold int64."""
    if len(rows) == 0:
        return rows
    rows = np.asarray(rows)
    return rows.astype(np.int16 if rows.max() < MAX_INT16_COORDINATE else np.int32)


def _bytes_of_locations(properties: dict[str, Any]) -> int:
    """Memory of the class locations of a case."""
    return sum(rows.nbytes for rows in (properties.get("class_locations") or {}).values() if isinstance(rows, np.ndarray))


def _file_names(folder: str) -> set[str]:
    """Names of the files in a folder, hidden and temporary ones left out."""
    return {entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")}
