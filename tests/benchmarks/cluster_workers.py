#!/usr/bin/env python3
"""Preprocessing and prediction on a Dask cluster of this machine: how much faster are two workers than one?

    pip install -e ".[cluster]"
    python tests/benchmarks/cluster_workers.py --cases 16 64

Each worker has one thread. Printed are medians of alternating runs of the whole commands, for each number of cases, and for the cases that
the largest number has more than the smallest: what does not depend on the number of cases, such as imports, is left out there. Two
processes share one memory; what that costs is measured by two processes that copy arrays at the same time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from synthetic_dataset import plan_unet, write_dataset

FIRST_DATASET = 908  # each number of cases is a dataset of its own
COPY_BYTES, COPIES = 256 * 1024**2, 12


@contextmanager
def cluster(workers: int):
    """Address of a scheduler."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1", silence_logs=50
    ) as local:
        local.wait_for_workers(workers)
        yield local.scheduler_address


def seconds(command: str, *arguments: object) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    done = subprocess.run([Path(sys.executable).parent / command, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def copy_arrays(_: int) -> float:
    """Seconds of copying a large array several times."""
    import numpy as np

    source = np.ones(COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    start = time.perf_counter()
    for _ in range(COPIES):
        target[:] = source
    return time.perf_counter() - start


def write_cases(folder: Path, number: int, cases: int) -> None:
    """A planned dataset, not yet preprocessed."""
    name = f"Dataset{number}_Cluster"
    write_dataset(folder / "raw" / name, cases, (96, 160, 160), spacings=(0.8, 1.25))
    seconds("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "-npfp", 2, "--no_pbar")
    plan_unet(folder / "preprocessed" / name, 64, [4, 8, 16, 16], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--cases", type=int, nargs="+", default=[16, 64], help="(default: 16 64)")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}  # also for the workers, which inherit it
    with tempfile.TemporaryDirectory(prefix="nnunet-workers-") as temporary:
        folder = Path(temporary)
        for name in ("raw", "preprocessed", "results"):
            (folder / name).mkdir()
            os.environ[f"nnUNet_{name}"] = str(folder / name)
        numbers = {cases: FIRST_DATASET + index for index, cases in enumerate(args.cases)}
        for cases, number in numbers.items():
            write_cases(folder, number, cases)
        from prediction_with_reference import write_model  # noqa: PLC0415

        model = write_model(folder / "model", 5, (64, 64, 64))

        def preprocess(number: int, *options: object) -> float:
            shutil.rmtree(folder / "preprocessed" / f"Dataset{number}_Cluster" / "nnUNetPlans_3d_fullres", ignore_errors=True)
            return seconds("nnUNetv2_preprocess", "-d", number, "-c", "3d_fullres", "--no_pbar", *options)

        def predict(number: int, *options: object) -> float:
            images = folder / "raw" / f"Dataset{number}_Cluster" / "imagesTr"
            shutil.rmtree(folder / "out", ignore_errors=True)
            arguments = (
                "-i",
                images,
                "-o",
                folder / "out",
                "-m",
                model,
                "-f",
                0,
                "-device",
                "cpu",
                "--disable_tta",
                "--disable_progress_bar",
            )
            return seconds("nnUNetv2_predict_from_modelfolder", *arguments, *options)

        stages = {"preprocessing": preprocess, "prediction": predict}
        found: dict[tuple[str, int, int], list[float]] = {}
        for repeat in range(args.repeats):
            for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
                with cluster(workers) as address:
                    for cases, number in numbers.items():
                        for name, stage in stages.items():
                            found.setdefault((name, cases, workers), []).append(stage(number, "--scheduler", address))
        medians = {key: statistics.median(values) for key, values in found.items()}
        few, many = min(args.cases), max(args.cases)
        for name in stages:
            for cases in args.cases:
                report(f"{name}, {cases} cases", medians[name, cases, 1], medians[name, cases, 2])
            if few < many:
                report(f"{name}, {many - few} cases more", *(medians[name, many, n] - medians[name, few, n] for n in (1, 2)))
        with get_context("spawn").Pool(2) as pool:
            alone = pool.map(copy_arrays, [0])[0]
            together = max(pool.map(copy_arrays, [0, 1], chunksize=1))
        print(f"copying arrays of {COPY_BYTES // 1024**2} MiB: two processes at once are {2 * alone / together:.2f} times as fast as one")


def report(what: str, one: float, two: float) -> None:
    """Print how much faster two workers are."""
    print(f"{what}: two workers are {one / two:.2f} times as fast as one ({one:.1f} s, {two:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
