"""Unpacking of ``.npz`` cases, the format of nnU-Net 2.5 and older."""

from __future__ import annotations

import os
from os.path import isfile, join

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.scheduling import run_per_case
from nnunetv2.utilities.file_io import atomic_path

WRITING_ATTEMPTS = 3


def unpack_dataset(
    folder: str,
    unpack_segmentation: bool = True,
    overwrite_existing: bool = False,
    num_processes: int = default_num_processes,
    verify: bool = False,
) -> None:
    """Write ``{case}.npy`` and ``{case}_seg.npy``, which can be memory-mapped, beside every ``{case}.npz``.

    Args:
        folder: Preprocessed cases of nnU-Net 2.5 or older.
        unpack_segmentation: Whether to write ``{case}_seg.npy`` too.
        overwrite_existing: Whether to write files that exist already.
        num_processes: Worker processes.
        verify: Whether to open every file, old or new, and write it again if that fails.
    """
    cases = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".npz") and not name.startswith("."))
    tasks = [(join(folder, case), unpack_segmentation, overwrite_existing, verify) for case in cases]
    run_per_case(_unpack_case, tasks, identifiers=cases, num_processes=num_processes, description="unpacking")


def _unpack_case(base: str, unpack_segmentation: bool, overwrite_existing: bool, verify: bool) -> None:
    """Unpack one case; with ``verify``, a file that does not open afterwards is written again."""
    wanted = {"data": base + ".npy"} | ({"seg": base + "_seg.npy"} if unpack_segmentation else {})
    missing = {key: path for key, path in wanted.items() if overwrite_existing or not isfile(path) or (verify and not _opens(path))}
    if not missing:
        return
    with np.load(base + ".npz") as arrays:
        for key, path in missing.items():
            for _ in range(WRITING_ATTEMPTS):
                with atomic_path(path) as temporary:
                    np.save(temporary, arrays[key])
                if not verify or _opens(path):
                    break
            else:
                raise RuntimeError(f"{path} cannot be read after writing it {WRITING_ATTEMPTS} times. Is the disk full or failing?")


def _opens(path: str) -> bool:
    """Whether an array file is whole."""
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        return False
    return True
