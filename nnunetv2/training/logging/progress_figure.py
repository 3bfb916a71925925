"""``progress.png``: the curves of a training, one panel above the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2.utilities.file_io import atomic_path

CLASSIFICATION_PREFIX = "classification/"  # classification/{task}/{score}, classification/{task}/train_loss, classification/case_score

_WIDTH, _PANEL_HEIGHT, _LOW_PANEL_HEIGHT = 12.0, 4.2, 2.2  # inches; 100 dots each
_FEWEST_EPOCHS = 5  # width of the drawing at the start of a training
_SCORE_LIMITS = (-0.02, 1.02)


def save_progress_figure(curves: Mapping[str, Sequence[Any]], path: str | os.PathLike) -> None:
    """Draw the curves.

    Args:
        curves: By key one value per epoch, as kept by ``LocalLogger``. The classification panels are drawn when there are keys
            with the prefix ``classification/``.
        path: PNG file.
    """
    # Figure, not pyplot: no backend is switched for whoever imports this.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    classification = {key: _as_curve(values) for key, values in curves.items() if key.startswith(CLASSIFICATION_PREFIX)}
    classification = {key: values for key, values in classification.items() if np.isfinite(values).any()}
    losses = {key: values for key, values in classification.items() if "loss" in key}
    scores = {key: values for key, values in classification.items() if "loss" not in key}
    panels = [(_PANEL_HEIGHT, _draw_segmentation, curves)]
    if scores:
        panels.append((_PANEL_HEIGHT, _draw_scores, scores))
    if losses:
        panels.append((_PANEL_HEIGHT, _draw_classification_losses, losses))
    panels += [(_LOW_PANEL_HEIGHT, _draw_durations, curves), (_LOW_PANEL_HEIGHT, _draw_learning_rate, curves)]
    heights = [height for height, _, _ in panels]

    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    for axes, (_, draw, values) in zip(all_axes, panels, strict=True):
        draw(axes, values)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
    axes.set_xlabel("epoch")
    n_epochs = max(len(values) for values in curves.values())
    axes.set_xlim(-0.5, max(n_epochs, _FEWEST_EPOCHS) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_segmentation(axes: Any, curves: Mapping[str, Sequence[Any]]) -> None:
    """Losses on the left axis, pseudo Dice on the right."""
    _plot(axes, curves["train_losses"], "loss, training", color="tab:blue")
    _plot(axes, curves["val_losses"], "loss, validation", color="tab:red")
    axes.set(title="Segmentation", ylabel="loss")
    dice = axes.twinx()
    _plot(dice, curves["mean_fg_dice"], "pseudo Dice", color="tab:green", linestyle=":")
    _plot(dice, curves["ema_fg_dice"], "pseudo Dice, moving average", color="tab:green")
    dice.set(ylabel="pseudo Dice", ylim=_SCORE_LIMITS)
    _legend(axes, *axes.get_legend_handles_labels(), *dice.get_legend_handles_labels())


def _draw_scores(axes: Any, scores: Mapping[str, np.ndarray]) -> None:
    """Scores of the classification tasks: one colour per task, one line style per score."""
    tasks = list(dict.fromkeys(_task(key) for key in scores if _task(key)))
    kinds = list(dict.fromkeys(key.split("/")[-1] for key in scores if _task(key)))
    for key, values in scores.items():
        name = key.removeprefix(CLASSIFICATION_PREFIX)
        if _task(key):
            style = ("-", "--", "-.", ":")[kinds.index(key.split("/")[-1]) % 4]
            _plot(axes, values, _label(name), color=f"C{tasks.index(_task(key)) % 10}", linestyle=style, linewidth=1, alpha=0.7)
        else:  # over all tasks
            _plot(axes, values, _label(name), color="black", linewidth=2, linestyle="-" if "ema" in name else ":")
    lowest = min(np.nanmin(values) for values in scores.values())  # kappa can be negative
    axes.set(title="Classification, validation cases", ylabel="score", ylim=(min(_SCORE_LIMITS[0], lowest - 0.02), _SCORE_LIMITS[1]))
    _legend(axes, *axes.get_legend_handles_labels())


def _draw_classification_losses(axes: Any, losses: Mapping[str, np.ndarray]) -> None:
    """Losses of the classification tasks: one colour per task, validation dashed."""
    tasks = list(dict.fromkeys(_task(key) for key in losses))
    for key, values in losses.items():
        style = "--" if "val" in key.split("/")[-1] else "-"
        color = f"C{tasks.index(_task(key)) % 10}"
        _plot(axes, values, _label(key.removeprefix(CLASSIFICATION_PREFIX)), color=color, linestyle=style)
    axes.set(title="Classification loss", ylabel="cross-entropy")
    _legend(axes, *axes.get_legend_handles_labels())


def _draw_durations(axes: Any, curves: Mapping[str, Sequence[Any]]) -> None:
    """Seconds per epoch."""
    starts, ends = curves["epoch_start_timestamps"], curves["epoch_end_timestamps"]
    durations = [end - start for start, end in zip(starts, ends, strict=False)]  # an epoch may not have ended yet
    _plot(axes, durations, "epoch duration", color="tab:purple")
    axes.set(title="Duration", ylabel="seconds per epoch")
    axes.set_ylim(bottom=0)


def _draw_learning_rate(axes: Any, curves: Mapping[str, Sequence[Any]]) -> None:
    """Learning rate of the segmentation network."""
    _plot(axes, curves["lrs"], "learning rate", color="tab:orange")
    axes.set(title="Learning rate of the segmentation", ylabel="learning rate")
    axes.set_ylim(bottom=0)


def _plot(axes: Any, values: Sequence[Any], label: str, **style: Any) -> None:
    """One curve over the epochs, across epochs without a value; markers where there are too few values for a line."""
    curve = _as_curve(values)
    epochs = np.flatnonzero(np.isfinite(curve))
    axes.plot(epochs, curve[epochs], label=label, marker="o" if len(epochs) < 10 else None, markersize=4, **style)


def _legend(axes: Any, *handles_and_labels: Sequence[Any]) -> None:
    """A legend beside the panel, where it covers no curve."""
    handles = [handle for part in handles_and_labels[0::2] for handle in part]
    labels = [label for part in handles_and_labels[1::2] for label in part]
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.07, 1.0), borderaxespad=0, fontsize="small", frameon=False)


def _task(key: str) -> str:
    """Task in a key ``classification/{task}/{score}``; empty for keys over all tasks."""
    parts = key.removeprefix(CLASSIFICATION_PREFIX).split("/")
    return parts[0] if len(parts) > 1 else ""


def _label(name: str) -> str:
    """Legend text: ``subtype/macro_f1`` becomes ``subtype: macro f1``; names of tasks stay as they are."""
    task, _, score = name.rpartition("/")
    text = f"{score.removeprefix('ema_')}, moving average" if score.startswith("ema_") else score
    return f"{task}: {text.replace('_', ' ')}" if task else text.replace("_", " ")


def _as_curve(values: Sequence[Any]) -> np.ndarray:
    """One float per epoch; what is no single number is NaN."""
    return np.array([float(value) if np.ndim(value) == 0 and value is not None else np.nan for value in values], dtype=float)
