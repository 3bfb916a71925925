"""The page about time and memory shows the figures that were kept, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import performance_page

    return performance_page


def test_a_ratio_is_that_of_the_medians(page: ModuleType) -> None:
    entry = {"row": "T7", "what": "training step", "figure": "time", "ours": [1.0, 2.0, 9.0], "reference": [4.0, 4.0, 5.0]}
    lines = page.table([entry]).splitlines()
    assert lines[2:] == ["| T7 | training step | time | 0.50 | 0.25 to 1.80 | 0.87 | 0.75 |"]


def test_the_page_holds_the_table_of_the_kept_figures(page: ModuleType) -> None:
    shown = page.PAGE.read_text().split(page.FIRST)[1].split(page.LAST)[0].strip()
    assert shown == page.table(page.kept())


def test_every_picture_of_the_page_is_there(page: ModuleType) -> None:
    pictures = re.findall(r"\]\(([^)]+\.png)\)", page.PAGE.read_text())
    assert pictures and all((page.PAGE.parent / picture).is_file() for picture in pictures)
