"""Code run by an interpreter that has imported nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence


def loaded_by(code: str, modules: Sequence[str]) -> list[str]:
    """Those of some modules that are loaded after code has run."""
    program = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {list(modules)!r} if name in sys.modules]))"
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])
