"""What the documentation says about nnU-Net's faults is held in place by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "documentation" / "differences-from-nnunet.md"


def rows_of_faults() -> list[list[str]]:
    """Cells of every row below "Known faults"."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Known faults", 1)[1]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("fault of 2.8.1", "---")]


def test_every_fault_says_what_became_of_it_and_names_its_tests() -> None:
    rows = rows_of_faults()
    assert len(rows) > 70
    assert not [row[0] for row in rows if len(row) != 3 or not row[1].startswith(("mended", "kept"))]
    assert not [row[0] for row in rows if not re.fullmatch(r"`test_\w+`(, `test_\w+`)*", row[2])]


def test_the_named_tests_exist() -> None:
    defined = set()
    for path in TESTS.rglob("test_*.py"):
        defined.update(re.findall(r"^ *def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for row in rows_of_faults() for name in re.findall(r"test_\w+", row[2])}
    assert not named - defined
