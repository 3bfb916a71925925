"""Names are found without importing what does not define them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class


def write(folder: Path, **modules: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    return str(folder)


def find(folder: Path | str, name: str) -> object:
    return recursive_find_python_class(str(folder), name, None, cleanup_imports_from_base_folder=True)


def test_modules_that_do_not_bind_the_name_are_not_imported(tmp_path: Path) -> None:
    folder = write(tmp_path, a_trap=f"import os; os.mkdir({str(tmp_path / 'trace')!r})", b_wanted="class Wanted: value = 1")
    assert find(folder, "Wanted").value == 1
    assert not (tmp_path / "trace").exists()


def test_a_broken_module_elsewhere_does_not_end_the_search(tmp_path: Path) -> None:
    folder = write(tmp_path, a_broken="import does_not_exist\nclass Other: pass", b_syntax="class (", c_wanted="class Wanted: value = 2")
    assert find(folder, "Wanted").value == 2


def test_a_name_that_only_a_broken_module_defines_shows_its_error(tmp_path: Path) -> None:
    folder = write(tmp_path, broken="import does_not_exist\nclass Wanted: pass")
    with pytest.raises(ImportError, match=r"(?s)Wanted.*broken\.py.*does_not_exist"):
        find(folder, "Wanted")


def test_an_unknown_name_is_none(tmp_path: Path) -> None:
    assert find(write(tmp_path, a="class Other: pass"), "Wanted") is None


@pytest.mark.parametrize(
    "source",
    [
        "from json import loads as wanted",
        "def wanted(): pass",
        "wanted = 3",
        "if True:\n    from json import loads as wanted",
        "try:\n    import json as wanted\nexcept ImportError:\n    wanted = None",
        "from json import *\nfrom os.path import *\nglobals()['wanted'] = 1",
        "def __getattr__(name):\n    if name == 'wanted':\n        return 1\n    raise AttributeError(name)",
    ],
)
def test_every_way_to_bind_a_name_counts(tmp_path: Path, source: str) -> None:
    assert find(write(tmp_path, module_of_wanted=source), "wanted") is not None


def test_own_modules_come_before_subpackages_and_in_alphabetical_order(tmp_path: Path) -> None:
    write(tmp_path / "a_package", __init__="", module="class Wanted: value = 'package'")
    write(tmp_path, z="class Wanted: value = 'z'", b="class Wanted: value = 'b'")
    assert find(tmp_path, "Wanted").value == "b"
    (tmp_path / "b.py").unlink()
    (tmp_path / "z.py").unlink()
    assert find(tmp_path, "Wanted").value == "package"


def test_the_search_leaves_no_trace_in_the_import_system(tmp_path: Path) -> None:
    folder = write(tmp_path, module_only_for_this_test="class Wanted: pass")
    path = list(sys.path)
    find(folder, "Wanted")
    assert sys.path == path
    assert "module_only_for_this_test" not in sys.modules


def test_a_reader_of_the_package_is_found_without_importing_torch_or_training() -> None:
    import subprocess

    code = (
        "import sys, os, nnunetv2\n"
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find\n"
        "folder = os.path.join(os.path.dirname(nnunetv2.__file__), 'imageio')\n"
        "assert find(folder, 'SimpleITKIO', 'nnunetv2.imageio').__name__ == 'SimpleITKIO'\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
