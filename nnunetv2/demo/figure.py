"""A picture of a few predicted cases: image, reference, prediction, true and predicted class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nnunetv2.demo.phantom import LABELS, SUBTYPES
from nnunetv2.utilities.file_io import atomic_path

COLOURS = {"organ": (0.12, 0.47, 0.71, 0.35), "lesion": (1.0, 0.5, 0.05, 0.55)}  # RGBA, told apart by colour-blind readers too


def plot_example_cases(
    output_file: Path,
    *,
    images: Path,
    references: Path,
    predictions: Path,
    file_ending: str,
    true_classes: Mapping[str, str],
    probabilities: Mapping[str, Mapping[str, float]],
) -> None:
    """Write a PNG with the first case of every subtype, each at the slice where the reference lesion is largest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = [next(k for k in sorted(true_classes) if true_classes[k] == subtype) for subtype in SUBTYPES]
    figure = Figure(figsize=(9.6, 10.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for row, identifier in zip(axes, cases, strict=True):
        image = _read(images / f"{identifier}_0000{file_ending}")
        reference = _read(references / f"{identifier}{file_ending}")
        prediction = _read(predictions / f"{identifier}{file_ending}")
        z = int((reference == LABELS["lesion"]).sum(axis=(1, 2)).argmax())
        grey_range = np.percentile(image, (0.5, 99.5))
        for axis, segmentation in zip(row, (None, reference[z], prediction[z]), strict=True):
            axis.imshow(image[z], cmap="gray", vmin=grey_range[0], vmax=grey_range[1])
            if segmentation is not None:
                axis.imshow(_overlay(segmentation))
            axis.set_axis_off()
        predicted = max(probabilities[identifier], key=probabilities[identifier].get)
        row[0].set_title(f"{identifier}, slice {z}", fontsize=10)
        row[1].set_title(f"reference: {true_classes[identifier]}", fontsize=10)
        row[2].set_title(
            f"prediction: {predicted} (p = {probabilities[identifier][predicted]:.2f})",
            fontsize=10,
            color="black" if predicted == true_classes[identifier] else "firebrick",
        )
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()],
        loc="outside lower center",
        ncols=len(COLOURS),
        frameon=False,
    )
    figure.suptitle("Simulated cases that were never trained on", fontsize=12)
    with atomic_path(output_file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _read(path: Path) -> np.ndarray:
    """A volume as ``(Z, Y, X)``."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _overlay(segmentation: np.ndarray) -> np.ndarray:
    """RGBA image of a ``(Y, X)`` label map, transparent where there is background."""
    overlay = np.zeros((*segmentation.shape, 4))
    for name, colour in COLOURS.items():
        overlay[segmentation == LABELS[name]] = colour
    return overlay
