"""The folders nnU-Net works in, taken from environment variables when they are used, not when this module is imported.

``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results`` behave like paths: ``os.path.join(nnUNet_raw, name)``,
``nnUNet_raw / name`` and ``str(nnUNet_raw)`` all work, and raise a :class:`RuntimeError` with the remedy if the variable is
not set. A variable changed while the program runs counts from then on.
"""

from __future__ import annotations

import os
from pathlib import Path


class EnvironmentPath(os.PathLike):
    """A folder named by an environment variable; read anew at each use."""

    __hash__ = None  # equality follows the environment, so a hash could not stay constant

    def __init__(self, variable: str, purpose: str) -> None:
        self.env_var_name = variable
        self._purpose = purpose

    @property
    def missing_message(self) -> str:
        """What to tell a user who has not set the variable."""
        return (
            f"The environment variable {self.env_var_name} is not set. It names {self._purpose}. Set it, for example with "
            f"`export {self.env_var_name}=/path/to/{self.env_var_name}`, before running the command. "
            "The same line in the start-up file of your shell, such as ~/.bashrc, sets it for good."
        )

    def get(self) -> str | None:
        """The folder, or None where the variable is unset or empty."""
        return os.environ.get(self.env_var_name) or None

    def is_set(self) -> bool:
        """Whether the variable names a folder."""
        return self.get() is not None

    def require(self) -> str:
        """The folder; a RuntimeError with the remedy where the variable is unset."""
        folder = self.get()
        if folder is None:
            raise RuntimeError(self.missing_message)
        return folder

    def __fspath__(self) -> str:
        return self.require()

    def __str__(self) -> str:
        return self.require()

    def __repr__(self) -> str:
        return repr(self.get()) if self.is_set() else f"<unset {self.env_var_name}>"

    def __bool__(self) -> bool:
        return self.is_set()

    def __truediv__(self, other: str | os.PathLike[str]) -> Path:
        return Path(self.require()) / other

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EnvironmentPath):
            return self.get() == other.get()
        if other is None or isinstance(other, str):
            return self.get() == other
        if isinstance(other, os.PathLike):
            folder = self.get()
            return folder is not None and Path(folder) == Path(other)
        return NotImplemented


nnUNet_raw = EnvironmentPath("nnUNet_raw", "the folder with the raw datasets (DatasetXXX_Name)")
nnUNet_preprocessed = EnvironmentPath("nnUNet_preprocessed", "the folder for preprocessed datasets and plans, best on a fast disk")
nnUNet_results = EnvironmentPath("nnUNet_results", "the folder for trained models")
nnUNet_extTrainer = EnvironmentPath(
    "nnUNet_extTrainer", f"one or several folders (separated by {os.pathsep!r}) with trainer classes of your own"
)
