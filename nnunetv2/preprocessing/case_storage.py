"""The preprocessed case on disk: chunked, compressed arrays and a file of properties.

``{case}.b2nd`` float32 ``(C, X, Y, Z)``, ``{case}_seg.b2nd`` int16 ``(1, X, Y, Z)``, ``{case}.pkl`` plain data. Patches are read from the
arrays without unpacking the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.utilities.file_io import atomic_path, save_pickle

# Imported where it is used: the preprocessor of predictions imports this module and stores nothing.
if TYPE_CHECKING:
    import blosc2

MAX_BLOCK_BYTES = 128 * 1024  # fits the second-level cache of a core
MAX_CHUNK_BYTES = 6 * 1024**2  # fits the share of the third-level cache that a core has
MAX_CHUNK_TO_PATCH_RATIO = 1.5  # larger chunks would be unpacked mostly for nothing

# nnU-Net 2.8 writes LZ4HC level 5. On images LZ4 level 9 takes a tenth of its time, is read as fast and makes files 5 to
# 30 % larger. Label maps are tiny either way and LZ4HC halves them. Every file says how it is to be read.
IMAGE_COMPRESSION = ("LZ4", 9)  # names as in blosc2.Codec and blosc2.Filter
LABEL_COMPRESSION = ("LZ4HC", 5)
FILTER_CANDIDATES = ("NOFILTER", "SHUFFLE")
BLOCKS_OF_FILTER_SAMPLE = 2  # per axis; enough to tell the filters apart

Shape4D = tuple[int, int, int, int]


def comp_blosc2_params(
    image_size: Sequence[int],
    patch_size: Sequence[int],
    bytes_per_pixel: int = 4,
    max_block_nbytes: int = MAX_BLOCK_BYTES,
    max_chunk_nbytes: int = MAX_CHUNK_BYTES,
    max_chunk_to_patch_ratio_per_axis: float | None = MAX_CHUNK_TO_PATCH_RATIO,
    grow_singleton_patch_axes: bool = False,
) -> tuple[Shape4D, Shape4D]:
    """Block and chunk shape for an array from which patches are read.

    Args:
        image_size: ``(C, X, Y, Z)``.
        patch_size: Two or three sizes.
        bytes_per_pixel: Of the array's dtype.
        max_block_nbytes: Largest block, the unit of decompression.
        max_chunk_nbytes: Largest chunk, the unit of storage.
        max_chunk_to_patch_ratio_per_axis: Chunks reach at most this many patches; None: no limit.
        grow_singleton_patch_axes: Whether chunks may grow along axes on which the patch has one voxel.

    Returns:
        ``(block, chunk)``, each ``(1, X, Y, Z)``.
    """
    image = [int(n) for n in image_size[1:]]
    is_2d = len(patch_size) == 2
    patch = [1, *map(int, patch_size)] if is_2d else [int(n) for n in patch_size]
    ratio = math.inf if max_chunk_to_patch_ratio_per_axis is None else max_chunk_to_patch_ratio_per_axis
    target = [max(1, min(n, n if math.isinf(ratio) else math.floor(ratio * p))) for n, p in zip(image, patch, strict=True)]

    block = [min(_power_of_two_from(p), n) for p, n in zip(patch, image, strict=True)]
    while math.prod(block) * bytes_per_pixel > max_block_nbytes:
        shrinkable = [axis for axis in range(3) if block[axis] > 1]
        axis = max(shrinkable, key=lambda a: (block[a] / target[a], a))
        block[axis] = _power_of_two_from(block[axis]) // 2

    chunk = list(block)
    while True:
        candidates = []
        for axis in range(3):
            if (axis == 0 and is_2d) or (patch[axis] == 1 and not grow_singleton_patch_axes) or chunk[axis] >= target[axis]:
                continue
            grown = min(chunk[axis] + block[axis], image[axis], target[axis])
            if math.prod(chunk) // chunk[axis] * grown * bytes_per_pixel <= max_chunk_nbytes:
                candidates.append((chunk[axis] / target[axis], -image[axis], axis, grown))
        if not candidates:
            return (1, *block), (1, *chunk)
        _, _, axis, grown = min(candidates)
        chunk[axis] = grown


def write_array(
    array: np.ndarray,
    path: str | os.PathLike[str],
    blocks: Sequence[int] | None = None,
    chunks: Sequence[int] | None = None,
    *,
    codec: blosc2.Codec | None = None,
    clevel: int | None = None,
    filters: blosc2.Filter | Sequence[blosc2.Filter] | None = None,
) -> None:
    """Write a compressed array atomically, with one thread: cases are processed in parallel already.

    Args:
        array: Any shape and dtype.
        path: File to make.
        blocks: Block shape; None: blosc2's choice.
        chunks: Chunk shape; None: blosc2's choice.
        codec: None: ``IMAGE_COMPRESSION`` for floats, ``LABEL_COMPRESSION`` for integers.
        clevel: Compression level; None: the one that belongs to ``codec``.
        filters: None: whichever of ``FILTER_CANDIDATES`` compresses a sample best.
    """
    import blosc2

    usual_codec, usual_level = IMAGE_COMPRESSION if array.dtype.kind == "f" else LABEL_COMPRESSION
    codec = blosc2.Codec[usual_codec] if codec is None else codec
    clevel = usual_level if clevel is None else clevel
    if filters is None:
        filters = select_filter(array, blocks, chunks, codec, clevel)
    with atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=None if chunks is None else tuple(chunks),
            blocks=None if blocks is None else tuple(blocks),
            cparams=_compression_parameters(codec, clevel, filters),
            urlpath=str(temporary),
            mode="w",
        )


def store_case(
    path_truncated: str,
    data: np.ndarray,
    seg: np.ndarray,
    properties: Mapping[str, Any],
    layout: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    layout_seg: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    filters: Any = None,
    filters_seg: Any = None,
    **compression: Any,
) -> None:
    """Write the three files of a case. An older version of it stays until the new one is complete.

    The properties go first and come last, so that a case with properties is whole.

    Args:
        path_truncated: The files without their endings.
        data: Image ``(C, X, Y, Z)``.
        seg: Segmentation ``(1, X, Y, Z)``.
        properties: Plain data.
        layout: Block and chunk shape of the image.
        layout_seg: Block and chunk shape of the segmentation.
        filters: See :func:`write_array`.
        filters_seg: The same for the segmentation.
        compression: ``codec`` and ``clevel`` of :func:`write_array`.
    """
    with (
        atomic_path(path_truncated + ".pkl") as properties_file,
        atomic_path(path_truncated + "_seg.b2nd") as seg_file,
        atomic_path(path_truncated + ".b2nd") as data_file,
    ):
        write_array(data, data_file, *layout, filters=filters, **compression)
        write_array(seg, seg_file, *layout_seg, filters=filters_seg, **compression)
        save_pickle(properties, properties_file)
        remove_case(path_truncated)


def select_filter(
    array: np.ndarray, blocks: Sequence[int] | None, chunks: Sequence[int] | None, codec: blosc2.Codec, clevel: int
) -> blosc2.Filter:
    """The filter with which the middle of an array compresses best; no filter if both do equally well."""
    import blosc2

    candidates = [blosc2.Filter[name] for name in FILTER_CANDIDATES]
    if array.size == 0:
        return candidates[0]
    extent = array.shape if chunks is None else tuple(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
    if blocks is not None:
        extent = tuple(min(BLOCKS_OF_FILTER_SAMPLE * b, e) for b, e in zip(blocks, extent, strict=True))
        blocks = tuple(min(b, e) for b, e in zip(blocks, extent, strict=True))
    middle = tuple(slice((n - e) // 2, (n - e) // 2 + e) for n, e in zip(array.shape, extent, strict=True))
    sample = np.ascontiguousarray(array[middle])
    sizes = {}
    for candidate in candidates:
        compressed = blosc2.asarray(sample, chunks=extent, blocks=blocks, cparams=_compression_parameters(codec, clevel, candidate))
        sizes[candidate] = compressed.schunk.cbytes
    return min(sizes, key=sizes.__getitem__)


def _compression_parameters(codec: blosc2.Codec, clevel: int, filters: blosc2.Filter | Sequence[blosc2.Filter]) -> dict[str, Any]:
    """blosc2's ``cparams``."""
    filters = list(filters) if isinstance(filters, (list, tuple)) else [filters]
    return {"codec": codec, "clevel": clevel, "filters": filters, "filters_meta": [0] * len(filters), "nthreads": 1}


def open_array(path: str | os.PathLike[str]) -> blosc2.NDArray:
    """Open an array; only the parts that are indexed are read and unpacked.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is damaged.
    """
    import blosc2

    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist. Preprocess again: nnUNetv2_preprocess.")
    # Memory mapping is much faster on network drives; on Windows blosc2 cannot do it reliably.
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    try:
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapping)
    except (RuntimeError, ValueError, OSError) as error:
        raise RuntimeError(
            f"{os.fspath(path)} cannot be read ({error}). It may be cut off; preprocess again: nnUNetv2_preprocess."
        ) from error


def remove_case(path_truncated: str) -> None:
    """Remove the files of a stored case, the properties first; nothing happens if there are none."""
    for ending in (".pkl", "_seg.b2nd", ".b2nd"):
        Path(path_truncated + ending).unlink(missing_ok=True)


def _power_of_two_from(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()
