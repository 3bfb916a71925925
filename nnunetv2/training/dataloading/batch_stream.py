"""The batches of a training, in order, prepared ahead by worker processes.

Which batch comes at which position is decided by the loader's seed alone. Workers get positions, one at a time, from the
training process, which hands the results out in order: any number of workers, or none, gives the same batches.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection as mp_connection
from typing import Any

import torch

from nnunetv2.training.data_augmentation.device_augmentation import DeviceAugmentedStream
from nnunetv2.training.dataloading.batch import Batch
from nnunetv2.training.dataloading.batch_transport import receive_message, send_message
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.machine import is_ended_by, signal_name

FEWER_WORKERS = "Use fewer workers (environment variable nnUNet_n_proc_DA) or a machine with more memory."
ORPHAN_CHECK_SECONDS = 5.0  # how often an idle worker looks whether the training is still there
CLOSE_SECONDS = 5.0  # for a worker to go away before it is killed


class BatchStream:
    """Endless iterator over batches, from a given epoch on.

    Args:
        loader: Makes the batch of a position.
        batches_per_epoch: After so many batches the epoch's number goes up by one.
        num_workers: Processes that prepare batches; 0 prepares each one here when it is asked for.
        prefetch: Batches prepared ahead, over all workers; None is two per worker.
        pin_memory: Move batches to page-locked memory; ignored without a GPU.
        start_epoch: First epoch.
        start_method: How processes start; None is :func:`default_start_method`.
    """

    def __init__(
        self,
        loader: nnUNetDataLoader,
        batches_per_epoch: int,
        num_workers: int = 0,
        prefetch: int | None = None,
        pin_memory: bool = False,
        start_epoch: int = 0,
        start_method: str | None = None,
    ) -> None:
        if batches_per_epoch < 1 or num_workers < 0:
            raise ValueError(
                f"A stream needs at least one batch per epoch and no negative number of workers; "
                f"found {batches_per_epoch} and {num_workers}."
            )
        self.loader = loader
        self.batches_per_epoch = batches_per_epoch
        self.num_workers = num_workers
        self.prefetch = max(1, num_workers, 2 * num_workers if prefetch is None else prefetch)
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._start_method = start_method
        self._next_position = start_epoch * batches_per_epoch
        self._next_task = self._next_position
        self._results: dict[int, Batch | _WorkerError] = {}  # arrived, not yet asked for
        self._workers: list[_Worker] = []

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and iteration of the next batch."""
        return divmod(self._next_position, self.batches_per_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Continues with the first batch of an epoch. Batches prepared for it already are kept."""
        self.set_position(epoch, 0)

    def set_position(self, epoch: int, iteration: int) -> None:
        """Continues with any batch; counts as :attr:`position` does."""
        position = epoch * self.batches_per_epoch + iteration
        if position == self._next_position:
            return
        if not self._next_position < position <= self._next_task:
            self.close()
            self._next_task = position
        self._results = {number: batch for number, batch in self._results.items() if number >= position}
        self._next_position = position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises RuntimeError, and ends the workers, if it cannot be made."""
        if self.num_workers == 0:
            batch = self.loader.generate_batch(*self.position)
        else:
            batch = self._wait_for(self._next_position)
        self._next_position += 1
        self._next_task = max(self._next_task, self._next_position)
        return batch.pin_memory() if self.pin_memory else batch

    def on_device(self, device: torch.device) -> DeviceAugmentedStream:
        """The batches from here on with images that the device augments, by workers of their own; the loader's must be able to leave them."""
        loader = self.loader.leaving_images()
        stream = BatchStream(
            loader,
            self.batches_per_epoch,
            self.num_workers,
            self.prefetch,
            self.pin_memory,
            start_method=self._start_method,
        )
        stream.set_position(*self.position)
        return loader.device_stream(stream, device)

    def close(self) -> None:
        """Ends the workers. The stream may go on afterwards, with new ones."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.terminate()  # nothing of a worker is worth waiting for, and it holds no lock of ours
            worker.connection.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._results.clear()
        self._next_task = self._next_position

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_workers", None):
            with contextlib.suppress(Exception):  # the interpreter may be going down
                self.close()

    # --- workers

    def _wait_for(self, position: int) -> Batch:
        if not self._workers:
            self._start_workers()
        try:
            self._receive(block=False)
            self._hand_out_tasks()
            while position not in self._results:
                self._receive(block=True)
                self._hand_out_tasks()
            result = self._results.pop(position)
            if isinstance(result, _WorkerError):
                raise RuntimeError(f"{result.summary}\n\nIn the worker process:\n{result.traceback}")
        except BaseException:
            self.close()
            raise
        return result

    def _hand_out_tasks(self) -> None:
        """Keeps the workers busy up to the prefetch limit, the idlest first."""
        while self._next_task < self._next_position + self.prefetch:
            worker = min(self._workers, key=lambda w: len(w.tasks))
            try:
                worker.connection.send((self._next_task, *divmod(self._next_task, self.batches_per_epoch)))
            except OSError:
                raise self._death_of(worker) from None
            worker.tasks.append(self._next_task)
            self._next_task += 1

    def _receive(self, block: bool) -> None:
        """Takes finished batches in. With ``block`` at least one, or the news that a worker died."""
        sources: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        # A worker's end shows in its connection too, but only once no sibling holds a copy of the other end.
        sources |= {worker.process.sentinel: worker for worker in self._workers}
        ready = mp_connection.wait(list(sources), None if block else 0)
        for source in sorted(ready, key=lambda source: isinstance(source, int)):  # what a dead worker sent comes first
            worker = sources[source]
            if isinstance(source, int):
                if not worker.connection.poll():
                    raise self._death_of(worker)
                continue
            try:
                position, result = receive_message(worker.connection)
            except (EOFError, OSError, RuntimeError):  # the last for a handle that was announced but never came
                raise self._death_of(worker) from None
            worker.tasks.remove(position)
            if position >= self._next_position:
                self._results[position] = result

    def _death_of(self, worker: _Worker) -> RuntimeError:
        """What to say about a worker that ended by itself."""
        worker.process.join(1)
        cases = [name for task in worker.tasks[:1] for name in self.loader.identifiers_of_batch(*divmod(task, self.batches_per_epoch))]
        return RuntimeError(
            f"A data loading process died ({_reason(worker.process.exitcode)}) while it prepared the cases "
            f"{', '.join(cases) or '(none)'}. {_advice(worker.process.exitcode)}"
        )

    def _start_workers(self) -> None:
        prepare = getattr(self.loader, "prepare_for_workers", None)  # a loader of a user's own may lack it
        if prepare is not None:
            prepare()
        method = self._start_method or default_start_method(self.loader)
        context = multiprocessing.get_context(method)
        for _ in range(self.num_workers):
            ours, theirs = context.Pipe(duplex=True)
            inherited = [worker.connection for worker in self._workers] + [ours] if method == "fork" else []
            process = context.Process(target=_work, args=(self.loader, theirs, inherited), daemon=True, name="nnunetv2-loader")
            with warnings.catch_warnings():
                # The warning is about locks held by other threads; workers use one thread and none of our locks.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))


def default_start_method(loader: Any) -> str:
    """``fork`` where it is safe: it starts at once and takes loaders that cannot be pickled.

    On Linux that is always but with foreign non-daemon threads, which may hold a lock at that moment; then ``forkserver``
    if the loader can be pickled. Elsewhere ``spawn``. A GPU in use does no harm: workers stay on the CPU.
    """
    if not sys.platform.startswith("linux"):
        return "spawn"
    foreign = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    return "forkserver" if foreign and _can_be_pickled(loader) else "fork"


@dataclass
class _Worker:
    process: Any
    connection: Any
    tasks: list[int] = field(default_factory=list)  # positions handed out and not yet received


@dataclass
class _WorkerError:
    summary: str
    traceback: str


def _work(loader: nnUNetDataLoader, connection: Any, inherited: list[Any]) -> None:
    """A worker process: makes the batches whose positions arrive, until the connection ends."""
    for other in inherited:
        other.close()
    # Handlers of the training (such as one that saves a checkpoint) are not for workers; Ctrl-C goes to the training alone.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    is_orphan = _orphan_check()
    while True:
        try:
            while not connection.poll(ORPHAN_CHECK_SECONDS):
                if is_orphan():
                    return
            position, epoch, iteration = connection.recv()
        except (EOFError, OSError):
            return
        try:
            result: Any = loader.generate_batch(epoch, iteration)
        except BaseException as error:
            result = _WorkerError(str(error) or type(error).__name__, traceback.format_exc())
        try:
            try:
                send_message(connection, (position, result))
            except OSError as error:
                if error.errno not in (errno.ENOMEM, errno.ENOSPC):
                    raise
                failure = _WorkerError(f"There is no memory to hand over a batch ({error}). {FEWER_WORKERS}", "")
                send_message(connection, (position, failure))
        except OSError:  # the training is gone
            return


def _orphan_check() -> Callable[[], bool]:
    """Function that tells whether the process that started this one has ended."""
    if os.name == "posix":
        parent = os.getppid()  # siblings keep copies of the pipe through which multiprocessing would notice it
        return lambda: os.getppid() != parent
    parent_process = multiprocessing.parent_process()
    return lambda: parent_process is None or not parent_process.is_alive()


def _can_be_pickled(loader: Any) -> bool:
    try:
        pickle.dumps(loader)
    except Exception:
        return False
    return True


def _reason(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal_name(-exit_code)
    return f"exit code {exit_code}"


def _advice(exit_code: int | None) -> str:
    if is_ended_by(exit_code, "SIGTERM"):
        return "Somebody ended it."
    if is_ended_by(exit_code, "SIGKILL", "SIGBUS"):
        return f"Most likely the system ran out of memory. {FEWER_WORKERS}"
    return "If one case always does it, its preprocessed files may be broken: preprocess it again."
