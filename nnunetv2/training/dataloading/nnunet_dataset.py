"""Preprocessed cases as datasets: identifiers, and loading and saving of one case."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from os.path import isfile, join
from typing import Any

import blosc2
import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.preprocessing.case_storage import comp_blosc2_params as comp_blosc2_params  # part of this module's public names
from nnunetv2.preprocessing.case_storage import open_array, select_filter, write_array
from nnunetv2.training.dataloading.utils import unpack_dataset
from nnunetv2.utilities.file_io import atomic_path, restricted_pickle_load, save_pickle

LoadedCase = tuple[Any, Any, Any, dict[str, Any]]


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
        self._properties: dict[str, dict[str, Any]] = {}

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
        """Sorted identifiers of the cases in a folder."""

    @staticmethod
    def unpack_dataset(
        folder: str, overwrite_existing: bool = False, num_processes: int = default_num_processes, verify: bool = True
    ) -> None:
        """Make files that load faster, where the format needs it."""

    def load_properties(self, identifier: str) -> dict[str, Any]:
        """Properties of a case, read once: the file holds every class location and can be larger than a patch."""
        if identifier not in self._properties:
            properties = restricted_pickle_load(join(self.source_folder, f"{identifier}.pkl"))
            locations = properties.get("class_locations") or {}
            # coordinates fit in 32 bits, half of what the file holds
            properties["class_locations"] = {k: np.asarray(v, dtype=np.int32) if len(v) else v for k, v in locations.items()}
            self._properties[identifier] = properties
        return dict(self._properties[identifier])


class nnUNetDatasetBlosc2(nnUNetBaseDataset):
    """Compressed, chunked arrays (``.b2nd``), the format since nnU-Net 2.6."""

    def __init__(self, folder: str, identifiers: list[str] | None = None, folder_with_segs_from_previous_stage: str | None = None) -> None:
        super().__init__(folder, identifiers, folder_with_segs_from_previous_stage)
        blosc2.set_nthreads(1)  # patches are read by several processes already

    def load_case(self, identifier: str) -> LoadedCase:
        data = open_array(join(self.source_folder, f"{identifier}.b2nd"))
        seg = open_array(join(self.source_folder, f"{identifier}_seg.b2nd"))
        previous = None
        if self.folder_with_segs_from_previous_stage is not None:
            previous = open_array(join(self.folder_with_segs_from_previous_stage, f"{identifier}.b2nd"))
        return data, seg, previous, self.load_properties(identifier)

    @staticmethod
    def _select_filter(arr: np.ndarray, blocks: Sequence[int] | None, chunks: Sequence[int] | None, codec: Any, clevel: int) -> blosc2.Filter:
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
        clevel: int = 5,
        codec: Any = blosc2.Codec.LZ4HC,
        filters: Any = None,
        filters_seg: Any = None,
    ) -> None:
        """Write a case; the properties last, so that a case with properties is complete."""
        write_array(data, output_filename_truncated + ".b2nd", blocks, chunks, codec=codec, clevel=clevel, filters=filters)
        write_array(
            seg, output_filename_truncated + "_seg.b2nd", blocks_seg or blocks, chunks_seg or chunks, codec=codec, clevel=clevel, filters=filters_seg
        )
        save_pickle(properties, output_filename_truncated + ".pkl")

    @staticmethod
    def save_seg(
        seg: np.ndarray, output_filename_truncated: str, chunks_seg: Sequence[int] | None = None, blocks_seg: Sequence[int] | None = None
    ) -> None:
        """Write a segmentation for the next stage of a cascade."""
        write_array(seg, output_filename_truncated + ".b2nd", blocks_seg, chunks_seg)

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        names = _file_names(folder)
        return sorted(n[:-5] for n in names if n.endswith(".b2nd") and not (n.endswith("_seg.b2nd") and n[:-9] + ".b2nd" in names))


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


def infer_dataset_class(folder: str) -> type[nnUNetDatasetBlosc2] | type[nnUNetDatasetNumpy]:
    """The dataset class of the files in a preprocessed folder.

    Raises:
        FileNotFoundError: If the folder is absent or holds no case.
        ValueError: If it holds both formats.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} does not exist. Preprocess this configuration first: nnUNetv2_preprocess.")
    endings = {name.rsplit(".", 1)[-1] for name in _file_names(folder)} & set(file_ending_dataset_mapping)
    if not endings:
        raise FileNotFoundError(f"{folder} holds no preprocessed case (.b2nd or .npz). Preprocess this configuration first: nnUNetv2_preprocess.")
    if len(endings) > 1:
        raise ValueError(f"{folder} holds both .npz and .b2nd files. Remove the folder and run nnUNetv2_preprocess again.")
    return file_ending_dataset_mapping[endings.pop()]


def _file_names(folder: str) -> set[str]:
    """Names of the files in a folder, hidden and temporary ones left out."""
    return {entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")}
