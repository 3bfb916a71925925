"""Files that are whole or absent, and pickles that hold data only."""

from __future__ import annotations

import io
import json
import os
import pickle
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.utilities.json_export import json_ready

# What properties files hold: containers and numpy arrays. Everything else is refused unread.
_ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("builtins", "complex"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "slice"),
    ("builtins", "range"),
    ("builtins", "bytearray"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("_core", "core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("_core", "core")),
}


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same ending; it takes the place of ``path`` if the block succeeds.

    A reader never sees half a file, and a full disk leaves an older file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_json(path: str | os.PathLike) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError, ValueError: Naming the file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON: {error}. Correct the file or make it again.") from error


def save_json(obj: Any, path: str | os.PathLike, *, sort_keys: bool = False, indent: int = 4) -> None:
    """Write JSON atomically; numpy values become plain ones, NaN the bare token that nnU-Net writes and reads."""
    text = json.dumps(json_ready(obj), sort_keys=sort_keys, indent=indent)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_pickle(obj: Any, path: str | os.PathLike) -> None:
    """Write plain data atomically in nnU-Net's properties format."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(obj, file, protocol=4)


def restricted_pickle_load(path: str | os.PathLike) -> Any:
    """Content of a pickle of containers, numbers, strings and numpy arrays.

    Raises:
        ValueError: If the file names anything else (it could execute code) or is damaged; nothing was executed.
    """
    content = Path(path).read_bytes()
    try:
        return _DataUnpickler(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as plain data: {error}. Preprocess or predict the case again.") from error


load_properties = restricted_pickle_load


class _DataUnpickler(pickle.Unpickler):
    """Finds only the classes of plain data."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED_GLOBALS or (module == "numpy" and name in _numpy_scalar_names()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which plain data does not need")


def _numpy_scalar_names() -> frozenset[str]:
    """Names of numpy's scalar types, such as ``float32``."""
    import numpy as np

    return frozenset(t.__name__ for t in np.sctypeDict.values())
