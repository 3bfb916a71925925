"""The root folders, as path-like objects that read their environment variable when used, never on import."""

from __future__ import annotations

import os
from pathlib import Path


class EnvironmentPath(os.PathLike):
    """A folder named by an environment variable; usable wherever a path is (``os.path.join``, ``open``, ``str``)."""

    def __init__(self, variable: str, purpose: str) -> None:
        self.variable = variable
        self.purpose = purpose

    def get(self) -> str | None:
        """The folder, or None when the variable is unset or empty."""
        return os.environ.get(self.variable) or None

    def is_set(self) -> bool:
        """Whether the variable names a folder."""
        return self.get() is not None

    def require(self) -> str:
        """The folder.

        Raises:
            RuntimeError: If the variable is unset; the message says how to set it.
        """
        value = self.get()
        if value is None:
            raise RuntimeError(
                f"The environment variable {self.variable} is not set. It names the folder with {self.purpose}. "
                f"Set it first, for example: export {self.variable}=/path/to/{self.variable}"
            )
        return value

    def __fspath__(self) -> str:
        return self.require()

    def __str__(self) -> str:
        return self.require()

    def __repr__(self) -> str:
        return f"EnvironmentPath({self.variable}={self.get()!r})"

    def __bool__(self) -> bool:
        return self.is_set()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EnvironmentPath):
            other = other.get()
        return self.get() == (os.fspath(other) if isinstance(other, os.PathLike) else other)

    def __hash__(self) -> int:
        return hash(self.variable)

    def __truediv__(self, other: str | os.PathLike) -> Path:
        return Path(self.require()) / other


nnUNet_raw = EnvironmentPath("nnUNet_raw", "the raw datasets")
nnUNet_preprocessed = EnvironmentPath("nnUNet_preprocessed", "preprocessed data")
nnUNet_results = EnvironmentPath("nnUNet_results", "trained models")
nnUNet_extTrainer = EnvironmentPath("nnUNet_extTrainer", "trainers of your own")
