"""The page of a report: sections in reading order, made of what was collected, scored and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files as package_files
from typing import Any

import numpy as np

from nnunetv2.evaluation.classification_metrics import case_score_name
from nnunetv2.report.case_cards import cases_section
from nnunetv2.report.class_sections import SCORE_NAMES, class_sections
from nnunetv2.report.content import MODEL, ReportContent
from nnunetv2.report.markup import Markup, absent, bullet_list, chart_grid, element, facts_table, interval, paragraph, percent, score, table
from nnunetv2.report.page_content import PageContent
from nnunetv2.report.wording import count, numbered, some

# Nothing may be loaded and nothing may run: the page is what it holds.
SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def build_page(page: PageContent) -> str:
    """The whole HTML document."""
    content = page.content
    title = f"{'Model' if content.kind == MODEL else 'Prediction'} report: {content.dataset_name}"
    sections = [
        ("data", "Data and splits", _data(page)),
        ("training", "Training", _training(page)),
        ("segmentation", "Segmentation", _segmentation(page)),
        *class_sections(page),
        ("cases", "Cases to look at", cases_section(page)),
        ("origin", "How this was made", _origin(page)),
    ]
    links = element(
        "nav", element("ul", [element("li", element("a", name, href=f"#{key}")) for key, name, _ in sections]), aria_label="Contents"
    )
    subtitle = f"{content.folder.parent.name}/{content.folder.name}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=SECURITY_POLICY),
        element("title", title),
        element("style", Markup(package_files("nnunetv2.report").joinpath("style.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element(
            "main",
            element("header", element("h1", title), paragraph(subtitle)),
            _summary(page),
            links,
            [element("section", element("h2", name), inside, id=key) for key, name, inside in sections],
            element("footer", "Made for research. Neither this page nor the predictions in it are a medical device or medical advice."),
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


# summary


def _summary(page: PageContent) -> Markup:
    """What a reader in a hurry must know."""
    return element(
        "section",
        element("h2", "Summary"),
        [paragraph(sentence) for sentence in _summary_sentences(page)],
        element("div", _tiles(page), class_="tiles") if _tiles(page) else None,
        paragraph("In brackets: 95 % intervals, the range in which the true value plausibly lies for cases like these.", class_="soft")
        if _tiles(page)
        else None,
        element("div", element("strong", "Read this first"), bullet_list(page.warnings), class_="warnings") if page.warnings else None,
        class_="summary",
        aria_label="Summary",
    )


def _summary_sentences(page: PageContent) -> list[str]:
    """Who predicted what, on which cases, and how they were held out."""
    content = page.content
    outlines = f"outlines {count(len(content.structures), 'structure')} ({some(list(content.structures))})" if content.structures else ""
    asked = [f"{name} ({some(task.classes)})" for name, task in content.tasks.items()] if content.class_rows else []
    classes = f"assigns each case {'a class' if len(asked) == 1 else 'classes'}: {'; '.join(asked)}" if asked else ""
    what = " and ".join(part for part in (outlines, classes) if part) or "was trained"
    who = "The model" if content.kind == MODEL else "The model behind these predictions"
    sentences = [f"{who} {what}."]
    sentences.append(_cases_sentence(page))
    return sentences


def _cases_sentence(page: PageContent) -> str:
    """How many cases, and whether they were new to the network."""
    content = page.content
    total = len(content.identifiers)
    if not total:
        return "No case has been predicted yet."
    groups = len({content.group_of(identifier) for identifier in content.identifiers})
    cases = count(total, "case") + (f" from {count(groups, 'group')} (for example patients)" if content.groups is not None else "")
    scored = page.segmentation is not None or page.classes
    if content.kind == MODEL or content.folds:
        if content.folds == ("all",):
            return f"{cases} were predicted by the network that was trained on them (fold all)."
        number = len(content.splits or ())
        of = f" of {number}" if number >= len(content.folds) else ""
        folds = numbered("fold", content.folds) + of
        by = (
            "each by a network that was not trained on it"
            if not content.seen_in_training
            else "not all by a network that had never seen them"
        )
        return f"{cases} were predicted, {by} (cross-validation, {folds})."
    if not scored:
        return f"{cases} were predicted. What is true is not known here, so that nothing can be scored; the page shows what was predicted."
    if content.seen_in_training:
        return f"{cases} were predicted and compared with what is true; see the warning about training cases."
    if content.overlap_unknown:
        return (
            f"{cases} were predicted and compared with what is true. Whether the model was trained on some of them cannot be checked here."
        )
    return f"{cases} were predicted and compared with what is true. None of them is a training case of the dataset."


def _tiles(page: PageContent) -> list[Markup]:
    """The main scores as big numbers."""
    tiles = []
    if page.segmentation is not None:
        scores = page.segmentation
        worst = (
            min((s.mean, name) for name, s in scores.structures.items() if s.cases)
            if any(s.cases for s in scores.structures.values())
            else None
        )
        of = "mean over structures" if len(scores.structures) > 1 else f"of {', '.join(scores.structures)}"
        meaning = f"Dice, {of}: 0 is no overlap with the reference outlines, 1 complete agreement."
        if worst is not None and len(scores.structures) > 1:
            meaning += f" Lowest: {worst[1]}, {score(worst[0])}."
        tiles.append(_tile("Segmentation", interval(scores.mean, scores.interval, score), meaning))
    for name, section in page.classes.items():
        report = section.report
        right = round(report["scores"]["accuracy"] * report["n"])
        main = case_score_name(section.task)
        label, meaning, form = SCORE_NAMES[main]
        second = f"{label} {form(report['scores'][main])}: {meaning}."
        tiles.append(
            _tile(
                name,
                interval(report["scores"]["accuracy"], report["intervals"]["scores"]["accuracy"], percent),
                f"{right} of {report['n']} cases right{' in all findings' if section.task.is_multilabel else ''}. {second}",
            )
        )
    return tiles


def _tile(name: str, value: Markup, meaning: str) -> Markup:
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", value, class_="value"),
        element("div", meaning, class_="meaning"),
        class_="tile",
    )


# data


def _data(page: PageContent) -> list[Markup]:
    """What the dataset is, and which cases were held out in which fold."""
    content = page.content
    dataset = content.dataset_json
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    facts = [
        ("Dataset", content.dataset_name),
        ("Description", dataset.get("description") or dataset.get("name")),
        ("Source", dataset.get("reference")),
        ("Licence", dataset.get("licence") or dataset.get("license")),
        ("Image channels", ", ".join(str(name) for name in channels.values()) if isinstance(channels, Mapping) else None),
        ("Structures", ", ".join(content.structures) or "none"),
        ("Training cases", dataset.get("numTraining")),
        ("Cases in this report", len(content.identifiers)),
    ]
    parts = [facts_table([(name, value) for name, value in facts if value not in (None, "")], "The dataset")]
    parts += [paragraph(note) for note in content.notes]
    if content.splits is not None and content.kind == MODEL:
        parts.append(_splits_table(content))
    elif "splits" in content.missing and content.kind == MODEL:
        parts.append(absent(content.missing["splits"]))
    parts += _class_count_tables(content)
    return parts


def _splits_table(content: ReportContent) -> Markup:
    """Cases, and groups, by fold."""
    rows = []
    for index, split in enumerate(content.splits):
        row = [f"fold {index}", len(split["train"]), len(split["val"])]
        if content.groups is not None:
            row += [len({content.group_of(case) for case in split[part]}) for part in ("train", "val")]
        rows.append([*row, "yes" if str(index) in content.folds else "no"])
    groups = ["groups in training", "groups held out"] if content.groups is not None else []
    return table(
        ["fold", "training cases", "held-out cases", *groups, "in this report"],
        rows,
        caption="Splits: which cases each network was trained on",
    )


def _class_count_tables(content: ReportContent) -> list[Markup]:
    """Cases of each class, in all and by fold."""
    if content.case_labels is None:
        return [absent(content.missing["labels"])] if "labels" in content.missing else []
    by_fold = content.splits is not None and content.kind == MODEL
    if by_fold:
        every = sorted({case for split in content.splits for part in ("train", "val") for case in split[part]})
        columns = {"all cases": every, **{f"fold {i}": None for i in range(len(content.splits))}}
    else:
        columns = {"cases": list(content.identifiers)}
    totals = content.case_labels.class_counts(next(iter(columns.values())))
    counts = [[content.case_labels.class_counts(split[part]) for part in ("train", "val")] for split in (content.splits if by_fold else ())]
    tables = []
    for name, task in content.tasks.items():
        rows = []
        for label in [*task.classes, "unknown"]:
            if label == "unknown" and not totals[name][label]:
                continue
            rows.append(
                [label, totals[name][label], *(f"{training[name][label]} + {held_out[name][label]}" for training, held_out in counts)]
            )
        caption = f"{name}: cases of each class" + (" (in each fold: training + held out)" if by_fold else "")
        tables.append(table(["class", *columns], rows, caption=caption))
    return tables


# training


def _training(page: PageContent) -> list[Markup]:
    """Curves of all folds."""
    if not page.training_charts:
        return [absent(page.content.missing.get("curves", "The checkpoints hold no curves."))]
    folds = [training.fold for training in page.content.trainings]
    lengths = sorted({training.epochs for training in page.content.trainings})
    epochs = " to ".join(str(number) for number in dict.fromkeys((lengths[0], lengths[-1])))
    text = f"Curves of {numbered('fold', folds)}, {epochs} epochs."
    return [paragraph(text), chart_grid(page.training_charts)]


# segmentation


def _segmentation(page: PageContent) -> list[Markup]:
    """Dice by structure."""
    content, scores = page.content, page.segmentation
    if scores is None:
        parts = [absent(content.missing.get("dice", "There are no scores of segmentations."))]
        return parts + ([_volume_table(page)] if page.volumes else [])
    rows = [
        [
            name,
            s.cases,
            interval(s.mean, s.interval, score),
            score(s.quartiles[1]),
            f"{score(s.quartiles[0])}–{score(s.quartiles[2])}",
            s.missed,
            s.invented,
        ]
        for name, s in scores.structures.items()
    ]
    if len(rows) > 1:
        rows.append(["mean", scores.cases, interval(scores.mean, scores.interval, score), "", "", "", ""])
    header = ["structure", "cases", "mean Dice (95 % interval)", "median", "middle half", "missed", "invented"]
    return [
        paragraph(
            "Dice measures how far predicted and reference outlines cover the same voxels: 0 is no overlap, 1 complete agreement. Cases in "
            "which neither has the structure do not count. Missed: the reference has it, and nothing of it was found. Invented: predicted, "
            "but not there."
        ),
        table(header, rows, caption=f"Dice by structure, {count(scores.cases, 'case')}; from {content.overlap_source}"),
        chart_grid([page.dice_chart]) if page.dice_chart is not None else None,
    ]


def _volume_table(page: PageContent) -> Markup:
    """How much was predicted, where there is nothing to compare it with."""
    rows = []
    for name, volumes in page.volumes.items():
        present = [volume for volume in volumes if volume > 0]
        numbers = [_volume(float(np.quantile(present, q))) for q in (0.5, 0, 1)] if present else ["–"] * 3
        rows.append([name, f"{len(present)} of {len(volumes)}", *numbers])
    return table(
        ["structure", "found in", "median", "smallest", "largest"],
        rows,
        caption="Predicted volume in ml, over the cases in which it was found",
    )


def _volume(value: float) -> str:
    """Three significant digits at most."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


# origin


def _origin(page: PageContent) -> list[Any]:
    """Commands and versions."""
    content = page.content
    parts: list[Any] = []
    if page.commands:
        parts.append(element("h3", "Commands"))
        for what, command in page.commands:
            parts += [paragraph(what), element("pre", command)]
    if content.trainings:
        parts += [element("h3", "Training"), _trainings_table(content)]
    if content.recorded_arguments:
        shown = [(key, value) for key, value in content.recorded_arguments.items() if value is not None and not isinstance(value, list)]
        parts += [element("h3", "Prediction"), facts_table(shown, "Arguments recorded by the prediction")]
    plans = content.plans
    planned = [
        ("Plans", plans.get("plans_name")),
        ("Planner", plans.get("experiment_planner_used")),
        ("Reader of the files", plans.get("image_reader_writer")),
    ]
    if plans:
        parts += [element("h3", "Plans"), facts_table([(name, value) for name, value in planned if value], "The plans of the model")]
    parts += [element("h3", "This page"), facts_table(list(page.versions.items()), "What made this page")]
    return parts


def _trainings_table(content: ReportContent) -> Markup:
    """Settings and versions of every fold's training."""
    folds = content.trainings
    rows: list[list[Any]] = [
        ["trainer", *(t.trainer for t in folds)],
        ["configuration", *(t.configuration for t in folds)],
        ["epochs", *(t.epochs for t in folds)],
        ["seed", *("not recorded" if t.seed is None else t.seed for t in folds)],
        ["finished", *(_date(t.curves) for t in folds)],
    ]
    for label, entries in (("class heads", [t.heads for t in folds]), ("refitted class heads", [t.refit for t in folds])):
        if any(entries):
            rows.append([label, *(_heads_text(entry) for entry in entries)])
    names = {"device": "device", "gpu_name": "GPU", "torch_version": "torch", "cudnn_version": "cuDNN", "nnunetv2_version": "nnunetv2"}
    for key, label in names.items():
        if any(key in t.machine for t in folds) or key in ("torch_version", "nnunetv2_version"):
            rows.append([label, *(t.machine.get(key, "not recorded") for t in folds)])
    return table(
        ["setting", *(f"fold {t.fold}" for t in folds)], rows, caption="Trainings, as recorded in their checkpoints and debug.json"
    )


def _heads_text(entry: Mapping[str, Any]) -> str:
    """Which heads a checkpoint holds."""
    if not entry:
        return "none"
    stages = entry.get("stages") or ()
    return f"{entry.get('pooling', 'unknown')}, stages {', '.join(map(str, stages))}, on {entry.get('level', 'patch')}"


def _date(curves: Mapping[str, Sequence[Any]]) -> str:
    """When the last epoch ended (UTC)."""
    ends = [t for t in curves.get("epoch_end_timestamps", ()) if isinstance(t, (int, float)) and not math.isnan(t)]
    return f"{datetime.fromtimestamp(ends[-1], timezone.utc):%Y-%m-%d %H:%M} UTC" if ends else "not recorded"
