"""Rules that hold in every module, and that a reader of one module would not notice to be broken."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nnunetv2

PACKAGE = Path(nnunetv2.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"
OLDEST = Path(__file__).parent / "oldest-requirements.txt"

# Import names of requirements that have another name on PyPI.
IMPORT_NAMES = {"scikit-learn": "sklearn", "scikit-image": "skimage", "pillow": "PIL"}
# What trainers, loggers, a picture of the network and --scheduler import where they are asked for.
OPTIONAL = {"wandb", "tensorboard", "adan_pytorch", "hiddenlayer", "distributed"}
# A worker process has nobody to raise to: what ends it is sent to the training, which raises it.
PASSES_ERRORS_ON = "training/dataloading/batch_stream.py"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package, by its path below the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_handler_swallows_an_interrupt() -> None:
    found = []
    for file, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            catches_everything = node.type is None or "BaseException" in ast.unparse(node.type)
            raises_again = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if catches_everything and not raises_again and file != PASSES_ERRORS_ON:
                found.append(f"nnunetv2/{file}:{node.lineno}")
    assert not found


def test_what_a_user_can_get_wrong_is_no_assertion() -> None:
    """``python -O`` leaves assertions out. What is left of them tells type checkers that a value is there."""
    found = [
        f"nnunetv2/{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and not ast.unparse(node.test).endswith(" is not None")
    ]
    assert not found


def test_importing_a_module_sets_nothing() -> None:
    """Neither threads nor the backend of matplotlib, nor anything else that other code in the process would notice."""
    found = [
        f"nnunetv2/{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in modules()
        for node in tree.body
        if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or (isinstance(node, ast.Assign) and any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets))
    ]
    assert not found


def test_the_requirements_are_what_is_imported() -> None:
    section = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    names = re.findall(r'^\s*"([\w-]+)', section, re.MULTILINE)
    required = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    imported = set()
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    assert required <= imported, f"required for nothing: {sorted(required - imported)}"
    assert "distutils" not in imported  # gone since Python 3.12, though a list of standard modules may still have it
    others = imported - required - OPTIONAL - set(sys.stdlib_module_names) - {"nnunetv2"}
    assert not others, f"imported, but not required: {sorted(others)}"


def test_the_oldest_versions_are_those_that_are_admitted() -> None:
    """So that what is tested with ``oldest-requirements.txt`` is what ``pyproject.toml`` promises."""
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", OLDEST.read_text(encoding="utf-8"), re.MULTILINE))
    bounds = dict(re.findall(r'^\s*(?:test = \[)?"([\w-]+)>=([\d.]+)', PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {"torch", "numpy", "pytest"} <= set(bounds)
    bounds.pop("setuptools", None)
    for name, bound in bounds.items():
        assert re.fullmatch(re.escape(bound) + r"(\.0)*", pinned[name]), f"{name}: {bound} is admitted, {pinned[name]} pinned"


def test_no_cache_keeps_objects_alive() -> None:
    """``lru_cache`` on a method or property holds every object that it was called on; ``cached_property`` goes with its object."""
    found = [
        f"nnunetv2/{file}:{node.lineno}: {node.name}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.args.args
        and node.args.args[0].arg == "self"
        and any(re.search(r"\b(lru_cache|cache)\b", ast.unparse(decorator)) for decorator in node.decorator_list)
    ]
    assert not found


def test_devices_are_compared_by_their_type() -> None:
    """A ``torch.device`` never equals a string in older versions of torch, and ``mps:0`` is no ``mps``."""
    found = [
        f"nnunetv2/{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "device"
        and isinstance(node.comparators[0], ast.Constant)
        and isinstance(node.comparators[0].value, str)
    ]
    assert not found
