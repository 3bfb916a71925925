"""Classes and functions by the bare name that plans, checkpoints and options give."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def temporarily_extend_syspath(path: str) -> Iterator[None]:
    """Put a folder at the front of the import path for a while."""
    sys.path.insert(0, path)
    try:
        yield
    finally:
        if path in sys.path:
            sys.path.remove(path)


@contextmanager
def temporarily_cleanup_imports_from_path(path: str) -> Iterator[None]:
    """Forget, afterwards, modules that were newly imported from a folder."""
    before = set(sys.modules)
    root = os.path.abspath(path) + os.sep
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and os.path.abspath(file).startswith(root):
                del sys.modules[name]


def recursive_find_python_class(
    folder: str,
    class_name: str,
    current_module: str | None,
    base_folder: str | None = None,
    verbose: bool = False,
    cleanup_imports_from_base_folder: bool = False,
) -> Any:
    """The object of a name in the modules of a folder: first its own modules in alphabetical order, then its subpackages.

    Only modules whose source binds the name are imported. One that fails to import does not end the search; if the name
    is found nowhere else, its error is raised.

    Args:
        folder: Folder to search.
        class_name: Name to find; classes and functions alike.
        current_module: Dotted name of ``folder``; None where it is no package.
        base_folder: Folder to import from; ``folder`` if None.
        verbose: Say which modules are looked at.
        cleanup_imports_from_base_folder: Forget modules imported from there.

    Returns:
        The object, or None.

    Raises:
        ImportError: If modules bind the name, but none of them can be imported.
    """
    folder = os.fspath(folder)
    base_folder = folder if base_folder is None else os.fspath(base_folder)
    failures: list[tuple[str, Exception]] = []
    with ExitStack() as stack:
        stack.enter_context(temporarily_extend_syspath(base_folder))
        if cleanup_imports_from_base_folder:
            stack.enter_context(temporarily_cleanup_imports_from_path(base_folder))
        found = _find(folder, class_name, current_module, verbose, failures)
    if found is None and failures:
        reasons = "\n".join(f"  {module}: {type(error).__name__}: {error}" for module, error in failures)
        raise ImportError(
            f"{class_name} could not be loaded, these modules fail to import:\n{reasons}\nCorrect them, or install what they need."
        ) from failures[0][1]
    return found


def _find(folder: str, class_name: str, current_module: str | None, verbose: bool, failures: list[tuple[str, Exception]]) -> Any:
    """Search one folder, then its subpackages; modules that fail to import are added to `failures`."""
    modules = list(pkgutil.iter_modules([folder]))
    prefix = f"{current_module}." if current_module else ""
    for module in modules:
        if module.ispkg or not _binds_name(os.path.join(folder, f"{module.name}.py"), class_name):
            continue
        if verbose:
            print(f"Looking for {class_name} in {prefix}{module.name}")
        try:
            imported = importlib.import_module(prefix + module.name)
        except Exception as error:  # a broken file of somebody's must not hide all others
            failures.append((os.path.join(folder, f"{module.name}.py"), error))
            continue
        if hasattr(imported, class_name):
            return getattr(imported, class_name)
    for module in modules:
        if module.ispkg:
            found = _find(os.path.join(folder, module.name), class_name, prefix + module.name, verbose, failures)
            if found is not None:
                return found
    return None


def _binds_name(path: str, name: str) -> bool:
    """Whether a module's top level may define or import a name; True for files that cannot be read as source."""
    try:
        return name in _bound_names(path, os.stat(path).st_mtime_ns)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return True  # compiled, or damaged in a way that importing it will tell


@lru_cache(maxsize=1024)
def _bound_names(path: str, modified: int) -> frozenset[str] | _Everything:
    """Names that the statements outside of functions bind."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == "__getattr__":  # the module makes names when asked for them
                return _Everything()
            names.add(node.name)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if any(alias.name == "*" for alias in node.names):
                return _Everything()
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    return frozenset(names)


class _Everything:
    """A set that contains every name: what ``import *`` may bind."""

    def __contains__(self, name: object) -> bool:
        return True
