"""Every command line that the documentation shows is understood by the command."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from command_reference import PARSERS, REFERENCE, command_reference, options_of

from nnunetv2.demo.walkthrough import DemoSettings, demo_commands

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"\bnnUNetv2_\w+")
END_OF_COMMAND = ("&", "&&", "||", "|", ";", ">", ">>", "#")


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "documentation").glob("*.md")), *sorted((ROOT / "documentation").glob("*.ipynb"))]


def code_of(document: Path) -> tuple[str, list[str]]:
    """Lines of code, continued ones joined, and the pieces of code within sentences."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = re.sub(r"\{\w+\}", "Dataset001_X", text)  # the notebook's own variables
    else:
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
        fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        indented = [line for line in text.splitlines() if line.startswith("    ")]
        text = "\n".join([*fenced, *indented])
    text = re.sub(r"\\\n\s*", " ", text)
    return text.replace("-m nnunetv2.run.run_training", "&& nnUNetv2_train"), re.findall(r"`([^`]+)`", prose)


def words_of(code: str) -> list[str]:
    """The words of the first command of a line, from its name on."""
    lexer = shlex.shlex(code[COMMAND.search(code).start() :], posix=True, punctuation_chars="&|;>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in END_OF_COMMAND:
            break
        words.append(re.sub(r"^\$SLURM_ARRAY_TASK_ID$", "1", word))
    return words


def command_lines(document: Path) -> list[list[str]]:
    code, _ = code_of(document)
    found = []
    for line in code.splitlines():
        for part in re.split(r"&&|\|\||;", line):
            if re.match(r"\s*(!|\$ |export .*|\w+=\S+ )?\s*nnUNetv2_\w+", part):
                found.append(words_of(part))
    return found


def shown_lines() -> list:
    return [pytest.param(words, id=f"{document.name}: {' '.join(words)}") for document in documents() for words in command_lines(document)]


def all_options() -> set[str]:
    return {option for build, _ in PARSERS.values() for option in build()._option_string_actions}


def parse(words: list[str]) -> argparse.Namespace:
    build, check = PARSERS[words[0]]
    parser = build()
    parser.allow_abbrev = False  # documentation spells options out
    args = parser.parse_args(words[1:])
    if check is not None:
        check(parser, args)
    return args


@pytest.mark.parametrize("words", shown_lines())
def test_a_shown_command_line_is_understood(words: list[str]) -> None:
    parse(words)


def test_the_documentation_shows_the_commands_of_the_workflow() -> None:
    """So that the search for command lines does not come up empty."""
    shown = {words.values[0][0] for words in shown_lines()}
    assert {"nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_classification"} <= shown
    assert any(document.suffix == ".ipynb" and command_lines(document) for document in documents())


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_commands_and_options_within_sentences_exist(document: Path) -> None:
    _, inline = code_of(document)
    for code in inline:
        for name in COMMAND.findall(code):
            assert name in PARSERS, f"{document.name}: {code}"
        if re.match(r"nnUNetv2_\w+ ", code):
            words = words_of(code)
            options = PARSERS[words[0]][0]()._option_string_actions
            unknown = [word for word in words[1:] if re.match(r"--?[a-zA-Z]", word) and word not in options]
            assert not unknown, f"{document.name}: {code}"
        elif option := re.match(r"--?[a-zA-Z]\w*", code):
            assert option[0] in all_options(), f"{document.name}: {code}"


def test_the_demo_calls_commands_as_they_are(tmp_path: Path) -> None:
    for words in demo_commands(DemoSettings(folder=tmp_path, device="cpu")):
        parse(words)


def test_every_installed_command_shows_its_parser() -> None:
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    entries = dict(re.findall(r'^(\w+) = "([\w.:]+)"$', scripts, re.MULTILINE))
    assert set(entries) == set(PARSERS)
    for name, entry in entries.items():
        module, function = entry.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert PARSERS[name][0].__module__ == module


def test_the_reference_of_all_commands_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_def_n_proc", "nnUNet_npp", "nnUNet_nps"):
        monkeypatch.delenv(variable, raising=False)
    assert REFERENCE.read_text(encoding="utf-8") == command_reference(), "Write it anew: python tests/command_reference.py"


def test_the_help_of_every_option_says_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_def_n_proc", "nnUNet_npp", "nnUNet_nps"):
        monkeypatch.delenv(variable, raising=False)
    for name, (build, _) in PARSERS.items():
        for option in options_of(build()):
            if option.default is None or option.default is False or option.default == () or option.required:
                continue
            values = option.default if isinstance(option.default, (list, tuple)) else [option.default]
            shown = re.search(r"\(default: (.*)", option.help.replace("%(default)s", str(option.default)))
            assert shown is not None, f"{name} {option.dest}"
            assert shown[1].startswith(" ".join(map(str, values))), f"{name} {option.dest}"


def test_every_option_has_a_help() -> None:
    assert not [f"{name} {option.dest}" for name, (build, _) in PARSERS.items() for option in options_of(build()) if not option.help]
