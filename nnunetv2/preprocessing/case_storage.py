"""The preprocessed case on disk: chunked, compressed arrays and a file of properties.

``{case}.b2nd`` float32 ``(C, X, Y, Z)``, ``{case}_seg.b2nd`` int16 ``(1, X, Y, Z)``, ``{case}.pkl`` plain data. Patches are read from the
arrays without unpacking the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunetv2.utilities.file_io import atomic_path

MAX_BLOCK_BYTES = 128 * 1024  # fits the second-level cache of a core
MAX_CHUNK_BYTES = 6 * 1024**2  # fits the share of the third-level cache that a core has
MAX_CHUNK_TO_PATCH_RATIO = 1.5  # larger chunks would be unpacked mostly for nothing
COMPRESSION_THREADS = 4

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


def write_array(array: np.ndarray, path: str | os.PathLike, blocks: Sequence[int] | None, chunks: Sequence[int] | None, **options: Any) -> None:
    """Write a compressed array atomically.

    Args:
        array: Any shape.
        path: File to make.
        blocks: Block shape, None: blosc2's choice.
        chunks: Chunk shape, None: blosc2's choice.
        options: ``codec``, ``clevel``, ``filters`` of nnU-Net's writer.
    """
    codec, clevel = options.get("codec", blosc2.Codec.LZ4HC), options.get("clevel", 5)
    filters = options.get("filters")
    if filters is None:
        filters = select_filter(array, blocks, chunks, codec, clevel)
    filters = list(filters) if isinstance(filters, (list, tuple)) else [filters]
    # one channel per chunk: blosc2 wants shapes of the array's rank that fit into it
    with atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=None if chunks is None else tuple(chunks),
            blocks=None if blocks is None else tuple(blocks),
            cparams={"codec": codec, "clevel": clevel, "filters": filters, "filters_meta": [0] * len(filters), "nthreads": COMPRESSION_THREADS},
            urlpath=str(temporary),
            mode="w",
            mmap_mode=None if os.name == "nt" else "w+",
        )


def select_filter(array: np.ndarray, blocks: Sequence[int] | None, chunks: Sequence[int] | None, codec: Any, clevel: int) -> blosc2.Filter:
    """The better of no filter and byte shuffling, by compressing the middle of the array both ways."""
    extent = array.shape if chunks is None else [min(c, n) for c, n in zip(chunks, array.shape, strict=True)]
    middle = tuple(slice((n - e) // 2, (n - e) // 2 + e) for n, e in zip(array.shape, extent, strict=True))
    sample = np.ascontiguousarray(array[middle])
    sizes = {}
    for candidate in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE):
        parameters = {"codec": codec, "clevel": clevel, "filters": [candidate], "filters_meta": [0], "nthreads": COMPRESSION_THREADS}
        fitting = None if blocks is None else tuple(min(b, n) for b, n in zip(blocks, sample.shape, strict=True))
        sizes[candidate] = blosc2.asarray(sample, chunks=sample.shape, blocks=fitting, cparams=parameters).schunk.cbytes
    return min(sizes, key=sizes.get)  # the first of equals: no filter


def open_array(path: str | os.PathLike) -> blosc2.NDArray:
    """Open an array for reading parts of it.

    Raises:
        FileNotFoundError, RuntimeError: Naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)} does not exist. Run nnUNetv2_preprocess again.")
    try:
        return blosc2.open(
            urlpath=str(path), mode="r", dparams={"nthreads": 1}, **({} if os.name == "nt" else {"mmap_mode": "r"})
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RuntimeError(f"{os.fspath(path)} cannot be read: {error}. It may be truncated; run nnUNetv2_preprocess again.") from error


def _power_of_two_from(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, math.ceil(math.log2(n))) if n > 1 else 1
