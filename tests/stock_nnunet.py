"""Stock nnU-Net 2.8.1, a program that is run and nothing more, where ``NNUNET_REFERENCE`` names the Python of an environment that has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest


def reference_commands() -> Path:
    """Folder of its commands; skips the test where there is none."""
    python = os.environ.get("NNUNET_REFERENCE")
    if not python or not Path(python).is_file():
        pytest.skip("NNUNET_REFERENCE names no Python of an environment with nnunetv2==2.8.1")
    return Path(python).absolute().parent


_IS_INSTALLED = "import sys, nnunetv2\nassert nnunetv2.__file__.startswith(sys.prefix), nnunetv2.__file__\n"


def run_reference(*command: Any, **variables: Path) -> str:
    """What a command prints; it must succeed. Keyword arguments are environment variables.

    It does not run in the repository, where Python would import the package that lies there.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "nnUNet_compile": "f", **{name: str(folder) for name, folder in variables.items()}}
    done = subprocess.run([str(part) for part in command], env=environment, cwd="/", check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_reference_program(reference: Path, program: str, *arguments: Any, **variables: Path) -> str:
    """What a program of its Python prints; `reference` is the folder of :func:`reference_commands`."""
    return run_reference(reference / "python", "-c", _IS_INSTALLED + program, *arguments, **variables)


def files_of(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
