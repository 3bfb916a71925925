"""All commands with their options as one page, ``documentation/commands.md``.

The page comes from the parsers themselves. After a change of an option or its help, write it anew: ``python tests/command_reference.py``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

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

REFERENCE = Path(__file__).parents[1] / "documentation" / "commands.md"
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
# In the order in which they are used.
SECTIONS = {
    "Raw data": ("nnUNetv2_convert_class_folders", "nnUNetv2_convert_MSD_dataset", "nnUNetv2_convert_old_nnUNet_dataset"),
    "Planning and preprocessing": (
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_extract_fingerprint",
        "nnUNetv2_plan_experiment",
        "nnUNetv2_preprocess",
        "nnUNetv2_plot_overlay_pngs",
        "nnUNetv2_move_plans_between_datasets",
    ),
    "Training": ("nnUNetv2_train", "nnUNetv2_benchmark"),
    "Choosing a model": (
        "nnUNetv2_find_best_configuration",
        "nnUNetv2_accumulate_crossval_results",
        "nnUNetv2_determine_postprocessing",
        "nnUNetv2_calibrate_classification",
    ),
    "Prediction": (
        "nnUNetv2_predict",
        "nnUNetv2_predict_from_modelfolder",
        "nnUNetv2_ensemble",
        "nnUNetv2_apply_postprocessing",
    ),
    "Evaluation": (
        "nnUNetv2_evaluate_folder",
        "nnUNetv2_evaluate_simple",
        "nnUNetv2_evaluate_classification",
        "nnUNetv2_report",
    ),
    "Passing models on": (
        "nnUNetv2_export_model_to_zip",
        "nnUNetv2_install_pretrained_model_from_zip",
        "nnUNetv2_download_pretrained_model_by_url",
        "nnUNetv2_export_segmentation_model",
    ),
    "Demonstration": ("nnUNetv2_demo",),
}
INTRODUCTION = """# Commands

Every command and its options; `--help` shows the same. Datasets are given by number (`4`) or name (`Dataset004_Name`). A misspelled
option is an error; a mistake ends with one line that says what to do, and with `nnUNet_debug=1` in the environment with the place in the
program, too.
"""
DEFAULT = re.compile(r"\s*\(default: ((?:[^()]|\([^()]*\))*)\)")


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Arguments and options, but for ``--help``."""
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def defaults_in_words(option: argparse.Action) -> str:
    """What the help says in ``(default: ...)``, or the value itself; empty where nothing is the default."""
    found = DEFAULT.search(help_text(option))
    if found:
        return found[1]
    return "" if option.required or option.default is None or option.default is False or option.default == () else str(option.default)


def help_text(option: argparse.Action) -> str:
    """The help with its values filled in."""
    return re.sub(r"%\((\w+)\)s", lambda found: str(getattr(option, found[1])), option.help or "")


def command_reference() -> str:
    """The whole page."""
    missing = set(PARSERS) ^ {name for names in SECTIONS.values() for name in names}
    if missing:
        raise ValueError(f"SECTIONS and PARSERS differ in {sorted(missing)}.")
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [section_of(name, PARSERS[name][0]()) for name in names]
    return "\n".join(parts)


def section_of(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: what it does, then a row for each option, required ones first."""
    options = sorted(options_of(parser), key=lambda option: not option.required)  # stable: otherwise in the order of --help
    rows = [f"| {written(option)} | {default_cell(option)} | {cell(DEFAULT.sub('', help_text(option)))} |" for option in options]
    return "\n".join([f"### {name}\n", f"{parser.description}\n", "| option | default | |", "| --- | --- | --- |", *rows, ""])


def written(option: argparse.Action) -> str:
    """How an option is written, with what follows it."""
    choices = f"{{{','.join(map(str, option.choices))}}}" if option.choices else ""
    value = "" if option.nargs == 0 else option.metavar or choices or option.dest.upper()
    value = {"+": f"{value} ...", "?": f"[{value}]"}.get(option.nargs, value)
    if not option.option_strings:
        return f"`{option.metavar or option.dest}`"
    first, *others = option.option_strings
    return ", ".join([f"`{first} {value}`".replace(" `", "`"), *(f"`{other}`" for other in others)])


def default_cell(option: argparse.Action) -> str:
    """The default, or that there is none."""
    return "required" if option.required else cell(defaults_in_words(option))


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for variable in ("nnUNet_def_n_proc", "nnUNet_npp", "nnUNet_nps"):
        os.environ.pop(variable, None)  # which would be taken for defaults
    REFERENCE.write_text(command_reference(), encoding="utf-8")
