"""Reading and writing of small files so that nobody ever sees half a file or runs code hidden in one.

Everything is written under a temporary name in the same folder and moved into place, so an interrupted program leaves the
old file or none. Pickles are read by an unpickler that knows plain containers, numbers and numpy arrays and nothing else.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nnunetv2.utilities.json_export import json_ready

TEMPORARY_PREFIX = ".tmp-"
# A full disk, a used up quota, the largest file that the system or the user's limits allow.
NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that write in blocks fail with messages of their own as soon as less than a block is left.
FULL_DISK_BYTES = 64 * 1024

# What may be named in a pickle that we read: nothing that does anything beyond holding data.
_ALLOWED_BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range", "set", "slice", "str", "tuple"}
)
_ALLOWED_NUMPY = {
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
}


class DiskFullError(OSError):
    """A file could not be written because there is no space for it."""

    def __str__(self) -> str:
        return (
            f"Cannot write {self.filename}: {self.strerror or 'no space left on device'}. Nothing of it was kept. "
            "Free some space, or choose a folder on another disk, and run the command again."
        )


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name to write to; on leaving the block it becomes `path`, after an error it is removed.

    The temporary file lies in the same folder and ends like `path`, because writers choose the format by the ending.

    Raises:
        FileNotFoundError: If the folder does not exist.
        DiskFullError: Naming `path`, in place of whatever the writer raised because the disk was full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: the folder {path.parent} does not exist.")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        number = _no_space_error(error, path.parent)  # before the removal makes room again
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)
        if number is not None and not isinstance(error, DiskFullError):
            raise DiskFullError(number, os.strerror(number).lower(), os.fspath(path)) from error
        raise


def remove_remains(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Remove what killed processes left half written of these files; nobody may be writing them any more."""
    names_by_folder: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        names_by_folder.setdefault(path.parent, set()).add(path.name)
    for folder, names in names_by_folder.items():
        for temporary in folder.glob(f"{TEMPORARY_PREFIX}*"):
            name = temporary.name
            while name.startswith(TEMPORARY_PREFIX):  # a temporary file may be written by way of another one
                *_, name = name.removeprefix(TEMPORARY_PREFIX).split("-", 2)  # process, random number, name
            if name in names:
                temporary.unlink(missing_ok=True)


def _no_space_error(error: BaseException, folder: Path) -> int | None:
    """The system's number of the error if writing into a folder failed for want of space, else None."""
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRORS:
        return error.errno
    if not isinstance(error, Exception) or not folder.is_dir():
        return None
    return errno.ENOSPC if shutil.disk_usage(folder).free < FULL_DISK_BYTES else None


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file; the target is never seen half written."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def load_json(path: str | os.PathLike[str]) -> Any:
    """Content of a JSON file; the bare tokens ``NaN`` and ``Infinity`` are read as well.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON; names the file and the place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"File {path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"File {path} is not UTF-8 text ({error}). Save it as UTF-8 or restore it.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = "it is empty" if not text.strip() else str(error)
        raise ValueError(f"File {path} is not valid JSON: {reason}. Correct or restore the file.") from error


def save_json(obj: Any, path: str | os.PathLike[str], *, sort_keys: bool = False, indent: int | None = 4) -> None:
    """Write JSON atomically. Numpy types are converted (`obj` is not changed); NaN stays the bare token, as nnU-Net writes it."""
    text = json.dumps(json_ready(obj), sort_keys=sort_keys, indent=indent)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _DataUnpickler(pickle.Unpickler):
    """Builds plain containers, numbers and numpy arrays; refuses every other name that is not among those that are known."""

    def __init__(self, file: IO[bytes], known_names: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._known_names = known_names

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self._known_names:
            return self._known_names[f"{module}.{name}"]
        allowed = (
            (module in ("builtins", "__builtin__") and name in _ALLOWED_BUILTINS)  # the second in protocols 0 to 2
            or name in _ALLOWED_NUMPY.get(module, ())
            or (module == "collections" and name == "OrderedDict")
            # protocols 0 to 2 write bytes as a call of codecs.encode, which only turns text into bytes
            or (module == "_codecs" and name == "encode")
            or self._is_numpy_scalar_type(module, name)
        )
        if not allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not plain data")
        return super().find_class(module, name)

    @staticmethod
    def _is_numpy_scalar_type(module: str, name: str) -> bool:
        """Scalar types such as ``numpy.float32``, and the dtype classes that newer numpy versions name."""
        import numpy as np

        if module == "numpy":
            attribute = getattr(np, name, None)
            return isinstance(attribute, type) and issubclass(attribute, np.generic) and attribute is not np.void
        return module == "numpy.dtypes" and name.isidentifier() and name.endswith("DType") and "Object" not in name


def restricted_pickle_load(path: str | os.PathLike[str], known_names: Mapping[str, Any] | None = None) -> Any:
    """Content of a pickle that holds plain data (containers, numbers, strings, numpy arrays).

    Args:
        path: The file.
        known_names: What else it may refer to, by ``module.name``; given here, so that reading imports nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file names anything that could run code, or is truncated; nothing of it has been executed then.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"File {path} does not exist.") from None
    try:
        return _DataUnpickler(io.BytesIO(content), known_names or {}).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"File {path} cannot be read as plain data: {error or type(error).__name__}. Expected containers, numbers, text and "
            "numpy arrays only. The file is damaged or not one of nnU-Net's; create it anew (for cases: preprocess again)."
        ) from error


def load_properties(path: str | os.PathLike[str]) -> dict:
    """Properties of a case as the preprocessing or the export stored them (``.pkl``)."""
    properties = restricted_pickle_load(path)
    if not isinstance(properties, dict):
        raise ValueError(
            f"File {path} holds a {type(properties).__name__}; expected the properties of a case, a dict. Create it anew by preprocessing."
        )
    return properties


def save_pickle(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write a pickle atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(obj, file, protocol=4)
