"""The section of cases to look at: pictures, what is true and predicted, probabilities as bars."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunetv2.report.case_pictures import CasePicture, structure_colours
from nnunetv2.report.content import MODEL, ReportContent
from nnunetv2.report.markup import Markup, absent, element, joined, paragraph, percent, score
from nnunetv2.report.page_content import SEGMENTATION, PageContent
from nnunetv2.report.wording import count
from nnunetv2.utilities.label_handling.class_decision import predicted_target
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask


def cases_section(page: PageContent) -> list[Any]:
    """The worst cases of every task as pictures."""
    content = page.content
    if not page.worst:
        return [absent("No case is singled out: there is neither a reference segmentation nor a class.")]
    parts: list[Any] = []
    if "pictures" in content.missing:
        parts.append(absent(content.missing["pictures"]))
    elif page.pictures:
        parts += [_key(page)]
    if page.pictures and content.class_rows and not any(picture.saliency for picture in page.pictures.values()):
        parts.append(absent(_how_to_get_saliency(content)))
    for name, worst in page.worst.items():
        parts += [
            element("h3", _cases_title(page, name, len(worst))),
            element("div", [_card(page, name, *case) for case in worst], class_="cases"),
        ]
    return parts


def _how_to_get_saliency(content: ReportContent) -> str:
    """What to run for saliency maps."""
    wanted = f"fold_X/{content.validation_name}/saliency" if content.kind == MODEL else "saliency in the folder of the predictions"
    how = (
        "predict the validation cases with nnUNetv2_predict --save_cls --save_saliency and move the maps there"
        if content.kind == MODEL
        else "predict again with nnUNetv2_predict --save_cls --save_saliency"
    )
    return (
        "Saliency maps, which show where the network looked for a class, are missing: "
        f"there is no {wanted} with maps of these cases; {how}."
    )


def _cases_title(page: PageContent, name: str, number: int) -> str:
    """What the pictures below have in common."""
    if name == SEGMENTATION:
        return f"Segmentation: the {count(number, 'case')} with the lowest Dice"
    if name in page.classes:
        return f"{name}: the {count(number, 'case')} whose true class got the lowest probability"
    return f"{name}: the {count(number, 'case')} with the least certain prediction"


def _key(page: PageContent) -> Markup:
    """What lines and colours mean."""
    entries = [
        element("span", element("i", style=f"color: {colour}"), name) for name, colour in structure_colours(page.content.structures).items()
    ]
    lines = [element("span", element("i"), "solid: reference"), element("span", element("i", class_="dashed"), "dashed: prediction")]
    heat = (
        [element("span", element("i", class_="heat"), "saliency, low to high")] if any(p.saliency for p in page.pictures.values()) else []
    )
    return joined(
        paragraph(
            "Pictures show the slice that matters most, enlarged around the structures. L, R, A, P, S, I at the edges are left, right, "
            "front, back, head and foot of the patient."
        ),
        element("div", lines, entries, heat, class_="key"),
    )


def _card(page: PageContent, name: str, identifier: str, value: float) -> Markup:
    """One case: pictures, what is true and predicted, probabilities as bars."""
    content = page.content
    picture = page.pictures.get((name, identifier))
    fold = content.fold_of.get(identifier)
    parts: list[Any] = [element("h4", identifier, element("span", f" · fold {fold}", class_="soft") if fold is not None else None)]
    if name == SEGMENTATION:
        said = [_dice_bars(content, identifier)]
        said += [_verdict(content, task, identifier) for task in content.tasks.values() if identifier in content.class_rows]
    else:
        task = content.tasks[name]
        said = [_verdict(content, task, identifier), _probability_bars(content, task, identifier)]
    shown = [] if picture is None else _picture(picture, name)
    beside = picture is not None and picture.overlay is not None and picture.saliency is None
    parts.append(element("div", shown, element("div", said), class_="beside" if beside else None))
    return element("article", parts, class_="case")


def _picture(picture: CasePicture, name: str) -> list[Markup]:
    """Image and saliency side by side, and what is missing."""
    figures = []
    if picture.overlay is not None:
        figures.append(
            element(
                "figure",
                element("img", src=picture.overlay, alt=picture.text),
                element("figcaption", picture.where) if picture.where else None,
            )
        )
    if picture.saliency is not None:
        text = f"Saliency of {name} over the same slice."
        figures.append(element("figure", element("img", src=picture.saliency, alt=text), element("figcaption", f"saliency of {name}")))
    notes = [paragraph(note, class_="absent") for note in picture.notes]
    return [element("div", element("div", figures, class_="pictures") if figures else None, notes)]


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
    true = (
        [False] * task.num_classes
        if target is None
        else [bool(v) for v in (np.asarray(target) > 0.5 if task.is_multilabel else np.arange(task.num_classes) == target)]
    )
    cells = [_bar(label, float(p), percent(float(p)), is_true) for label, p, is_true in zip(task.classes, row, true, strict=True)]
    return element("div", cells, class_="bars")


def _dice_bars(content: ReportContent, identifier: str) -> Markup:
    """The Dice of every structure."""
    cells = []
    for name, values in content.overlaps[identifier].items():
        dice = values["Dice"]
        missed, invented = values.get("n_pred") == 0, values.get("n_ref") == 0
        text = "not there" if np.isnan(dice) else "invented" if invented else "missed" if missed else f"Dice {score(dice)}"
        cells.append(_bar(name, 0 if np.isnan(dice) else dice, text, True, mark=False))
    return element("div", cells, class_="bars")


def _bar(label: str, share: float, text: str, is_true: bool, mark: bool = True) -> Markup:
    """One row of bars; what is true is also written, so that it does not depend on the colour."""
    fill = element("span", class_="fill true" if is_true else "fill", style=f"width: {100 * min(max(share, 0), 1):.1f}%")
    return joined(
        element("span", label, [" ", element("span", "true", class_="tag")] if is_true and mark else None, class_="label"),
        element("span", fill, class_="track"),
        element("span", text, class_="number"),
    )
