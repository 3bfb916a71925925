"""Work shared by threads of this process: of use where it leaves Python's lock alone, as numpy does in large arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MOST_THREADS = 8  # what holds Python's lock keeps more from being of use


def each_on_threads(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """What a function makes of items, in their order; with one item or one thread here, without starting any."""
    items = list(items)
    threads = min(threads, MOST_THREADS, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
