"""Checkpoint files: written whole or not at all, and read without running code that somebody put into them.

A checkpoint is a dictionary of tensors, numbers, strings and containers of these, so that ``torch.load(weights_only=True)``
reads it. Checkpoints of stock nnU-Net hold numpy scalars besides, which are allowed too.
"""

from __future__ import annotations

import codecs
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2.utilities.file_io import atomic_path

# Curves in a checkpoint's ``logging`` that nnU-Net knows, by epoch.
SEGMENTATION_KEYS = (
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "train_losses",
    "val_losses",
    "lrs",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
)

# Pure descriptions of numbers. numpy 1 and 2 call their module differently; a file may come from either.
_ALLOWED_GLOBALS = [
    np.dtype,
    np.ndarray,
    codecs.encode,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDSU"},
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (np.float32(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
        for core in ("core", "_core")
    ),
]


class CheckpointError(RuntimeError):
    """A checkpoint file cannot be used."""


def save_checkpoint_file(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint, so that a crash leaves the previous file or the complete new one.

    Raises:
        TypeError: If it holds something that could not be read again, naming the entry.
    """
    content = tensors_only(checkpoint)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of this package or of stock nnU-Net.

    Args:
        path: The file.
        map_location: Device of the tensors, as for ``torch.load``.
        mmap: Whether tensors on the CPU stay in the file until they are used, for a look at the rest.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, would run code when read, or holds no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        with torch.serialization.safe_globals(_ALLOWED_GLOBALS):
            # Files from before torch 1.6 are no zip files and cannot be mapped.
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not _is_refusal(error):
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"Checkpoint {path} was refused: it holds more than weights, numbers and text, and reading such a file can run any code. "
            f"Found: {_found(error)}. If you trust its origin, open it with torch.load(..., weights_only=False) yourself "
            "and save it again without that object."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged zip file raises nearly anything: RuntimeError, EOFError, KeyError, ValueError
        if isinstance(error, RuntimeError) and "device" in str(error):
            raise
        raise _damaged(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint (a dictionary with network_weights).")
    return checkpoint


def tensors_only(value: Any, name: str = "checkpoint") -> Any:
    """A copy of nested containers in which numpy values are plain numbers and tensors. Tensors are not copied.

    Args:
        value: What to convert.
        name: What to call it in errors.

    Raises:
        TypeError: For an object that ``torch.load(weights_only=True)`` would refuse.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)) and not isinstance(value, np.generic):
        return _plain_number_or_text(value)
    if isinstance(value, (torch.Tensor, torch.device, torch.dtype, torch.Size)):
        return value
    if isinstance(value, np.generic):
        return _plain_number_or_text(value.item())
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).copy()) if value.dtype.kind in "biufc" else tensors_only(value.tolist(), name)
    if isinstance(value, Mapping):
        converted = ((tensors_only(key, name), tensors_only(entry, f"{name}[{key!r}]")) for key, entry in value.items())
        return OrderedDict(converted) if isinstance(value, OrderedDict) else dict(converted)
    if isinstance(value, (list, tuple)):
        converted = [tensors_only(entry, f"{name}[{i}]") for i, entry in enumerate(value)]
        return tuple(converted) if isinstance(value, tuple) else converted
    if isinstance(value, (set, frozenset)):
        return {tensors_only(entry, name) for entry in value}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint takes tensors, numbers, text and containers of these only.")


def _plain_number_or_text(value: Any) -> Any:
    """Subclasses such as enums and numpy strings become the built-in type."""
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    return value


def _is_refusal(error: pickle.UnpicklingError) -> bool:
    """Whether the restricted unpickler met a forbidden object, rather than bytes that make no sense."""
    text = str(error)
    return any(sign in text for sign in ("Unsupported global", "GLOBAL", "Unsupported class", "Can only", "Unsupported operand"))


def _found(error: pickle.UnpicklingError) -> str:
    """The sentence of torch's long message that names the forbidden object."""
    text = " ".join(str(error).split())
    for sign in ("Unsupported global:", "Unsupported class", "Trying to", "Can only"):
        if sign in text:
            return text[text.index(sign) :].split(". ")[0][:200]
    return text[:200]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that is no complete checkpoint."""
    reason = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".") or type(error).__name__
    return CheckpointError(
        f"Checkpoint {path} cannot be read ({path.stat().st_size} bytes; {reason}). It is damaged or incomplete, for example after a full disk "
        "or an interrupted copy. Copy it again, or use another checkpoint of the same folder."
    )
