"""Times the parts of a training on real cases: reading, augmentation, the loading processes, the network, and all of them together.

Nothing of the user's is written: the trainer gets a temporary results folder, and folds that it makes up for want of a ``splits_final.json``
are not stored. (Cases of nnU-Net 2.5 and older, ``.npz`` files, are unpacked beside themselves as by a training.) Its weights are those of a
new training and are thrown away.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2.paths import nnUNet_results
from nnunetv2.training.data_augmentation.adaptive_augmentation import AdaptiveStream
from nnunetv2.training.dataloading.batch_stream import BatchStream
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import usable_cpus
from nnunetv2.utilities.machine import usable_memory

FEWEST_CALLS = 3
STEPS_BEFORE_TIMING = 2  # the first ones compile, choose algorithms, allocate
PARTS = 5  # that share the time
LOGGERS = ("nnUNet_wandb_enabled", "nnUNet_tensorboard_enabled", "nnUNet_csv_enabled")


@dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """What was measured. Seconds are means, by batch."""

    dataset: str
    configuration: str
    plans: str
    trainer: str
    device: str
    patch_size: tuple[int, ...]
    batch_size: int
    iterations_per_epoch: int
    validation_iterations_per_epoch: int
    augmentation_may_move: bool  # a training tries the GPU for it where it waits much; all figures are without
    cpus: int  # that may be used
    workers: int  # loading processes; 0: batches are made in the training process
    read_seconds: float | None  # patches without augmentation, one process, files in the system's cache; None for users' own loaders
    read_from_disk_seconds: float | None  # the same after the cases were dropped from the cache; None where that is not possible
    augment_seconds: float | None  # one process
    load_seconds: float  # all loading processes, with nobody else working
    step_seconds: float  # forward, backward, update, on a batch that is there
    iteration_seconds: float  # load and step as in a training
    wait_seconds: float  # of it spent waiting for the batch
    memory_bytes: int | None  # of this process and the loading processes, shared parts counted once
    free_memory_bytes: int | None  # meanwhile
    device_memory_bytes: int | None  # peak on a GPU
    device_memory_total_bytes: int | None

    @property
    def epoch_seconds(self) -> float:
        """Estimate: a validation iteration costs a third of a training step, or as much as loading its batch."""
        validation = max(self.step_seconds / 3, self.load_seconds)
        return self.iterations_per_epoch * self.iteration_seconds + self.validation_iterations_per_epoch * validation


def measure_training_speed(
    make_trainer: Callable[[], nnUNetTrainer], seconds: float = 60.0, say: Callable[[str], None] = print
) -> TrainingSpeed:
    """Measure a training of a preprocessed dataset.

    Args:
        make_trainer: Makes the trainer whose augmentation, loss and network are measured; called while results go to a temporary folder.
        seconds: Time to measure for; starting up comes on top, and slow parts take at least three batches.
        say: Receives a line before each part.
    """
    with _temporary_results() as users_results:
        say("Setting up...")
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = make_trainer()
            trainer.writes_splits = False
            _use_previous_stage_of(users_results, trainer)
            trainer.on_train_start()
            trainer.on_train_epoch_start()
        try:
            return _measure(trainer, seconds / PARTS, say)
        finally:
            trainer.stop_dataloaders()


def _measure(trainer: nnUNetTrainer, share: float, say: Callable[[str], None]) -> TrainingSpeed:
    """All parts, each for `share` seconds."""
    stream = trainer.dataloader_train
    may_move = isinstance(stream, AdaptiveStream)
    if may_move:
        stream = stream.current  # the loading processes alone: a move in the middle would mix two measurements
    loader = stream.loader if isinstance(stream, BatchStream) else None
    read = read_from_disk = augment = None
    if loader is not None:
        say("Reading patches...")
        plain = copy.copy(loader)
        plain.transforms, plain.case_labels = None, None
        read_from_disk = _seconds_from_disk(plain, trainer, share / 2)
        say("Augmenting in one process...")
        read, augment = _read_and_augment(plain, loader, share)
    workers = getattr(stream, "num_workers", 0)
    say(f"Loading with {workers} processes..." if workers else "Loading in this process...")
    for _ in range(getattr(stream, "prefetch", 0) if workers else 0):  # what is prepared while nobody asks is no measure
        next(stream)
    load = seconds_per_call(lambda: next(stream), share, warm_up=1)
    say(f"Training on {trainer.device}...")
    batch = next(stream)
    step = _step_of(trainer)
    with contextlib.redirect_stdout(io.StringIO()):
        _pause(stream)
        step_seconds = seconds_per_call(lambda: step(batch), share, warm_up=STEPS_BEFORE_TIMING)
        iteration_seconds, wait_seconds = _together(stream, step, share)
    memory = usable_memory()
    on_gpu = trainer.device.type == "cuda"
    return TrainingSpeed(
        dataset=trainer.plans_manager.dataset_name,
        configuration=trainer.configuration_name,
        plans=trainer.plans_manager.plans_name,
        trainer=type(trainer).__name__,
        device=torch.cuda.get_device_name(trainer.device) if on_gpu else trainer.device.type,
        patch_size=tuple(trainer.configuration_manager.patch_size),
        batch_size=trainer.batch_size,
        iterations_per_epoch=trainer.num_iterations_per_epoch,
        validation_iterations_per_epoch=trainer.num_val_iterations_per_epoch,
        augmentation_may_move=may_move,
        cpus=usable_cpus(),
        workers=workers,
        read_seconds=read,
        read_from_disk_seconds=read_from_disk,
        augment_seconds=augment,
        load_seconds=load,
        step_seconds=step_seconds,
        iteration_seconds=iteration_seconds,
        wait_seconds=wait_seconds,
        memory_bytes=_memory_of_tree(),
        free_memory_bytes=None if memory is None else memory.bytes,
        device_memory_bytes=torch.cuda.max_memory_reserved(trainer.device) if on_gpu else None,
        device_memory_total_bytes=torch.cuda.get_device_properties(trainer.device).total_memory if on_gpu else None,
    )


def seconds_per_call(call: Callable[[], Any], seconds: float, warm_up: int = 0) -> float:
    """Mean seconds of a call; see :func:`time_calls`."""
    return time_calls(call, seconds, warm_up)[0]


def time_calls(call: Callable[[], Any], seconds: float, warm_up: int = 0) -> tuple[float, int]:
    """Mean seconds of a call and the number of calls, over as many as take `seconds` together.

    Three calls at least, unless they take three times as long. The warm-up ends as soon as it takes `seconds`.
    """
    start = time.perf_counter()
    warm = 0
    while warm < warm_up and (warm == 0 or time.perf_counter() - start < seconds):
        call()
        warm += 1
    start = time.perf_counter()
    for number in itertools.count(1):
        call()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds and (number >= FEWEST_CALLS or elapsed >= FEWEST_CALLS * seconds):
            return elapsed / number, number
    raise AssertionError


def _step_of(trainer: nnUNetTrainer) -> Callable[[Any], None]:
    """One training step, which is over when the function returns."""

    def step(batch: Any) -> None:
        trainer.run_step(trainer.train_step, batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    return step


def _together(stream: Iterator, step: Callable[[Any], None], seconds: float) -> tuple[float, float]:
    """Seconds of an iteration and the part of it that the network waits for its batch."""
    waited: list[float] = []

    def iteration() -> None:
        start = time.perf_counter()
        batch = next(stream)
        waited.append(time.perf_counter() - start)
        step(batch)

    # Batches that were prepared ahead would hide a slow loader.
    mean, calls = time_calls(iteration, seconds, warm_up=max(2, getattr(stream, "prefetch", 0)))
    return mean, sum(waited[-calls:]) / calls


def _pause(stream: Any) -> None:
    """End the loading processes, which would compete with the network; they start again when they are asked."""
    if isinstance(stream, BatchStream):
        stream.close()


def _seconds_from_disk(loader: Any, trainer: nnUNetTrainer, seconds: float) -> float | None:
    """Seconds to read the patches of a batch when the system holds nothing of their files; None where it cannot be told to forget."""
    if not hasattr(os, "posix_fadvise"):
        return None
    total, batches = 0.0, 0
    end = time.perf_counter() + seconds
    while batches < FEWEST_CALLS or time.perf_counter() < end:
        for identifier in loader.identifiers_of_batch(1, batches):
            _forget_files(Path(trainer.preprocessed_dataset_folder), identifier)
        start = time.perf_counter()
        loader.generate_batch(1, batches)
        total += time.perf_counter() - start
        batches += 1
    return total / batches


def _read_and_augment(plain: Any, loader: Any, seconds: float) -> tuple[float, float]:
    """Seconds to read the patches of a batch from files in the system's cache, and to augment them; the same batches for both."""
    batches = itertools.count()
    spent = [0.0, 0.0]

    def both() -> None:
        number = next(batches)
        plain.generate_batch(0, number)  # now its files are in the cache
        for which, one in enumerate((plain, loader)):
            start = time.perf_counter()
            one.generate_batch(0, number)
            spent[which] += time.perf_counter() - start

    _, calls = time_calls(both, seconds)
    read, whole = (total / calls for total in spent)
    return read, max(0.0, whole - read)


def _forget_files(folder: Path, identifier: str) -> None:
    """Have the system drop what it holds of the files of a case."""
    for ending in (".b2nd", "_seg.b2nd", ".npy", "_seg.npy", ".npz"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / f"{identifier}{ending}", os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _memory_of_tree() -> int | None:
    """Memory of this process and its children, with pages that several share counted once; None where the system does not say."""
    children = Path("/proc/self/task").glob("*/children")
    try:
        processes = ["self", *(number for file in children for number in file.read_text().split())]
        total = 0
        for number in processes:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
                    total += int(line.split()[1]) * 1024 if line.startswith("Pss:") else 0
        return total or None
    except OSError:
        return None


@contextlib.contextmanager
def _temporary_results() -> Iterator[str | None]:
    """A results folder for the trainer's log, and no loggers that send results away; gives the user's folder."""
    before = {name: os.environ.get(name) for name in (nnUNet_results.env_var_name, *LOGGERS)}
    with tempfile.TemporaryDirectory(prefix="nnunetv2_benchmark_") as folder:
        os.environ.update({nnUNet_results.env_var_name: folder, **dict.fromkeys(LOGGERS, "0")})
        try:
            yield before[nnUNet_results.env_var_name]
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _use_previous_stage_of(results: str | None, trainer: nnUNetTrainer) -> None:
    """A cascade reads the segmentations of its first stage from the user's results."""
    folder = trainer.folder_with_segs_from_previous_stage
    if folder is not None and results:
        trainer.folder_with_segs_from_previous_stage = os.path.join(results, os.path.relpath(folder, nnUNet_results))
