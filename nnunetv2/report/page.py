"""The page of a report: sections in reading order, made of what was collected, scored and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.resources import files as package_files
from typing import Any

import numpy as np

from nnunetv2.evaluation.bootstrap import DRAWS
from nnunetv2.evaluation.classification_metrics import case_score_name
from nnunetv2.report.case_pictures import CasePicture, structure_colours
from nnunetv2.report.charts import Chart
from nnunetv2.report.content import MODEL, ReportContent
from nnunetv2.report.markup import Markup, bullet_list, element, interval, joined, paragraph, percent, score, table
from nnunetv2.report.scores import HeadComparison, SegmentationScores, predicted_counts, some
from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

SEGMENTATION = "segmentation"  # no task's own name: it would have a column in the table of classes
# Nothing may be loaded and nothing may run: the page is what it holds.
SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SCORE_NAMES = {
    "accuracy": ("Accuracy", "share of the cases that are right", percent),
    "balanced_accuracy": ("Balanced accuracy", "mean over classes of the share of their cases that are right", percent),
    "macro_f1": ("Macro-F1", "mean over classes of the F1 score, 0 to 1", score),
    "auroc": ("AUROC", "how well the probabilities rank cases: 0.5 is guessing, 1 perfect", score),
    "mcc": ("Matthews correlation", "-1 to 1, 0 is guessing", score),
    "macro_average_precision": ("Average precision", "mean over classes of the area under the precision-recall curve", score),
    "quadratic_kappa": ("Quadratic kappa", "agreement of ordered classes, far errors count more: 0 is chance, 1 perfect", score),
    "brier": ("Brier score", "squared error of the probabilities, lower is better", score),
    "ece": ("Calibration error", "how far the probabilities are from what comes true, lower is better", score),
    "log_loss": ("Log loss", "price of probabilities given to wrong classes, lower is better", score),
}
MULTILABEL_MEANINGS = {
    "accuracy": "share of the cases that are right in all findings",
    "balanced_accuracy": "mean over findings of (sensitivity + specificity) / 2",
}
HEAD_NAMES = {
    "refit": "refitted heads (trained after the segmentation)",
    "joint": "joint heads (trained together with the segmentation)",
    "mixed": "different heads in different folds",
    "calibrated": "calibrated predictions",
    "predicted": "predictions",
}


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """Scored classes of one task."""

    task: ClassificationTask
    report: Mapping[str, Any]
    charts: Sequence[Chart]
    comparisons: Sequence[HeadComparison] = ()


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that the page shows, ready to be written."""

    content: ReportContent
    segmentation: SegmentationScores | None
    classes: Mapping[str, TaskSection]
    warnings: Sequence[str]
    training_charts: Sequence[Chart]
    dice_chart: Chart | None
    volumes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # ml by structure, of predictions without reference
    worst: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)  # by task, SEGMENTATION for the outlines
    pictures: Mapping[tuple[str, str], CasePicture] = field(default_factory=dict)  # by task and identifier
    commands: Sequence[tuple[str, str]] = ()  # what a command does, and the command
    versions: Mapping[str, str] = field(default_factory=dict)


def build_page(page: PageContent) -> str:
    """The whole HTML document."""
    content = page.content
    title = f"{'Model' if content.kind == MODEL else 'Prediction'} report: {content.dataset_name}"
    sections = [
        ("data", "Data and splits", _data(page)),
        ("training", "Training", _training(page)),
        ("segmentation", "Segmentation", _segmentation(page)),
        *_classes(page),
        ("cases", "Cases to look at", _cases(page)),
        ("origin", "How this was made", _origin(page)),
    ]
    links = element("nav", element("ul", [element("li", element("a", name, href=f"#{key}")) for key, name, _ in sections]), aria_label="Contents")
    subtitle = f"{content.folder.parent.name}/{content.folder.name}" if content.kind == MODEL else str(content.folder)
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
    outlines = f"outlines {_count(len(content.structures), 'structure')} ({_short(list(content.structures))})" if content.structures else ""
    asked = [f"{name} ({_short(task.classes)})" for name, task in content.tasks.items()] if content.class_rows else []
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
    cases = _count(total, "case") + (f" from {_count(groups, 'group')} (for example patients)" if content.groups is not None else "")
    scored = page.segmentation is not None or page.classes
    if content.kind == MODEL:
        if content.folds == ("all",):
            return f"{cases} were predicted by the network that was trained on them (fold all)."
        number = len(content.splits or ())
        of = f" of {number}" if number >= len(content.folds) else ""
        folds = f"{'fold' if len(content.folds) == 1 else 'folds'} {', '.join(content.folds)}{of}"
        by = "each by a network that was not trained on it" if not content.seen_in_training else "not all by a network that had never seen them"
        return f"{cases} were predicted, {by} (cross-validation, {folds})."
    if not scored:
        return f"{cases} were predicted. What is true is not known here, so that nothing can be scored; the page shows what was predicted."
    if content.seen_in_training:
        return f"{cases} were predicted and compared with what is true; see the warning about training cases."
    if content.overlap_unknown:
        return f"{cases} were predicted and compared with what is true. Whether the model was trained on some of them cannot be checked here."
    return f"{cases} were predicted and compared with what is true. None of them is a training case of the dataset."


def _tiles(page: PageContent) -> list[Markup]:
    """The main scores as big numbers."""
    tiles = []
    if page.segmentation is not None:
        scores = page.segmentation
        worst = min((s.mean, name) for name, s in scores.structures.items() if s.cases) if any(s.cases for s in scores.structures.values()) else None
        meaning = "Dice, mean over structures: 0 is no overlap with the reference outlines, 1 complete agreement."
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
    return element("div", element("div", name, class_="name"), element("div", value, class_="value"), element("div", meaning, class_="meaning"), class_="tile")


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
    parts = [_facts([(name, value) for name, value in facts if value not in (None, "")], "The dataset")]
    parts += [paragraph(note) for note in content.notes]
    if content.splits is not None and content.kind == MODEL:
        parts.append(_splits_table(content))
    elif "splits" in content.missing and content.kind == MODEL:
        parts.append(_absent(content.missing["splits"]))
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
    return table(["fold", "training cases", "held-out cases", *groups, "in this report"], rows, caption="Splits: which cases each network was trained on")


def _class_count_tables(content: ReportContent) -> list[Markup]:
    """Cases of each class, in all and by fold."""
    if content.case_labels is None:
        return [_absent(content.missing["labels"])] if "labels" in content.missing else []
    by_fold = content.splits is not None and content.kind == MODEL
    if by_fold:
        every = sorted({case for split in content.splits for part in ("train", "val") for case in split[part]})
        columns = {"all cases": every, **{f"fold {i}": None for i in range(len(content.splits))}}
    else:
        columns = {"cases": list(content.identifiers)}
    totals = content.case_labels.class_counts(next(iter(columns.values())))
    counts = [
        [content.case_labels.class_counts(split[part]) for part in ("train", "val")] for split in (content.splits if by_fold else ())
    ]
    tables = []
    for name, task in content.tasks.items():
        rows = []
        for label in [*task.classes, "unknown"]:
            if label == "unknown" and not totals[name][label]:
                continue
            rows.append([label, totals[name][label], *(f"{training[name][label]} + {held_out[name][label]}" for training, held_out in counts)])
        caption = f"{name}: cases of each class" + (" (in each fold: training + held out)" if by_fold else "")
        tables.append(table(["class", *columns], rows, caption=caption))
    return tables


# training


def _training(page: PageContent) -> list[Markup]:
    """Curves of all folds."""
    if not page.training_charts:
        return [_absent(page.content.missing.get("curves", "The checkpoints hold no curves."))]
    folds = [training.fold for training in page.content.trainings]
    lengths = sorted({training.epochs for training in page.content.trainings})
    text = f"Curves of {'fold' if len(folds) == 1 else 'folds'} {', '.join(folds)}, {' to '.join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))} epochs."
    return [paragraph(text), _charts(page.training_charts)]


# segmentation


def _segmentation(page: PageContent) -> list[Markup]:
    """Dice by structure."""
    content, scores = page.content, page.segmentation
    if scores is None:
        parts = [_absent(content.missing.get("dice", "There are no scores of segmentations."))]
        return parts + ([_volume_table(page)] if page.volumes else [])
    rows = [
        [name, s.cases, interval(s.mean, s.interval, score), score(s.quartiles[1]), f"{score(s.quartiles[0])}–{score(s.quartiles[2])}", s.missed, s.invented]
        for name, s in scores.structures.items()
    ]
    if len(rows) > 1:
        rows.append(["mean", scores.cases, interval(scores.mean, scores.interval, score), "", "", "", ""])
    header = ["structure", "cases", "mean Dice (95 % interval)", "median", "middle half", "missed", "invented"]
    return [
        paragraph(
            "Dice measures how far predicted and reference outlines cover the same voxels: 0 is no overlap, 1 complete agreement. Cases in which "
            "neither has the structure do not count. Missed: the reference has it, and nothing of it was found. Invented: predicted, but not there."
        ),
        table(header, rows, caption=f"Dice by structure, {_count(scores.cases, 'case')}; from {content.overlap_source}"),
        _charts([page.dice_chart]) if page.dice_chart is not None else None,
    ]


def _volume_table(page: PageContent) -> Markup:
    """How much was predicted, where there is nothing to compare it with."""
    rows = []
    for name, volumes in page.volumes.items():
        present = [volume for volume in volumes if volume > 0]
        numbers = [_volume(float(np.quantile(present, q))) for q in (0.5, 0, 1)] if present else ["–"] * 3
        rows.append([name, f"{len(present)} of {len(volumes)}", *numbers])
    return table(["structure", "found in", "median", "smallest", "largest"], rows, caption="Predicted volume in ml, over the cases in which it was found")


def _volume(value: float) -> str:
    """Three significant digits at most."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


# classes


def _classes(page: PageContent) -> list[tuple[str, str, Any]]:
    """One section for each task, or one that says why there is none."""
    content = page.content
    if not content.class_rows:
        return [("classes", "Classes", [_absent(content.missing.get("classes", "There are no classes."))])]
    sections = []
    for name, task in content.tasks.items():
        inside = _scored_task(page, page.classes[name]) if name in page.classes else _unscored_task(page, task)
        sections.append((f"class-{name}", f"Class: {name}", inside))
    return sections


def _scored_task(page: PageContent, section: TaskSection) -> list[Any]:
    """Scores, tables and charts of a task."""
    content, task, report = page.content, section.task, section.report
    unknown = f" {_count(report['unknown'], 'predicted case')} without a known class do not count." if report["unknown"] else ""
    heads = HEAD_NAMES.get(next(iter(content.class_tables)), next(iter(content.class_tables)))
    drawn = "groups (for example patients)" if content.groups is not None else "cases"
    return [
        paragraph(f"{_count(report['n'], 'case')} with a known class; {heads}.{unknown} Intervals: {DRAWS} bootstrap draws of {drawn}."),
        element("h3", "Overall"),
        _overall_table(section),
        element("h3", "Each class"),
        _per_class_table(section),
        paragraph(
            "Sensitivity: share of the cases of the class that were found. Specificity: share of all others that were not taken for it. Precision: share "
            "of the cases predicted as the class that are. F1 combines sensitivity and precision, AUROC and average precision (AP) judge the "
            "probabilities without a threshold.",
            class_="soft",
        ),
        element("h3", "Charts"),
        _charts(section.charts),
        *_calibration(content, task),
        *_heads_table(content, section),
    ]


def _overall_table(section: TaskSection) -> Markup:
    """All scores of a task with what they mean."""
    report = section.report
    rows = []
    for name, (label, meaning, form) in SCORE_NAMES.items():
        if name not in report["scores"]:
            continue
        meaning = MULTILABEL_MEANINGS.get(name, meaning) if section.task.is_multilabel else meaning
        rows.append([label, interval(report["scores"][name], report["intervals"]["scores"][name], form), meaning])
    return table(["score", "value (95 % interval)", "meaning"], rows, caption=f"{section.task.name}: scores of all cases together", class_="facts")


def _per_class_table(section: TaskSection) -> Markup:
    """Every class against the rest."""
    report = section.report
    forms = {"recall": percent, "specificity": percent, "precision": percent, "f1": score, "auroc": score, "average_precision": score}
    rows = [
        [label, values["n"], *(interval(values[name], report["intervals"]["per_class"][label][name], form) for name, form in forms.items())]
        for label, values in report["per_class"].items()
    ]
    header = ["class", "cases", "sensitivity", "specificity", "precision", "F1", "AUROC", "AP"]
    return table(header, rows, caption=f"{section.task.name}: each class against the rest, with 95 % intervals")


def _unscored_task(page: PageContent, task: ClassificationTask) -> list[Markup]:
    """How often each class was predicted, where the truth is not known."""
    content = page.content
    counts, total = predicted_counts(content, task), len(content.class_rows)
    probabilities = np.array([row[task.name] for row in content.class_rows.values()])
    rows = [[label, n, percent(n / total), percent(float(mean))] for (label, n), mean in zip(counts.items(), probabilities.mean(axis=0), strict=True)]
    why = content.missing.get("labels", "None of the predicted cases has a known class.")
    return [
        _absent(why),
        table(["class", "predicted cases", "share", "mean probability"], rows, caption=f"{task.name}: what was predicted, {_count(total, 'case')}"),
    ]


def _heads_table(content: ReportContent, section: TaskSection) -> list[Markup]:
    """The other sets of heads beside the one that counts."""
    if not section.comparisons:
        return []
    label, _, form = SCORE_NAMES[case_score_name(section.task)]
    shown = [name for name in (case_score_name(section.task), "balanced_accuracy", "auroc", "brier") if name in section.report["scores"]]
    counting = next(iter(content.class_tables))

    def cells(report: Mapping[str, Any]) -> list[Any]:
        return [interval(report["scores"][n], report["intervals"]["scores"][n], SCORE_NAMES[n][2]) if report else "–" for n in shown]

    rows = [[HEAD_NAMES.get(counting, counting), *cells(section.report), "counts"]]
    for other in section.comparisons:
        limits = other.difference
        text = f"{other.value - other.counting_value:+.2f}" + (f" ({limits['low']:+.2f} to {limits['high']:+.2f})" if limits["draws"] else "")
        rows.append([HEAD_NAMES.get(other.name, other.name), *cells(other.report), text])
    return [
        element("h3", "Sets of heads"),
        paragraph(f"The same cases, predicted by every set of heads of this model; the difference in {label} is paired and has a 95 % interval."),
        table(["heads", *(SCORE_NAMES[name][0] for name in shown), f"difference in {label}"], rows, caption=f"{section.task.name}: sets of heads"),
    ]


def _calibration(content: ReportContent, task: ClassificationTask) -> list[Markup]:
    """What a stored calibration gains."""
    stored = (content.calibration or {}).get("tasks", {}).get(task.name)
    if content.raw_class_rows is not None:
        return [paragraph("The probabilities are calibrated (classification_calibration.json of the model); the reliability chart shows both.")]
    if not isinstance(stored, Mapping):
        return []
    report = stored.get("report") or {}
    held_out = report.get("held_out")
    gain = (
        f" On held-out folds it changes the log loss from {held_out['log_loss_before']:.3f} to {held_out['log_loss_after']:.3f}."
        if isinstance(held_out, Mapping)
        else ""
    )
    kept = f" Raw probabilities are kept: {report['reason']}." if report.get("reason") else ""
    return [paragraph(f"The model has a calibration, which is applied to new predictions; the scores here are those before it.{gain}{kept}")]


# cases


def _cases(page: PageContent) -> list[Any]:
    """The worst cases of every task as pictures."""
    content = page.content
    if not page.worst:
        return [_absent("No case is singled out: there is neither a reference segmentation nor a class.")]
    parts: list[Any] = []
    if "pictures" in content.missing:
        parts.append(_absent(content.missing["pictures"]))
    elif page.pictures:
        parts += [_key(page)]
    if page.pictures and content.class_rows and not any(picture.saliency for picture in page.pictures.values()):
        parts.append(_absent(_how_to_get_saliency(content)))
    for name, worst in page.worst.items():
        parts += [element("h3", _cases_title(page, name, len(worst))), element("div", [_card(page, name, *case) for case in worst], class_="cases")]
    return parts


def _how_to_get_saliency(content: ReportContent) -> str:
    """What to run for saliency maps."""
    wanted = "fold_X/validation/saliency" if content.kind == MODEL else "saliency in the folder of the predictions"
    how = (
        "predict the validation cases with nnUNetv2_predict --save_cls --save_saliency and move the maps there"
        if content.kind == MODEL
        else "predict again with nnUNetv2_predict --save_cls --save_saliency"
    )
    return f"Saliency maps, which show where the network looked for a class, are missing: there is no {wanted} with maps of these cases; {how}."


def _cases_title(page: PageContent, name: str, number: int) -> str:
    """What the pictures below have in common."""
    if name == SEGMENTATION:
        return f"Segmentation: the {_count(number, 'case')} with the lowest Dice"
    if name in page.classes:
        return f"{name}: the {_count(number, 'case')} whose true class got the lowest probability"
    return f"{name}: the {_count(number, 'case')} with the least certain prediction"


def _key(page: PageContent) -> Markup:
    """What lines and colours mean."""
    entries = [element("span", element("i", style=f"color: {colour}"), name) for name, colour in structure_colours(page.content.structures).items()]
    lines = [element("span", element("i"), "solid: reference"), element("span", element("i", class_="dashed"), "dashed: prediction")]
    heat = [element("span", element("i", class_="heat"), "saliency, low to high")] if any(p.saliency for p in page.pictures.values()) else []
    return joined(
        paragraph(
            "Pictures show the slice that matters most, enlarged around the structures. L, R, A, P, S, I at the edges are left, right, front, back, head "
            "and foot of the patient."
        ),
        element("div", lines, entries, heat, class_="key"),
    )


def _card(page: PageContent, name: str, identifier: str, value: float) -> Markup:
    """One case: pictures, what is true and predicted, probabilities as bars."""
    content = page.content
    picture = page.pictures.get((name, identifier))
    fold = content.fold_of.get(identifier)
    parts: list[Any] = [element("h4", identifier, element("span", f" · fold {fold}", class_="soft") if fold is not None else None)]
    if picture is not None:
        parts += _picture(picture, name)
    if name == SEGMENTATION:
        parts.append(_dice_bars(content, identifier))
        parts += [_verdict(content, task, identifier) for task in content.tasks.values() if identifier in content.class_rows]
    else:
        task = content.tasks[name]
        parts += [_verdict(content, task, identifier), _probability_bars(content, task, identifier)]
    return element("article", parts, class_="case")


def _picture(picture: CasePicture, name: str) -> list[Markup]:
    """Image and saliency side by side, and what is missing."""
    figures = []
    if picture.overlay is not None:
        figures.append(element("figure", element("img", src=picture.overlay, alt=picture.text), element("figcaption", picture.where or "image")))
    if picture.saliency is not None:
        text = f"Saliency of {name} over the same slice."
        figures.append(element("figure", element("img", src=picture.saliency, alt=text), element("figcaption", f"saliency of {name}")))
    notes = [paragraph(note, class_="absent") for note in picture.notes]
    return ([element("div", figures, class_="pictures")] if figures else []) + notes


def _verdict(content: ReportContent, task: ClassificationTask, identifier: str) -> Markup:
    """``pathology: true DCM, predicted NOR``."""
    predicted = predicted_target(task, content.class_rows[identifier][task.name])
    target = None if content.case_labels is None else content.case_labels.target(identifier, task.name)
    said = element("strong", task.format_target(predicted))
    if target is None:
        return paragraph(f"{task.name}: predicted ", said, ", the truth is not known", class_="verdict")
    right = bool(np.all(np.asarray(target) == np.asarray(predicted)))
    return paragraph(
        f"{task.name}: true ",
        element("strong", task.format_target(target)),
        ", predicted ",
        said,
        " (right)" if right else " (wrong)",
        class_="verdict" if right else "verdict wrong",
    )


def _probability_bars(content: ReportContent, task: ClassificationTask, identifier: str) -> Markup:
    """The probability of every class."""
    row = np.asarray(content.class_rows[identifier][task.name], dtype=float)
    target = None if content.case_labels is None else content.case_labels.target(identifier, task.name)
    true = [False] * task.num_classes if target is None else [bool(v) for v in (np.asarray(target) > 0.5 if task.is_multilabel else np.arange(task.num_classes) == target)]
    cells = [_bar(label, float(p), percent(float(p)), is_true) for label, p, is_true in zip(task.classes, row, true, strict=True)]
    return element("div", cells, class_="bars")


def _dice_bars(content: ReportContent, identifier: str) -> Markup:
    """The Dice of every structure."""
    cells = []
    for name, values in content.overlaps[identifier].items():
        dice = values["Dice"]
        text = score(dice) if not np.isnan(dice) else "not there"
        cells.append(_bar(name, 0 if np.isnan(dice) else dice, f"Dice {text}" if not np.isnan(dice) else text, True, mark=False))
    return element("div", cells, class_="bars")


def _bar(label: str, share: float, text: str, is_true: bool, mark: bool = True) -> Markup:
    """One row of bars; what is true is also written, so that it does not depend on the colour."""
    fill = element("span", class_="fill true" if is_true else "fill", style=f"width: {100 * min(max(share, 0), 1):.1f}%")
    return joined(
        element("span", label, [" ", element("span", "true", class_="tag")] if is_true and mark else None, class_="label"),
        element("span", fill, class_="track"),
        element("span", text, class_="number"),
    )


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
        parts += [element("h3", "Prediction"), _facts(shown, "Arguments recorded by the prediction")]
    plans = content.plans
    planned = [
        ("Plans", plans.get("plans_name")),
        ("Planner", plans.get("experiment_planner_used")),
        ("Reader of the files", plans.get("image_reader_writer")),
    ]
    if plans:
        parts += [element("h3", "Plans"), _facts([(name, value) for name, value in planned if value], "The plans of the model")]
    parts += [element("h3", "This page"), _facts(list(page.versions.items()), "What made this page")]
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
    if any(t.heads for t in folds):
        rows.append(["class heads", *(f"{t.heads.get('pooling', '–')}, stages {t.heads.get('stages', '–')}" for t in folds)])
    names = {"device": "device", "gpu_name": "GPU", "torch_version": "torch", "cudnn_version": "cuDNN", "nnunetv2_version": "nnunetv2"}
    for key, label in names.items():
        if any(key in t.machine for t in folds) or key in ("torch_version", "nnunetv2_version"):
            rows.append([label, *(t.machine.get(key, "not recorded") for t in folds)])
    return table(["", *(f"fold {t.fold}" for t in folds)], rows, caption="Trainings, as recorded in their checkpoints and debug.json")


def _date(curves: Mapping[str, Sequence[Any]]) -> str:
    """When the last epoch ended (UTC)."""
    ends = [t for t in curves.get("epoch_end_timestamps", ()) if isinstance(t, (int, float)) and t == t]
    return f"{datetime.fromtimestamp(ends[-1], timezone.utc):%Y-%m-%d %H:%M} UTC" if ends else "not recorded"


# parts


def _charts(charts: Sequence[Chart]) -> Markup:
    """Pictures in a grid, wide ones in a row of their own."""
    return element("div", [_chart(one) for one in charts], class_="charts")


def _chart(one: Chart) -> Markup:
    caption = element("figcaption", element("strong", one.title), ". ", one.caption)
    picture = element("img", src=one.address, alt=one.text, width=one.width, height=one.height)
    return element("figure", caption, picture, class_="wide" if one.width > 560 else None)


def _facts(facts: Sequence[tuple[str, Any]], caption: str) -> Markup:
    """Names and values."""
    return table(["what", "value"], facts, caption=caption, class_="facts")


def _absent(sentence: str) -> Markup:
    """Why a section lacks something."""
    return paragraph(sentence, class_="absent")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _short(names: Sequence[str]) -> str:
    """A list of names that does not fill the page."""
    return some(names)
