"""Defects of NIfTI files that ITK hides: it fills truncated files with zeros and replaces NaN and infinity by zero."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nnunetv2.imageio.label_values import not_finite_message

HEADER_LENGTH = 544  # bytes that hold the header of NIfTI-1 (348) and of NIfTI-2 (540)
CHUNK = 1 << 16  # compressed bytes; zeros may become a thousand times as many
GZIP_FORMAT = 16 + zlib.MAX_WBITS
FLOATING_POINT = {16: "f4", 64: "f8"}  # codes of nifti1.h


def is_nifti(fname: str) -> bool:
    """Whether the name says that this is a single-file NIfTI image."""
    return os.fspath(fname).lower().endswith((".nii", ".nii.gz"))


def check_nifti_is_complete(fname: str) -> None:
    """Raise ValueError if a NIfTI file holds fewer voxels than its header announces.

    Costs almost nothing for intact files: a gzip file ends with the size of its content.
    """
    header = _read_header(fname)
    if header is None:
        return  # not a single-file NIfTI image in truth; whoever decodes it will judge
    if not _is_gzip(fname):
        found = os.path.getsize(fname)
    elif _size_in_gzip_trailer(fname) == header.file_size % 2**32:
        return
    else:  # truncated, or the trailer counts only the last of several gzip members
        found = _decompressed_size(fname, stop_at=header.file_size)
    if found < header.file_size:
        raise ValueError(f"the file is truncated: its header announces {header.file_size} bytes, but it holds {found}")


def check_stored_values_are_finite(fname: str, what: str = "image") -> None:
    """Raise ValueError if a NIfTI file stores NaN or infinite values, which ITK would read as zero.

    Files of whole numbers cost nothing. Others are decompressed once more, without keeping their content.
    """
    header = _read_header(fname)
    if header is None or header.voxel_type is None:
        return
    number_of_nan = number_of_infinite = 0
    for values in _stored_values(fname, header):
        # The sum is finite unless a value is not finite or the sum overflows; only then look at every value.
        with np.errstate(all="ignore"):
            if np.isfinite(values.sum(dtype=np.float64)):
                continue
        number_of_nan += int(np.isnan(values).sum())
        number_of_infinite += int(np.isinf(values).sum())
    if number_of_nan or number_of_infinite:
        raise ValueError(not_finite_message(os.path.basename(fname), what, number_of_nan, number_of_infinite))


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a NIfTI header says about the voxels."""

    offset: int  # of the first voxel, in bytes
    number_of_bytes: int  # of all voxels
    voxel_type: np.dtype | None  # of floating point voxels; None for other types

    @property
    def file_size(self) -> int:
        """Bytes of the complete file, uncompressed."""
        return self.offset + self.number_of_bytes


def _is_gzip(fname: str) -> bool:
    with open(fname, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read_header(fname: str) -> _Header | None:
    """The header (nifti1.h, nifti2.h), uncompressed if need be; None if there is none."""
    with gzip.open(fname) if _is_gzip(fname) else open(fname, "rb") as file:
        header = file.read(HEADER_LENGTH)
    for order in "<>":
        if len(header) >= 348 and struct.unpack_from(f"{order}i", header)[0] == 348 and header[344:347] == b"n+1":
            dimensions = struct.unpack_from(f"{order}8h", header, 40)
            code, bits_per_voxel = struct.unpack_from(f"{order}2h", header, 70)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
        elif len(header) >= 540 and struct.unpack_from(f"{order}i", header)[0] == 540 and header[4:7] == b"n+2":
            dimensions = struct.unpack_from(f"{order}8q", header, 16)
            code, bits_per_voxel = struct.unpack_from(f"{order}2h", header, 12)
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        number_of_voxels = math.prod(max(size, 1) for size in dimensions[1 : 1 + min(max(dimensions[0], 0), 7)])
        return _Header(
            offset=int(offset),
            number_of_bytes=number_of_voxels * bits_per_voxel // 8,
            voxel_type=np.dtype(order + FLOATING_POINT[code]) if code in FLOATING_POINT else None,
        )
    return None


def _stored_values(fname: str, header: _Header) -> Iterator[np.ndarray]:
    """The voxels of an uncompressed or compressed file as they are stored, piece by piece."""
    size = header.voxel_type.itemsize
    skipped, rest, seen = 0, b"", 0
    for piece in _content(fname):
        if skipped < header.offset:
            start = min(len(piece), header.offset - skipped)
            skipped += start
            piece = piece[start:]
        piece = rest + piece[: header.number_of_bytes - seen]
        seen += len(piece) - len(rest)
        whole = len(piece) // size * size
        rest = piece[whole:]
        yield np.frombuffer(piece, header.voxel_type, count=whole // size)
        if seen >= header.number_of_bytes:
            return


def _content(fname: str) -> Iterator[bytes]:
    """A file's uncompressed content; zlib alone is twice as fast as Python's gzip files."""
    is_compressed = _is_gzip(fname)
    with open(fname, "rb") as file:
        decompressor = zlib.decompressobj(GZIP_FORMAT)
        while piece := file.read(CHUNK):
            while is_compressed and piece:
                yield decompressor.decompress(piece)
                piece = decompressor.unused_data
                if decompressor.eof:  # another gzip member may follow
                    decompressor = zlib.decompressobj(GZIP_FORMAT)
            if piece:
                yield piece


def _size_in_gzip_trailer(fname: str) -> int:
    """Size of the uncompressed content modulo 2^32 (RFC 1952)."""
    with open(fname, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return struct.unpack("<I", file.read(4))[0]


def _decompressed_size(fname: str, stop_at: int) -> int:
    """How many bytes can be decompressed; counts no further than ``stop_at``."""
    size = 0
    try:
        for piece in _content(fname):
            size += len(piece)
            if size >= stop_at:
                break
    except zlib.error as error:
        raise ValueError(f"the file is damaged: its header announces {stop_at} bytes, about {size} can be read") from error
    return size
