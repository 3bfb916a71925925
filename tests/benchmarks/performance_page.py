#!/usr/bin/env python3
"""Write the table and the pictures of ``documentation/performance.md`` from the figures that the benchmarks kept.

python tests/benchmarks/performance_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from alternating import KEPT, kept

PAGE = KEPT.parents[1] / "performance.md"
FIRST, LAST = "<!-- table: made by tests/benchmarks/performance_page.py -->", "<!-- end of the table -->"
# (row, beginning of what is measured, figure): target and stretch
TARGETS = {
    ("T1", "nnUNetv2", "time"): ("0.05", "0.02"),
    ("T1", "nnUNetv2", "memory"): ("0.06", ""),
    ("T2", "", "time"): ("0.50", "0.40"),
    ("T3", "resampling, image", "time"): ("0.08", "0.03"),
    ("T4", "resampling, 4 labels", "time"): ("0.10", ""),
    ("T4", "resampling, 60 labels", "time"): ("0.02", ""),
    ("T5", "preprocessing, 24 cases, -np 2", "time"): ("0.20", "0.12"),
    ("T6", "loader", "time"): ("0.25", "0.17"),
    ("T7", "", "time"): ("0.87", "0.75"),
    ("T8", "", "time"): ("1.02", ""),
    ("T8", "", "memory"): ("1.02", ""),
    ("T9", "", "time"): ("0.10", "0.05"),
    ("T10", "export, 61 classes, blobs", "time"): ("0.10", "0.05"),
    ("T10", "export, 61 classes, blobs", "memory"): ("0.08", "0.03"),
    ("T10", "export, 61 classes, noise", "time"): ("0.10", "0.05"),
    ("T10", "export, 61 classes, noise", "memory"): ("0.08", "0.03"),
    ("T11", "one image to its file", "time"): ("0.45", "0.30"),
    ("T11", "one image to its file", "tree"): ("0.35", "0.25"),
    ("T12", "more memory", "tree"): ("0.20", "0.05"),
    ("T13", "", "single_time"): ("0.10", ""),
    ("T13", "", "list_time"): ("0.10", ""),
}
NAMES = {
    "time": "time",
    "memory": "peak memory",
    "tree": "peak memory, all processes",
    "convolutions": "convolutions, of a training step",
    "copying": "copying as many values once, of adding them up",
    "save": "writing a checkpoint, of the time of 250 training steps",
    "single_time": "time beside the network, one call each",
    "single_with_network": "time, one call each",
    "list_time": "time beside the network, as a list",
    "list_with_network": "time, as a list",
}
# figures that are shares: row, and target of ours
SHARES = {"convolutions": ("T7", ""), "copying": ("T9", ""), "save": ("T14", "0.01")}
# what the growth figures show, and the words below their axis
GROWTH = {
    "size": "image size, multiples of the smallest (prediction, 5 classes)",
    "classes": "number of classes (prediction of one image)",
    "cases": "number of cases (preprocessing, two processes)",
    "workers": "number of processes (preprocessing of 12 cases)",
}


def table(entries: Sequence[dict]) -> str:
    """Markdown: a line for every figure, ours divided by the reference."""
    lines = ["| | what | figure | ratio | single runs | target | stretch |", "| --- | --- | --- | --- | --- | --- | --- |"]
    # CPU times say the same where one thread works
    rows = [entry for entry in entries if entry["row"] not in GROWTH and not entry["figure"].endswith("cpu")]
    for entry in sorted(rows, key=lambda entry: int(entry["row"][1:])):
        ours, reference = statistics.median(entry["ours"]), statistics.median(entry["reference"])
        pairs = [a / b for a, b in zip(entry["ours"], entry["reference"], strict=True) if b]
        target, stretch = _targets(entry)
        spread = f"{_ratio(min(pairs))} to {_ratio(max(pairs))}" if len(pairs) > 1 else ""
        figure = NAMES[entry["figure"]]
        if entry["figure"] in SHARES:  # what counts is the share, not the ratio
            row, target = SHARES[entry["figure"]]
            lines.append(f"| {row} | {figure} | share of ours, of the reference's | {ours:.3f}, {reference:.3f} | | {target} | |")
            continue
        lines.append(f"| {entry['row']} | {entry['what']} | {figure} | {_ratio(ours / reference)} | {spread} | {target} | {stretch} |")
    return "\n".join(lines)


def _targets(entry: dict) -> tuple[str, str]:
    if "reference with torch" in entry["what"] or "with probabilities" in entry["what"]:
        return "", ""
    for (row, what, figure), targets in TARGETS.items():
        if entry["row"] == row and entry["figure"] == figure and entry["what"].startswith(what):
            return targets
    return "", ""


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def write_page() -> None:
    """Put the table between its marks."""
    text = PAGE.read_text()
    before, rest = text.split(FIRST, 1)
    after = rest.split(LAST, 1)[1]
    PAGE.write_text(f"{before}{FIRST}\n\n{table(kept())}\n\n{LAST}{after}")


def draw(folder: Path) -> None:
    """Time and memory of both sides against the work, as multiples of the reference's smallest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for row, words in GROWTH.items():
        entries = [entry for entry in kept() if entry["row"] == row]
        if not entries:
            continue
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for axis, key in zip(axes, ("time", "tree"), strict=True):
            points = sorted((entry for entry in entries if entry["figure"] == key), key=lambda entry: int(entry["what"]))
            unit = statistics.median(points[0]["reference"])
            positions = [int(entry["what"]) for entry in points]
            for side, label, colour in (("reference", "nnunetv2 2.8.1", "#888888"), ("ours", "this package", "#1f77b4")):
                values = [statistics.median(entry[side]) / unit for entry in points]
                axis.plot(positions, values, "o-", label=label, color=colour)
            axis.set_xticks(positions)
            axis.set_ylim(bottom=0)
            axis.set_title(NAMES[key], fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False)
        figure.supxlabel(words, fontsize=10)
        figure.savefig(folder / f"growth_{row}.png", dpi=110)
        plt.close(figure)


def main() -> None:
    """Table and pictures."""
    write_page()
    draw(KEPT.parent)


if __name__ == "__main__":
    main()
