"""What limits a training, read off its measured parts, and which setting changes it. Pure: numbers in, words out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnunetv2.utilities.machine import as_gigabytes

if TYPE_CHECKING:
    from nnunetv2.benchmark.training_speed import TrainingSpeed

# A network that waits less than this for data loses less than what measurements vary by.
WAITING_SHARE = 0.1
# Reading from disk is the reason where it takes this part of the time of a sample.
DISK_SHARE = 0.5
LOW_MEMORY_BYTES = 2 * 1000**3
DEVICE_NEARLY_FULL = 0.9
DEVICE_HALF_EMPTY = 0.5
NAME_WIDTH = 52  # of the table's first column


@dataclass(frozen=True)
class Bottleneck:
    """The verdict."""

    kind: str  # "network", "augmentation", "disk" or "memory"
    explanation: str
    advice: tuple[str, ...]


def find_bottleneck(speed: TrainingSpeed) -> Bottleneck:
    """What limits this training most, and what to do about it."""
    if speed.free_memory_bytes is not None and speed.free_memory_bytes < LOW_MEMORY_BYTES:
        return _memory(speed)
    # While the network waits, or where loading alone is slower than the network: on a GPU both say the same; on the CPU loading
    # processes and network slow each other down.
    waits = speed.wait_seconds > WAITING_SHARE * speed.iteration_seconds
    if not waits:
        return _network(speed)
    if speed.read_from_disk_seconds is not None and speed.read_from_disk_seconds > DISK_SHARE * _sample_seconds(speed):
        return _disk(speed)
    return _augmentation(speed)


def workers_needed(speed: TrainingSpeed) -> int:
    """Loading processes that would keep the network busy if every one had a CPU of its own."""
    return max(1, math.ceil(max(speed.workers, 1) * speed.load_seconds / speed.step_seconds))


def report_lines(speed: TrainingSpeed, bottleneck: Bottleneck) -> list[str]:
    """The table for the terminal."""
    size = " x ".join(map(str, speed.patch_size))
    lines = [
        f"{speed.dataset} {speed.configuration}, {speed.trainer}, {speed.plans}: batches of {speed.batch_size} patches of {size} voxels",
        f"{speed.cpus} CPUs may be used, {speed.workers} loading processes, network on {speed.device}",
        "",
        f"{'':{NAME_WIDTH}}{'ms per batch':>14}{'batches per s':>15}",
    ]
    reading = "reading, one process"
    parts: Sequence[tuple[str, float | None]] = (
        (f"{reading}, files in the system's cache", speed.read_seconds),
        (f"{reading}, files from disk", speed.read_from_disk_seconds),
        ("augmentation, one process", speed.augment_seconds),
        (f"loading, {speed.workers} processes" if speed.workers else "loading, in the training process", speed.load_seconds),
        ("network step (forward, backward, update)", speed.step_seconds),
        ("training, loading and network together", speed.iteration_seconds),
    )
    for name, seconds in parts:
        if seconds is not None:
            rate = f"{1 / seconds:>15.2f}" if seconds else f"{'-':>15}"
            lines.append(f"{name:<{NAME_WIDTH}}{1000 * seconds:>14.1f}{rate}")
    lines += ["", f"Waiting for data: {100 * speed.wait_seconds / speed.iteration_seconds:.0f} % of the time."]
    lines.append(f"An epoch takes about {speed.epoch_seconds:.0f} s ({speed.iterations_per_epoch} iterations and validation).")
    lines += _memory_lines(speed)
    lines += ["", f"Bottleneck: {bottleneck.kind}. {bottleneck.explanation}"]
    return lines + [f"- {text}" for text in bottleneck.advice]


def _memory_lines(speed: TrainingSpeed) -> list[str]:
    lines = []
    if speed.memory_bytes is not None:
        free = "" if speed.free_memory_bytes is None else f"; {as_gigabytes(speed.free_memory_bytes)} are still free"
        lines.append(f"Memory: {as_gigabytes(speed.memory_bytes)} in all processes{free}.")
    if speed.device_memory_bytes is not None:
        lines.append(f"Memory of the GPU: {as_gigabytes(speed.device_memory_bytes)} of {as_gigabytes(speed.device_memory_total_bytes)}.")
    return lines


def _sample_seconds(speed: TrainingSpeed) -> float:
    """Seconds that one loading process takes for a batch whose files are on the disk."""
    return (speed.read_from_disk_seconds or 0.0) + (speed.augment_seconds or 0.0)


def _network(speed: TrainingSpeed) -> Bottleneck:
    if speed.device_memory_bytes is None:
        advice = [
            "a GPU, where there is one (-device cuda)",
            "smaller plans: nnUNetv2_plan_experiment -pl nnUNetPlannerResEncXS, or a lower -gpu_memory_target",
            "fewer --iterations_per_epoch or --epochs for first tries",
        ]
    else:
        advice = ["several folds at once on several GPUs (documentation/multi_gpu.md), or for one large training -num_gpus"]
        share = speed.device_memory_bytes / speed.device_memory_total_bytes
        if share > DEVICE_NEARLY_FULL:
            advice.append("the GPU's memory is nearly full: plan with a lower -gpu_memory_target if trainings run out of it")
        elif share < DEVICE_HALF_EMPTY:
            advice.append(
                "the GPU's memory is half empty: larger plans would fit (nnUNetPlannerResEncM, L, XL), which are slower but mostly better"
            )
    needed = workers_needed(speed)
    if needed < speed.workers:
        counted = "1 loading process" if needed == 1 else f"{needed} loading processes"
        advice.append(f"{counted} would do (nnUNet_n_proc_DA={needed}), which leaves CPUs for other trainings")
    return Bottleneck("network", "Data arrive faster than the network takes them.", tuple(advice))


def _augmentation(speed: TrainingSpeed) -> Bottleneck:
    needed = workers_needed(speed)
    per_network = f"To keep the network busy it takes about {needed} loading processes with a CPU each; there are {speed.workers} on {speed.cpus} CPUs."
    advice = []
    if needed > speed.workers and speed.cpus > speed.workers:
        advice.append(f"more loading processes: nnUNet_n_proc_DA={min(needed, speed.cpus)}")
    if needed > speed.cpus:
        if speed.augmentation_may_move:
            advice.append(
                "images augmented by the GPU, which a training that waits for more than a fifth of its time tries by itself after some epochs; "
                "to measure with it: nnUNet_augmentation_device=cuda"
            )
        advice.append("a machine, or a job, with more CPUs for this GPU (--cpus-per-task under SLURM)")
        advice.append("cheaper augmentation: -tr nnUNetTrainerDAOrd0 (interpolates less exactly)")
    if not advice:
        advice.append("nothing else running on these CPUs")
    return Bottleneck("augmentation", f"The CPUs prepare batches more slowly than the network takes them. {per_network}", tuple(advice))


def _disk(speed: TrainingSpeed) -> Bottleneck:
    return Bottleneck(
        "disk",
        f"A batch takes {1000 * speed.read_from_disk_seconds:.0f} ms to read from the disk and "
        f"{1000 * (speed.augment_seconds or 0):.0f} ms to augment.",
        (
            "the preprocessed dataset on a local SSD: copy it and let nnUNet_preprocessed name the copy",
            "enough free memory for the system to keep the dataset's files: the second epoch is then as fast as 'files in the system's cache'",
            f"more loading processes, which wait for the disk at the same time: nnUNet_n_proc_DA={max(2 * speed.workers, 2)}",
        ),
    )


def _memory(speed: TrainingSpeed) -> Bottleneck:
    fewer = max(1, speed.workers // 2)
    advice = ["close other programs, or ask for more memory (--mem under SLURM)"]
    if speed.workers > 1:
        advice.insert(0, f"fewer loading processes: nnUNet_n_proc_DA={fewer}")
    return Bottleneck("memory", f"Only {as_gigabytes(speed.free_memory_bytes)} are free: processes may be killed.", tuple(advice))
