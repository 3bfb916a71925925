"""Pictures of predicted classes: confusion matrix, ROC curves, reliability. Made to be read on a printed page.

Every picture can be had as a figure (``*_figure``) or as a PNG file (``plot_*``). Names of classes are never read as formulas, whatever
dollar signs they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.evaluation.classification_metrics import BIN_EDGES, indicators, roc_curve
from nnunetv2.utilities.file_io import atomic_path
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; more classes than colours change the line.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", ":", "-.")
GREY = "#999999"
DPI = 150
NORMAL_QUANTILE = 1.959964  # of 97.5 %, for 95 % intervals
MOST_PANELS_IN_A_ROW = 3


def plot_confusion(file: Path, task: ClassificationTask, report: Mapping[str, Any]) -> None:
    """Write :func:`confusion_figure` as a PNG."""
    _save(confusion_figure(task, report), file)


def confusion_figure(task: ClassificationTask, report: Mapping[str, Any]) -> Figure:
    """The confusion matrix: counts, and the colour is the share of the true class.

    Args:
        task: Its classes.
        report: Of :func:`~nnunetv2.evaluation.classification_metrics.task_report`, with ``n``.
    """
    if task.is_multilabel:
        matrices = map(np.asarray, report["confusion"])
        panels = [(matrix, ("absent", "present"), label) for matrix, label in zip(matrices, task.classes, strict=True)]
    else:
        panels = [(np.asarray(report["confusion"]), task.classes, "")]
    rows, columns = _grid(len(panels))
    longest = max(len(label) for _, labels, _ in panels for label in labels)
    size = max(2.2, 0.62 * len(panels[0][1])) + 0.09 * longest
    figure = new_figure((max(columns * (size + 0.9), 3.6), rows * (size + 0.7) + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis, (matrix, labels, title) in zip(axes, panels, strict=False):
        _confusion_panel(axis, matrix, labels, title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{task.name}: {report['n']} cases", fontsize=11)
    return figure


def _confusion_panel(axis: Axes, matrix: np.ndarray, labels: Sequence[str], title: str) -> None:
    """One matrix ``(K, K)``, rows are true classes."""
    of_class = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, of_class, out=np.zeros(matrix.shape), where=of_class > 0)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    small = 9 if len(labels) <= 6 else 7
    for (row, column), count in np.ndenumerate(matrix):
        text = f"{count}\n{share[row, column]:.0%}" if count else "0"
        colour = "white" if share[row, column] > 0.55 else "black" if count else GREY
        axis.text(column, row, text, ha="center", va="center", fontsize=small, color=colour)
    axis.set_xticks(range(len(labels)), [plain_text(label) for label in labels], fontsize=small)
    if max(map(len, labels)) * len(labels) > 22:
        axis.tick_params(axis="x", rotation=40)
        for text in axis.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    with_counts = [f"{plain_text(label)}\n(n = {n})" for label, n in zip(labels, of_class[:, 0], strict=True)]
    axis.set_yticks(range(len(labels)), with_counts, fontsize=small)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    axis.set_title(plain_text(title), fontsize=10)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def plot_roc(
    file: Path,
    task: ClassificationTask,
    targets: Sequence[int | np.ndarray],
    probabilities: Sequence[np.ndarray],
    report: Mapping[str, Any],
    intervals: Mapping[str, Any],
) -> None:
    """Write :func:`roc_figure` as a PNG."""
    _save(roc_figure(task, targets, probabilities, report, intervals), file)


def roc_figure(
    task: ClassificationTask,
    targets: Sequence[int | np.ndarray],
    probabilities: Sequence[np.ndarray],
    report: Mapping[str, Any],
    intervals: Mapping[str, Any],
) -> Figure:
    """The ROC curve of every class against the rest; classes without cases of both kinds are named only.

    Args:
        task: Its classes.
        targets: What is true, by case.
        probabilities: ``(K,)`` by case.
        report: Of :func:`~nnunetv2.evaluation.classification_metrics.task_report`, with ``n``.
        intervals: Of :func:`~nnunetv2.evaluation.bootstrap.bootstrap_intervals`.
    """
    truth = indicators(task, targets)
    scores = np.asarray(probabilities, dtype=np.float64).reshape(-1, task.num_classes)
    figure = new_figure((5.2, 5.3 + 0.22 * task.num_classes))
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for k, label in enumerate(task.classes):
        n = int(truth[:, k].sum())
        if n in (0, len(truth)):
            axis.plot([], [], color="none", label=f"{plain_text(label)}: {n} of {len(truth)} cases, no curve")
            continue
        interval = intervals["per_class"][label]["auroc"]
        text = f"{plain_text(label)} (n = {n}): {report['per_class'][label]['auroc']:.2f}{interval_text(interval)}"
        axis.plot(*roc_curve(truth[:, k], scores[:, k]), **line_style(k), label=text)
    _unit_square(axis, "1 - specificity (false positive rate)", "sensitivity (true positive rate)")
    figure.suptitle(f"{task.name}: ROC, each class against the rest, {report['n']} cases", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, title="area under the curve (95 % interval)", title_fontsize=9)
    return figure


def plot_reliability(file: Path, title: str, panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> None:
    """Write :func:`reliability_figure` as a PNG."""
    _save(reliability_figure(title, panels), file)


def reliability_figure(title: str, panels: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> Figure:
    """How often what is predicted with a probability is so, with 95 % (Wilson) intervals, and below how many cases that are.

    Args:
        title: Above the picture.
        panels: By title of a panel, and in it by name of a curve, the bins of
            :func:`~nnunetv2.evaluation.classification_metrics.reliability`.
    """
    rows, columns = _grid(len(panels))
    width = 4.6 if len(panels) == 1 else 3.3
    figure = new_figure((columns * width, rows * width * 1.32 + 0.9))
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex="col", height_ratios=(4, 1) * rows)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for index, (panel, curves) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        members = {name: curves[name] for name in names if name in curves}
        _reliability_panel(axes[2 * row, column], axes[2 * row + 1, column], panel, members)
    for index in range(len(panels), rows * columns):
        row, column = divmod(index, columns)
        axes[2 * row, column].set_axis_off()
        axes[2 * row + 1, column].set_axis_off()
    figure.suptitle(title, fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False, ncols=len(labels))
    return figure


def _reliability_panel(upper: Axes, lower: Axes, title: str, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Curves above, numbers of cases below."""
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    bin_width = BIN_EDGES[1] - BIN_EDGES[0]
    bar_width = 0.8 * bin_width / len(curves)
    for index, (name, bins) in enumerate(curves.items()):
        x, y, n, left = (np.array([values[key] for values in bins]) for key in ("mean_probability", "frequency", "n", "low"))
        low, high = wilson_interval(y, n)
        upper.errorbar(x, y, (y - low, high - y), **line_style(index), marker="o", markersize=4, capsize=2, elinewidth=1, label=name)
        bars = lower.bar(left + 0.1 * bin_width + index * bar_width, n, width=bar_width, align="edge", color=line_style(index)["color"])
        if len(curves) == 1:
            lower.bar_label(bars, fontsize=7)
    _unit_square(upper, "", "observed frequency")
    upper.set_title(plain_text(title), fontsize=10)
    lower.set_xlabel("predicted probability", fontsize=9)
    lower.set_ylabel("cases", fontsize=9)
    lower.tick_params(labelsize=8, labelbottom=True)
    lower.margins(y=0.3)
    lower.spines[["top", "right"]].set_visible(False)


def interval_text(interval: Mapping[str, float], digits: int = 2) -> str:
    """`` (0.71-0.86)``, or nothing where there is no interval."""
    return f" ({interval['low']:.{digits}f}-{interval['high']:.{digits}f})" if interval["draws"] else ""


def wilson_interval(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of shares of ``n`` cases (Wilson's score interval)."""
    square = NORMAL_QUANTILE**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE * np.sqrt(share * (1 - share) / n + square / (4 * n**2)) / (1 + square / n)
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def plain_text(name: str) -> str:
    """A name as matplotlib shows it unchanged: no formula between dollar signs, and not left out of legends for its first underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns for a number of panels."""
    columns = 2 if panels == 4 else min(panels, MOST_PANELS_IN_A_ROW)
    return -(-panels // columns), columns


def line_style(index: int) -> dict[str, Any]:
    """Colour and line of the curve with this number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)], "linewidth": 1.6}


def _unit_square(axis: Axes, x_label: str, y_label: str) -> None:
    """Both axes from 0 to 1."""
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure (inches) with a canvas of its own, so that no window system and no global state is involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, file: Path) -> None:
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", bbox_inches="tight", pad_inches=0.1)
