"""Forwards the commands of model sharing to `nnunetv2.cli`, imported on use."""

from __future__ import annotations

from collections.abc import Sequence


def print_license_warning() -> None:
    """Say that models have terms of their own."""
    from nnunetv2.cli import model_sharing

    print(model_sharing.LICENSE_NOTE)


def download_by_url(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_download_pretrained_model_by_url``."""
    from nnunetv2.cli import model_sharing

    model_sharing.download_entry(argv)


def install_from_zip_entry_point(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_install_pretrained_model_from_zip``."""
    from nnunetv2.cli import model_sharing

    model_sharing.install_entry(argv)


def export_pretrained_model_entry(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_export_model_to_zip``."""
    from nnunetv2.cli import model_sharing

    model_sharing.export_entry(argv)
