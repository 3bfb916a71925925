"""Forwards the commands of fingerprint, planning and preprocessing to `nnunetv2.cli`, imported on use."""

from __future__ import annotations

from collections.abc import Sequence


def extract_fingerprint_entry(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_extract_fingerprint``."""
    from nnunetv2.cli import plan_and_preprocess

    plan_and_preprocess.extract_fingerprint_entry(argv)


def plan_experiment_entry(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_plan_experiment``."""
    from nnunetv2.cli import plan_and_preprocess

    plan_and_preprocess.plan_experiment_entry(argv)


def preprocess_entry(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_preprocess``."""
    from nnunetv2.cli import plan_and_preprocess

    plan_and_preprocess.preprocess_entry(argv)


def plan_and_preprocess_entry(argv: Sequence[str] | None = None) -> None:
    """``nnUNetv2_plan_and_preprocess``."""
    from nnunetv2.cli import plan_and_preprocess

    plan_and_preprocess.plan_and_preprocess_entry(argv)
