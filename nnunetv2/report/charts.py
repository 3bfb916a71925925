"""Charts of a report as pictures that a page can hold: SVG in a data address, with a text for those who cannot see it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.evaluation.classification_figures import (
    COLOURS,
    GREY,
    confusion_figure,
    new_figure,
    plain_text,
    reliability_figure,
    roc_figure,
)
from nnunetv2.evaluation.classification_metrics import case_score_name
from nnunetv2.report.content import FoldTraining
from nnunetv2.report.scores import SegmentationScores
from nnunetv2.training.logging.progress_figure import CLASSIFICATION_PREFIX
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_POINT = 96 / 72  # CSS
WIDTH = 4.6  # inches: a chart then shrinks little on a phone, and its text stays readable
SCORE_NAMES = {"macro_f1": "macro-F1", "macro_average_precision": "average precision", "quadratic_kappa": "quadratic kappa"}
MOST_POINTS = 400  # cases drawn one by one above a box; more hide it
WHISKERS = 1.5  # box lengths, as Tukey drew them
POINT_SEED = 0  # of the sideways scatter of points, so that a page is the same each time


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with what is said about it."""

    address: str  # data:image/...;base64,...
    width: int  # CSS pixels
    height: int
    text: str  # for those who cannot see it
    title: str
    caption: str


def chart(figure: Figure, *, title: str, caption: str, text: str, trimmed: bool = False) -> Chart:
    """The figure as SVG; letters are outlines, so that it looks the same on every machine.

    Args:
        figure: To draw.
        title: Above the caption.
        caption: What the reader sees.
        text: For those who cannot see it.
        trimmed: Cut off empty margins, which takes as long as drawing it once more.
    """
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "nnunetv2", "svg.fonttype": "path"}):
        figure.savefig(
            stream, format="svg", bbox_inches="tight" if trimmed else None, pad_inches=0.05, metadata={"Date": None, "Creator": None}
        )
    svg = stream.getvalue()
    width, height = (round(float(size) * PIXELS_PER_POINT) for size in re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups())
    address = "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    return Chart(address=address, width=width, height=height, text=text, title=title, caption=caption)


# segmentation


def dice_chart(scores: SegmentationScores) -> Chart:
    """A box for every structure and a point for every case."""
    structures = {name: s for name, s in scores.structures.items() if s.dice}
    figure = new_figure((WIDTH, 0.9 + 0.55 * len(structures)))
    axes = figure.subplots()
    values = [list(s.dice.values()) for s in structures.values()]
    positions = np.arange(len(structures), 0, -1)
    scatter = np.random.default_rng(POINT_SEED)
    for position, dice in zip(positions, values, strict=True):
        _draw_box(axes, float(position), np.asarray(dice))
        if len(dice) <= MOST_POINTS:
            axes.plot(
                dice, position + scatter.uniform(-0.16, 0.16, len(dice)), "o", color="#0072b2", alpha=0.55, markersize=3, markeredgewidth=0
            )
    axes.set_yticks(positions, [f"{plain_text(name)}\n(n = {s.cases})" for name, s in structures.items()], fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(0.4, len(structures) + 0.6))
    axes.set_xlabel("Dice (1 = the outlines agree completely)", fontsize=9)
    _tidy(axes)
    text = "; ".join(
        f"{name}: median {s.quartiles[1]:.2f}, half of the cases from {s.quartiles[0]:.2f} to {s.quartiles[2]:.2f}"
        for name, s in structures.items()
    )
    return chart(
        figure,
        title="Dice of every case",
        caption="Every point is a case; the box holds the middle half of the cases, the line in it is the median, and the whiskers reach "
        "to the last case within one and a half box lengths.",
        text=f"Box plot of the Dice by structure. {text}.",
    )


def _draw_box(axes: Axes, position: float, values: np.ndarray) -> None:
    """Box, median and whiskers of values along the x axis. Not ``Axes.boxplot``, whose options differ between versions."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    reach = WHISKERS * (high - low)
    first, last = values[values >= low - reach].min(), values[values <= high + reach].max()
    line = {"color": "#33546e", "linewidth": 1}
    axes.barh(position, high - low, left=low, height=0.5, facecolor="#dbe9f4", edgecolor="#33546e")
    axes.plot([first, low], [position, position], **line)
    axes.plot([high, last], [position, position], **line)
    for end in (first, last):
        axes.plot([end, end], [position - 0.12, position + 0.12], **line)
    axes.plot([median, median], [position - 0.25, position + 0.25], color="#d55e00", linewidth=2)


# training


def training_charts(trainings: Sequence[FoldTraining], tasks: Mapping[str, ClassificationTask]) -> list[Chart]:
    """Loss and Dice of the segmentation, then loss and score of every classification task, all folds in one chart."""
    segmentation_loss = _curve_chart(
        trainings,
        {"training": ("train_loss_segmentation", "train_losses"), "validation": ("val_loss_segmentation", "val_losses")},
        title="Segmentation loss",
        y_label="loss",
        caption="What the training makes as small as it can; a validation curve that rises again while training falls shows that cases are "
        "learned by heart.",
    )
    dice = _curve_chart(
        trainings,
        {"moving average": ("ema_fg_dice",), "single epochs": ("mean_fg_dice",)},
        title="Dice of validation patches",
        y_label="pseudo Dice",
        caption="Overlap on random patches of held-out cases during the training; the scores on whole cases below are the ones that count.",
        is_score=True,
    )
    charts = [segmentation_loss, dice]
    for name, task in tasks.items():
        charts.append(
            _curve_chart(
                trainings,
                {"training": (f"{CLASSIFICATION_PREFIX}{name}/train_loss",), "validation": (f"{CLASSIFICATION_PREFIX}{name}/val_loss",)},
                title=f"{name}: loss",
                y_label="cross-entropy",
                caption=f"How far the probabilities of {name} are from the truth, on patches; lower is better.",
            )
        )
        score = case_score_name(task)
        charts.append(
            _curve_chart(
                trainings,
                {SCORE_NAMES[score]: (f"{CLASSIFICATION_PREFIX}{name}/{score}",), "AUROC": (f"{CLASSIFICATION_PREFIX}{name}/auroc",)},
                title=f"{name}: scores",
                y_label="score",
                caption=f"Scores of {name} on those held-out cases that the patches of an epoch came from, before any refit of the heads.",
                is_score=True,
            )
        )
    return [one for one in charts if one is not None]


def _curve_chart(
    trainings: Sequence[FoldTraining],
    keys: Mapping[str, Sequence[str]],
    *,
    title: str,
    y_label: str,
    caption: str,
    is_score: bool = False,
) -> Chart | None:
    """Curves by name, the first of the keys that a fold has; a colour for each fold, a line for each name. None without any value."""
    curves = {}
    for training in trainings:
        for name, candidates in keys.items():
            values = next((curve for key in candidates if np.isfinite(curve := as_curve(training.curves.get(key, ()))).any()), None)
            if values is not None:
                curves[training.fold, name] = values
    if not curves:
        return None
    figure = new_figure((WIDTH, 3.3))
    axes = figure.subplots()
    folds = list(dict.fromkeys(fold for fold, _ in curves))
    names = [name for name in keys if any(name == other for _, other in curves)]
    for (fold, name), values in curves.items():
        epochs = np.flatnonzero(np.isfinite(values))
        # One fold: a colour for each curve. Several: a colour for each fold, a line for each curve.
        colour = COLOURS[(folds.index(fold) if len(folds) > 1 else names.index(name)) % len(COLOURS)]
        style = {"linewidth": 1.6 if names.index(name) == 0 else 1.1, "linestyle": ("-", "--")[names.index(name)]}
        label = name if len(folds) == 1 else f"fold {fold}, {name}"
        axes.plot(epochs, values[epochs], color=colour, label=label, marker="o" if len(epochs) < 10 else None, markersize=3, **style)
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    if is_score:
        axes.set_ylim(min(-0.02, min(np.nanmin(values) for values in curves.values()) - 0.02), 1.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _tidy(axes)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    text = "; ".join(
        f"fold {fold}, {name}: from {_first(values):.2f} to {_last(values):.2f} after {len(values)} epochs"
        for (fold, name), values in curves.items()
    )
    return chart(figure, title=title, caption=caption, text=f"{title} over the epochs. {text}.")


def as_curve(values: Sequence[Any]) -> np.ndarray:
    """One float per epoch; what is no single number is NaN."""
    return np.array([float(v) if isinstance(v, (int, float)) else np.nan for v in values], dtype=float)


def _first(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)][0])


def _last(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)][-1])


# classes


def class_charts(
    task: ClassificationTask,
    targets: Sequence[Any],
    probabilities: Sequence[np.ndarray],
    report: Mapping[str, Any],
    reliabilities: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
) -> list[Chart]:
    """Confusion matrix, ROC curves and reliability of a task.

    Args:
        task: Its classes.
        targets: What is true, by case.
        probabilities: ``(K,)`` by case.
        report: Of :func:`~nnunetv2.report.scores.class_scores`.
        reliabilities: By name of a curve, such as raw and calibrated, the bins of
            :func:`~nnunetv2.evaluation.classification_metrics.reliability`.
    """
    areas = "; ".join(f"{label}: {values['auroc']:.2f}" for label, values in report["per_class"].items() if not np.isnan(values["auroc"]))
    panels = {panel: {name: curves[panel] for name, curves in reliabilities.items()} for panel in next(iter(reliabilities.values()))}
    return [
        chart(
            confusion_figure(task, report),
            trimmed=True,
            title="Confusion matrix",
            caption="Rows are what is true, columns what was predicted: cases on the diagonal are right, and the percentage is the share "
            "of the row.",
            text=f"Confusion matrix of {task.name}. {confusion_text(task, report['confusion'])}",
        ),
        chart(
            roc_figure(task, targets, probabilities, report, report["intervals"]),
            trimmed=True,
            title="ROC curves",
            caption="For every possible threshold, the share of cases of a class that are found against the share of the others that are "
            "taken for it; the dashed diagonal is guessing.",
            text=f"ROC curves of {task.name}, each class against the rest. Area under the curve: {areas or 'cannot be computed'}.",
        ),
        chart(
            reliability_figure(f"{task.name}: reliability, {report['n']} cases", panels),
            trimmed=True,
            title="Reliability",
            caption="Whether a predicted probability of, say, 80 % comes true in 80 % of the cases: points on the diagonal are honest, "
            "points below it are too sure of themselves.",
            text=f"Reliability of {task.name}. {reliability_text(panels)}",
        ),
    ]


def confusion_text(task: ClassificationTask, confusion: Sequence[Any]) -> str:
    """The matrix in words."""
    if task.is_multilabel:
        parts = [
            f"{label}: {m[1][1]} found, {m[1][0]} missed, {m[0][1]} wrongly predicted"
            for label, m in zip(task.classes, confusion, strict=True)
        ]
        return "; ".join(parts) + "."
    parts = []
    for label, row in zip(task.classes, confusion, strict=True):
        predicted = ", ".join(f"{n} as {other}" for other, n in zip(task.classes, row, strict=True) if n)
        parts.append(f"{label}: {predicted or 'no case'}")
    return "; ".join(parts) + "."


def reliability_text(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """The bins in words."""
    parts = []
    for panel, curves in panels.items():
        for name, bins in curves.items():
            listed = ", ".join(f"predicted {b['mean_probability']:.2f}, true in {b['frequency']:.2f} of {b['n']}" for b in bins)
            parts.append(f"{panel}, {name}: {listed or 'no case'}")
    return "; ".join(parts) + "."


def _tidy(axes: Axes) -> None:
    """Light grid, no frame."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
