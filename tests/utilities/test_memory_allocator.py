"""Memory that was freed is used again instead of being asked for anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys
import numpy as np
from nnunetv2.utilities.memory_allocator import keep_freed_memory
if sys.argv[1] == "keep":
    if not keep_freed_memory():
        print(-1)
        sys.exit()
np.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PAGE_FAULTS, mode], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_blocks_that_were_freed_are_used_again() -> None:
    kept = page_faults("keep")
    if kept == -1:
        pytest.skip("not glibc")
    assert kept < page_faults("default") / 5
