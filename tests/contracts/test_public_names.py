"""Names of nnU-Net 2.8.1 that other people's code imports: each is here with a compatible signature, or is listed as a difference.

``public_names.txt`` holds module names and, indented, ``name(parameters)``: a parameter that may be left out ends with ``=``. It was
written by asking an installed nnunetv2 2.8.1 for the signatures of its names (``inspect.signature``).
"""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TABLE = Path(__file__).with_name("public_names.txt")
DIFFERENCES = Path(__file__).parents[2] / "documentation" / "differences-from-nnunet.md"


class PublicName(NamedTuple):
    """One line of the table."""

    module: str
    name: str  # Class.member for members
    parameters: tuple[str, ...] | None  # None for what is not called
    kind: str  # "", "static" or "property"


def read_table(text: str) -> list[PublicName]:
    entries, module = [], ""
    for line in text.splitlines():
        if not line.startswith(" "):
            module = line.strip()
            continue
        name, listed, kind = re.fullmatch(r"\s+([\w.]+)(\(.*\))?(?: \[(\w+)\])?", line).groups()
        parameters = None if listed is None else tuple(part for part in listed[1:-1].split(", ") if part)
        entries.append(PublicName(module, name, parameters, kind or ""))
    return entries


def problem_of(entry: PublicName) -> str | None:
    """Why code that uses a name would fail here; None if it would not."""
    try:
        owner = importlib.import_module(entry.module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    *classes, last = entry.name.split(".")
    for part in classes:
        owner = getattr(owner, part, None)
    if not hasattr(owner, last):
        return "is missing"
    static = inspect.getattr_static(owner, last, None)  # None for what a module makes when asked
    if entry.kind == "property":
        return "is a method, not a property" if inspect.isfunction(static) else None
    if entry.kind == "static" and not isinstance(static, staticmethod):
        return "needs an instance"
    if entry.parameters is None:
        return None
    needs_self = bool(classes) and not isinstance(static, staticmethod)
    return difference_of_parameters(entry.parameters, list(inspect.signature(getattr(owner, last)).parameters.values())[needs_self:])


def difference_of_parameters(theirs: tuple[str, ...], ours: list[inspect.Parameter]) -> str | None:
    """Which call that suits their parameters does not suit ours."""
    positional = [parameter for parameter in ours if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    takes_any = {parameter.kind for parameter in ours}
    names = [name.rstrip("=") for name in theirs if not name.startswith("*")]
    stars = [index for index, name in enumerate(theirs) if name.startswith("*") and not name.startswith("**")]
    by_position = names[: stars[0]] if stars else names
    missing = [name for name in names[len(by_position) :] if name not in {parameter.name for parameter in ours}]
    if missing and inspect.Parameter.VAR_KEYWORD not in takes_any:
        return f"has no parameter {missing[0]}"
    for index, name in enumerate(by_position):
        if index >= len(positional):
            if inspect.Parameter.VAR_POSITIONAL in takes_any and inspect.Parameter.VAR_KEYWORD in takes_any:
                break
            return f"has no parameter {name}"
        if positional[index].name != name:
            return f"parameter {index + 1} is {positional[index].name}, not {name}"
        if f"{name}=" in theirs and positional[index].default is inspect.Parameter.empty:
            return f"{name} has no default"
    for name, kind in (("**", inspect.Parameter.VAR_KEYWORD), ("*", inspect.Parameter.VAR_POSITIONAL)):
        if any(re.fullmatch(re.escape(name) + r"\w+", listed) for listed in theirs) and kind not in takes_any:
            return f"takes no {name} arguments"
    needed = [
        parameter.name
        for parameter in ours
        if parameter.name not in names
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    return f"needs {', '.join(needed)}, which nnU-Net does not have" if needed else None


@cache
def documented_differences() -> frozenset[str]:
    """Names in code style in the list of differences."""
    return frozenset(re.findall(r"`([\w.]+)`", DIFFERENCES.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", sorted({entry.module for entry in read_table(TABLE.read_text())}))
def test_public_names_can_be_used_as_in_nnunet(module: str) -> None:
    problems = []
    for entry in read_table(TABLE.read_text()):
        if entry.module == module and entry.name.split(".")[-1] not in documented_differences():
            problem = problem_of(entry)
            if problem is not None:
                problems.append(f"{entry.name} {problem}")
    assert not problems, "\n".join(["", *problems, f"Add what is missing to {module}, or list it with its reason in {DIFFERENCES.name}."])


def parameters_of(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize(
    ("theirs", "ours", "problem"),
    [
        (("a", "b="), lambda a, b=1: None, None),
        (("a", "b="), lambda a, b=1, *, c=2: None, None),
        (("a", "b="), lambda *args, **kwargs: None, None),
        (("a", "*args", "b="), lambda a, *args, b=1: None, None),
        (("a", "*args", "b="), lambda a, *args: None, "has no parameter b"),
        (("a", "b="), lambda a: None, "has no parameter b"),
        (("a", "b="), lambda b, a=1: None, "parameter 1 is b, not a"),
        (("a", "b="), lambda a, b: None, "b has no default"),
        (("a",), lambda a, c: None, "needs c, which nnU-Net does not have"),
        (("a", "**kwargs"), lambda a: None, "takes no ** arguments"),
    ],
)
def test_the_comparison_itself(theirs: tuple[str, ...], ours: Any, problem: str | None) -> None:
    assert difference_of_parameters(theirs, parameters_of(ours)) == problem


def test_missing_names_are_noticed() -> None:
    text = "nnunetv2.utilities.helpers\n  nothing(x)\n  softmax_helper_dim0(y)\nnnunetv2.nowhere\n  x\n"
    found = [problem_of(entry) for entry in read_table(text)]
    assert found[:2] == ["is missing", "parameter 1 is x, not y"] and found[2].startswith("cannot be imported")
