"""Two installations measured in alternating runs, each run a process of its own; what the benchmarks share.

Figures are kept in ``documentation/performance/figures.json``, where ``performance_page.py`` takes them from.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEPT = Path(__file__).parents[2] / "documentation" / "performance" / "figures.json"
SECONDS_BETWEEN_SAMPLES = 0.1
Figures = dict[str, float]
# A process inherits the peak memory of the one that starts it, so the one that starts it is small. What a process leaves running is ended.
LAUNCHER = """
import os, signal, sys, time
start = time.perf_counter()
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, setpgroup=0)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - start
try:
    os.killpg(process, signal.SIGKILL)
except ProcessLookupError:
    pass
with open(sys.argv[1], 'w') as file:
    file.write(f'{seconds} {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss}')
sys.exit(status != 0)
"""


@dataclass
class Side:
    """One installation, with folders of its own."""

    name: str
    python: Path
    raw: Path
    work: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = dict(
            os.environ,
            nnUNet_raw=str(self.raw),
            nnUNet_preprocessed=str(self.work / self.name / "preprocessed"),
            nnUNet_results=str(self.work / self.name / "results"),
            nnUNet_compile="f",
            nnUNet_n_proc_DA="2",
            PATH=f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
        )
        for key in ("nnUNet_preprocessed", "nnUNet_results"):
            Path(self.environment[key]).mkdir(parents=True, exist_ok=True)

    def folder(self, kind: str, dataset: str) -> Path:
        return Path(self.environment[f"nnUNet_{kind}"]) / dataset

    def command(self, name: str) -> Path:
        """A console script of this installation."""
        return self.python.parent / name

    def run(self, *command: object, threads: int | None = None, whole_tree: bool = False) -> tuple[str, Figures]:
        """Standard output, and what the process took.

        Args:
            command: Program and arguments.
            threads: Of the numerical libraries; None: as they like.
            whole_tree: Also measure the memory of all processes together, which costs a little time.

        Returns:
            The text, and ``time`` (wall) and ``cpu`` (all threads and children) in seconds, ``memory`` (largest process, resident) and
            ``tree`` (sum of proportional set sizes of all processes) in MiB.
        """
        environment = self.environment if threads is None else self.environment | {"OMP_NUM_THREADS": str(threads)}
        peaks = [0.0]
        with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r") as usage:
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", LAUNCHER, usage.name, *map(str, command)],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.work,
            )
            watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
            if whole_tree:
                watcher.start()
            process.wait()
            if whole_tree:
                watcher.join()
            output.seek(0)
            text = output.read()
            if process.returncode:
                sys.exit(f"{self.name}: {' '.join(map(str, command))[:200]}\n{text[-3000:]}")
            seconds, cpu, resident = map(float, usage.read().split())
        resident /= 1024 if sys.platform.startswith("linux") else 1024**2  # Linux reports KiB, macOS bytes
        return text, {"time": seconds, "cpu": cpu, "memory": resident, "tree": peaks[0]}

    def script(self, code: str, *arguments: object, threads: int | None = None, whole_tree: bool = False) -> Figures:
        """What a Python script took; what it prints as JSON after ``FIGURES`` takes the place of what was measured from outside."""
        text, figures = self.run(self.python, "-c", code, *arguments, threads=threads, whole_tree=whole_tree)
        printed = json.loads(text.rsplit("FIGURES", 1)[1].splitlines()[0]) if "FIGURES" in text else {}
        return {**{f"total_{name}": value for name, value in figures.items()}, **figures, **printed}


def _watch(process: subprocess.Popen, peaks: list[float]) -> None:
    """Keep the largest sum of proportional set sizes (Linux) while the process runs."""
    while process.returncode is None:
        peaks[0] = max(peaks[0], sum(_proportional_set_size(number) for number in _tree(process.pid)[1:]))  # without the launcher
        time.sleep(SECONDS_BETWEEN_SAMPLES)


def _tree(number: int) -> list[int]:
    """A process and its descendants."""
    numbers = [number]
    for parent in numbers:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                numbers += [int(child) for child in file.read_text().split()]
            except OSError:  # ended meanwhile
                continue
    return numbers


def _proportional_set_size(number: int) -> float:
    """MiB of a process, shared pages counted in part; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def argument_parser(description: str, measurements: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=Path(sys.executable), help="Python with this package")
    parser.add_argument("--reference", type=Path, required=True, help="Python with nnunetv2==2.8.1")
    parser.add_argument("--only", nargs="+", choices=measurements, default=list(measurements))
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=None, help="folder for all files, used again; a temporary one if not given")
    parser.add_argument("--keep", action="store_true", help=f"keep the figures in {KEPT.parent.name}/{KEPT.name} of the documentation")
    return parser


class Comparison:
    """Measures both sides in turn, prints ratios of medians and keeps the figures."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work = (args.work or Path(tempfile.mkdtemp(prefix="nnunet-benchmark-"))).absolute()
        self.raw = self.work / "raw"
        self.raw.mkdir(parents=True, exist_ok=True)
        # absolute, not resolved: a virtual environment's python is a link that must stay one
        self.sides = [
            Side(name, python.absolute(), self.raw, self.work) for name, python in (("ours", args.ours), ("reference", args.reference))
        ]
        self._repeats = args.repeats
        self._keep = args.keep
        print(f"{args.repeats} alternating runs, ours / nnunetv2 2.8.1, medians\n{'':<60} {'figure':>8} {'ratio':>7}", flush=True)

    @property
    def ours(self) -> Side:
        return self.sides[0]

    @property
    def reference(self) -> Side:
        return self.sides[1]

    def measure(
        self, row: str, what: str, measurement: Callable[[Side], Figures], figures: Sequence[str] = ("time", "memory")
    ) -> dict[str, Figures]:
        """Measure both sides, print and keep each of the ``figures``; returns the medians by side."""
        found: dict[str, list[Figures]] = {side.name: [] for side in self.sides}
        for repeat in range(self._repeats):
            for side in self.sides if repeat % 2 == 0 else reversed(self.sides):  # neither side always runs on a warmer machine
                found[side.name].append(measurement(side))
        for figure in figures:
            self.keep(row, what, figure, {name: [run[figure] for run in runs] for name, runs in found.items()})
        return {name: {figure: statistics.median(run[figure] for run in runs) for figure in figures} for name, runs in found.items()}

    def keep(self, row: str, what: str, figure: str, values: dict[str, list[float]]) -> None:
        """Print the ratio of one figure and keep the values of both sides."""
        ours, reference = (statistics.median(values[side.name]) for side in self.sides)
        ratio = f"{ours / reference:7.3f}" if reference else "      -"
        print(f"{row:<5} {what:<54} {figure:>8} {ratio}   {ours:.4g} / {reference:.4g}", flush=True)
        if self._keep:
            keep(row, what, figure, values)


def keep(row: str, what: str, figure: str, values: dict[str, list[float]]) -> None:
    """Store one figure in place of an earlier one of the same name."""
    entries = [e for e in kept() if (e["row"], e["what"], e["figure"]) != (row, what, figure)]
    rounded = {name: [float(f"{value:.5g}") for value in column] for name, column in values.items()}
    entries.append({"row": row, "what": what, "figure": figure, **rounded})
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    temporary = KEPT.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")
    temporary.replace(KEPT)


def kept() -> list[dict]:
    """All figures that were kept."""
    return json.loads(KEPT.read_text()) if KEPT.is_file() else []
