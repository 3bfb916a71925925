"""Defects of NIfTI files that ITK hides: it fills truncated files with zeros and replaces NaN and infinity by zero."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import numpy as np

from nnunetv2.imageio.label_values import check_finite

HEADER_LENGTH = 544  # bytes that hold the header of NIfTI-1 (348) and of NIfTI-2 (540)
CHUNK = 1 << 20


def is_nifti(fname: str) -> bool:
    """Whether the name says that this is a single-file NIfTI image."""
    return os.fspath(fname).lower().endswith((".nii", ".nii.gz"))


def check_nifti_is_complete(fname: str) -> None:
    """Raise ValueError if a NIfTI file holds fewer voxels than its header announces.

    Costs almost nothing for intact files: a gzip file ends with the size of its content.
    """
    is_compressed = _is_gzip(fname)
    with gzip.open(fname) if is_compressed else open(fname, "rb") as file:
        expected = _announced_size(file.read(HEADER_LENGTH))
    if expected is None:
        return  # not a single-file NIfTI image in truth; whoever decodes it will judge
    if not is_compressed:
        found = os.path.getsize(fname)
    elif _size_in_gzip_trailer(fname) == expected % 2**32:
        return
    else:  # truncated, or the trailer counts only the last of several gzip members
        found = _decompressed_size(fname, stop_at=expected)
    if found < expected:
        raise ValueError(f"the file is truncated: its header announces {expected} bytes, but it holds {found}")


def check_stored_values_are_finite(fname: str, what: str) -> None:
    """Raise ValueError if a NIfTI file stores NaN or infinite values, which ITK would read as zero."""
    import nibabel

    try:
        image = nibabel.load(fname)
        values = np.asanyarray(image.dataobj) if np.issubdtype(image.get_data_dtype(), np.inexact) else None
    except Exception:
        return  # ITK reads some files that nibabel refuses
    if values is not None:
        check_finite(values[None], os.path.basename(fname), what)


def _is_gzip(fname: str) -> bool:
    with open(fname, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _announced_size(header: bytes) -> int | None:
    """Bytes of a complete file, uncompressed, by its header (nifti1.h, nifti2.h); None without a NIfTI header."""
    for order in "<>":
        if len(header) >= 348 and struct.unpack_from(f"{order}i", header)[0] == 348 and header[344:347] == b"n+1":
            dimensions = struct.unpack_from(f"{order}8h", header, 40)
            (bits_per_voxel,) = struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
        elif len(header) >= 540 and struct.unpack_from(f"{order}i", header)[0] == 540 and header[4:7] == b"n+2":
            dimensions = struct.unpack_from(f"{order}8q", header, 16)
            (bits_per_voxel,) = struct.unpack_from(f"{order}h", header, 14)
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        number_of_voxels = math.prod(max(size, 1) for size in dimensions[1 : 1 + min(max(dimensions[0], 0), 7)])
        return int(offset) + number_of_voxels * bits_per_voxel // 8
    return None


def _size_in_gzip_trailer(fname: str) -> int:
    """Size of the uncompressed content modulo 2^32 (RFC 1952)."""
    with open(fname, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return struct.unpack("<I", file.read(4))[0]


def _decompressed_size(fname: str, stop_at: int) -> int:
    """How many bytes can be decompressed; counts no further than ``stop_at``."""
    size = 0
    with gzip.open(fname) as file:
        try:
            while size < stop_at and (chunk := file.read1(CHUNK)):
                size += len(chunk)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"the file is truncated or damaged: its header announces {stop_at} bytes, about {size} can be read") from error
    return size
