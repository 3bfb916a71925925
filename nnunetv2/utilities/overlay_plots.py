"""Forwards the names of `nnunetv2.report.overlay_plots`, imported on use: nnU-Net has them here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def __getattr__(name: str) -> Any:
    """``generate_overlay``, ``plot_overlay``, ``color_cycle`` and the others."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunetv2.report import overlay_plots

    return getattr(overlay_plots, name)


def entry_point_generate_overlay(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_plot_overlay_pngs``."""
    from nnunetv2.cli import plot_overlay_pngs

    plot_overlay_pngs.main(argv)
