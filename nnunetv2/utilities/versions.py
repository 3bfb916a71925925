"""Versions of this package and of others, for files that say what made them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "nnunetv2"


def package_version(name: str = PACKAGE) -> str:
    """The installed version; ``unknown`` where the package runs without being installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
