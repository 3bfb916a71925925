"""Every command line that the documentation shows is understood by the command."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2.cli import (
    benchmark,
    calibrate_classification,
    convert_class_folders,
    convert_dataset,
    demo,
    ensemble,
    evaluate,
    evaluate_classification,
    export_segmentation_model,
    find_best_configuration,
    model_sharing,
    plan_and_preprocess,
    plot_overlay_pngs,
    postprocessing,
    predict,
    report,
    train,
)
from nnunetv2.cli.arguments import check_model
from nnunetv2.demo.walkthrough import DemoSettings, demo_commands

ROOT = Path(__file__).parents[2]
Check = Callable[[argparse.ArgumentParser, argparse.Namespace], None]
PARSERS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Check | None]] = {
    "nnUNetv2_plan_and_preprocess": (plan_and_preprocess.build_plan_and_preprocess_parser, plan_and_preprocess.check_process_numbers),
    "nnUNetv2_extract_fingerprint": (plan_and_preprocess.build_extract_fingerprint_parser, None),
    "nnUNetv2_plan_experiment": (plan_and_preprocess.build_plan_experiment_parser, None),
    "nnUNetv2_preprocess": (plan_and_preprocess.build_preprocess_parser, plan_and_preprocess.check_process_numbers),
    "nnUNetv2_move_plans_between_datasets": (plan_and_preprocess.build_move_plans_parser, None),
    "nnUNetv2_train": (train.build_parser, None),
    "nnUNetv2_predict": (predict.build_predict_parser, predict.check_options),
    "nnUNetv2_predict_from_modelfolder": (predict.build_predict_modelfolder_parser, predict.check_options),
    "nnUNetv2_find_best_configuration": (find_best_configuration.build_find_best_parser, None),
    "nnUNetv2_accumulate_crossval_results": (find_best_configuration.build_accumulate_parser, None),
    "nnUNetv2_determine_postprocessing": (postprocessing.build_determine_parser, None),
    "nnUNetv2_apply_postprocessing": (postprocessing.build_apply_parser, None),
    "nnUNetv2_ensemble": (ensemble.build_parser, None),
    "nnUNetv2_evaluate_folder": (evaluate.build_evaluate_folder_parser, None),
    "nnUNetv2_evaluate_simple": (evaluate.build_evaluate_simple_parser, None),
    "nnUNetv2_evaluate_classification": (evaluate_classification.build_parser, None),
    "nnUNetv2_calibrate_classification": (calibrate_classification.build_parser, check_model),
    "nnUNetv2_export_segmentation_model": (export_segmentation_model.build_parser, check_model),
    "nnUNetv2_export_model_to_zip": (model_sharing.build_export_parser, None),
    "nnUNetv2_install_pretrained_model_from_zip": (model_sharing.build_install_parser, None),
    "nnUNetv2_download_pretrained_model_by_url": (model_sharing.build_download_parser, None),
    "nnUNetv2_report": (report.build_parser, None),
    "nnUNetv2_convert_MSD_dataset": (convert_dataset.build_msd_parser, None),
    "nnUNetv2_convert_old_nnUNet_dataset": (convert_dataset.build_old_parser, None),
    "nnUNetv2_plot_overlay_pngs": (plot_overlay_pngs.build_parser, None),
    "nnUNetv2_convert_class_folders": (convert_class_folders.build_parser, None),
    "nnUNetv2_benchmark": (benchmark.build_parser, None),
    "nnUNetv2_demo": (demo.build_parser, None),
}
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
