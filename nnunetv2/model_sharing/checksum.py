"""SHA-256 of files that are passed on."""

from __future__ import annotations

import hashlib
import os
import re

_CHUNK_BYTES = 1024**2


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: str | os.PathLike, expected: str) -> None:
    """Raise ValueError unless a file has the SHA-256 that its author gave."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise ValueError(f"{expected!r} is no SHA-256; expected 64 hexadecimal digits.")
    found = sha256_of(path)
    if found != expected.lower():
        raise ValueError(
            f"{os.fspath(path)} is not the file that was meant: its SHA-256 is {found}, expected {expected.lower()}. "
            "It is damaged or another version; get it again from its author."
        )
