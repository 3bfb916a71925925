"""Numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NAMES_SHOWN = 5


def count(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def some(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    names = [str(name) for name in names]
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def and_list(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def numbered(noun: str, names: Sequence[str]) -> str:
    """``fold 1``, ``folds 1, 2``."""
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def was(number: int) -> str:
    """``was`` or ``were``."""
    return "was" if number == 1 else "were"


def has(number: int) -> str:
    """``has`` or ``have``."""
    return "has" if number == 1 else "have"
