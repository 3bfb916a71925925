"""Training with several processes: started here on one machine, or by torchrun on one or many.

Either way every process finds its number in the environment (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``), joins the process group and runs
the same training; what differs by rank is decided in ``nnunetv2.training``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from multiprocessing import connection as mp_connection
from typing import Any

import torch

from nnunetv2.run.peer_watch import CONNECT_SECONDS, GRACE_SECONDS, PeerFailure, PeerWatch, is_lost_connection
from nnunetv2.training.distributed import LOCAL_RANK, portable_error, wait_for_all_processes
from nnunetv2.utilities.machine import is_ended_by, signal_name

# Of torchrun; all of them tell that this process is one of several.
VARIABLES = ("RANK", LOCAL_RANK, "WORLD_SIZE")
# A dead process is noticed otherwise, so this is how long one may wait for another that works: on a whole case, or the final scores.
LONGEST_WAIT = timedelta(days=1)
END_SECONDS = GRACE_SECONDS + 15.0  # for the others to end by themselves after one has failed
KILL_SECONDS = 5.0  # for a process to end when it is asked to
LEAVE_SECONDS = 3.0  # for a process to leave the group after an error; with LOST_SECONDS less than GRACE_SECONDS, after which it is ended


def in_every_process(run: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a function with arguments ``num_gpus`` and ``device``: runs it in all processes of a training.

    With ``num_gpus`` above 1 these are started here; under torchrun this process is one of them. Returns when all have returned. An error
    in one process ends all of them and is raised.
    """

    @functools.wraps(run)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(run).bind(*args, **kwargs)
        bound.apply_defaults()
        num_gpus, device = bound.arguments["num_gpus"], torch.device(bound.arguments["device"])
        if is_one_of_several():
            _check_number(num_gpus)
            with process_group(device):
                run(*args, **kwargs)
        elif num_gpus > 1:
            _check_gpus(num_gpus, device)
            run_on_this_machine(num_gpus, wrapper, bound.arguments)
        else:
            run(*args, **kwargs)

    return wrapper


def is_one_of_several() -> bool:
    """Whether torchrun, or :func:`run_on_this_machine`, started this process and others."""
    return all(os.environ.get(name, "").isdecimal() for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def _check_number(num_gpus: int) -> None:
    world_size = int(os.environ["WORLD_SIZE"])
    if num_gpus not in (1, world_size):
        raise ValueError(f"-num_gpus {num_gpus}, but torchrun started {world_size} processes. Leave -num_gpus out; torchrun decides.")


def _check_gpus(num_gpus: int, device: torch.device) -> None:
    """Raise before anything is started, if there are not as many devices."""
    if device.type == "mps":
        raise ValueError(f"-num_gpus {num_gpus}: -device mps has one GPU. Leave -num_gpus out.")
    if device.type == "cuda" and torch.cuda.device_count() < num_gpus:
        raise RuntimeError(
            f"-num_gpus {num_gpus}, but torch finds {torch.cuda.device_count()} CUDA devices. Give a smaller number; CUDA_VISIBLE_DEVICES "
            "chooses GPUs."
        )


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """This process as a member of the group that the environment describes; an error in one process ends all.

    Raises:
        RuntimeError: If this machine has no GPU for this process.
        PeerFailure: If another process failed.
    """
    local_rank, address = int(os.environ[LOCAL_RANK]), os.environ.get("MASTER_ADDR", "localhost")
    store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=CONNECT_SECONDS)))
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    watch = PeerWatch(torch.distributed.PrefixStore("watch", store), rank, world_size, address, is_one_machine)
    try:
        if device.type == "cuda":
            _take_gpu(local_rank)
        _join_group(
            device,
            store=torch.distributed.PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=LONGEST_WAIT,
        )
        yield
        wait_for_all_processes()
        cleanup_ddp()
    except BaseException as error:
        _end_if_it_hangs(device, GRACE_SECONDS)
        try:
            watch.fail(error)
        finally:
            _leave_after(error)
        _end_if_it_hangs(device, GRACE_SECONDS)
        raise
    watch.finish()


def _end_if_it_hangs(device: torch.device, seconds: float) -> None:
    """Have the system end this process after a time: work on a GPU that waits for a dead process can keep it from ending."""
    if device.type == "cuda" and hasattr(signal, "alarm"):
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(math.ceil(seconds))


def _take_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"{socket.gethostname()} has {torch.cuda.device_count()} CUDA devices, but this is process {local_rank} (from 0) on it. Start "
            "fewer processes (--nproc_per_node)."
        )
    torch.cuda.set_device(local_rank)


def _backend(device: torch.device) -> str:
    # Objects go through the CPU, gradients from GPU to GPU.
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _join_group(device: torch.device, **options: Any) -> None:
    # Its functions have the group of the moment of their import as default argument and would hold it until the very end; the first
    # DistributedDataParallel imports it.
    importlib.import_module("torch.distributed.nn.functional")
    torch.distributed.init_process_group(_backend(device), **options)


def setup_ddp(rank: int, world_size: int) -> None:
    """Join a process group by hand, for programs that start their processes themselves; ``MASTER_ADDR`` and ``MASTER_PORT`` say where."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _join_group(device, rank=rank, world_size=world_size)


def cleanup_ddp() -> None:
    """Leave the process group and end its threads, if nothing refers to it any more, such as a DistributedDataParallel."""
    # A thread of the group that lets go of a tensor while the interpreter ends aborts the process. They end with the last reference, and
    # trainers lie in cycles of references.
    gc.collect()
    torch.distributed.destroy_process_group()


def _leave_after(error: BaseException) -> None:
    """Leave the process group although another process may be gone; what belongs to the failed run is let go of."""
    if not torch.distributed.is_initialized():
        return

    def leave() -> None:
        # Its frames hold the trainer, and with it the network that refers to the group.
        failed: BaseException | None = error
        while failed is not None:
            traceback.clear_frames(failed.__traceback__)
            failed = failed.__cause__ or failed.__context__
        with contextlib.suppress(Exception):  # the group may be broken; what broke it is told already
            cleanup_ddp()

    # In a thread, because the end of a group waits for what it was asked to do, and the others may never join in.
    thread = threading.Thread(target=leave, name="nnunetv2-leave-group", daemon=True)
    thread.start()
    thread.join(LEAVE_SECONDS)


# --- starting processes on this machine


def run_on_this_machine(number: int, function: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """Run a function in several new processes, which find their numbers in the environment. None of them outlives this call.

    Args:
        number: Of processes.
        function: Importable by name.
        arguments: Its keyword arguments.

    Raises:
        Exception: The error of the process that failed first, with its traceback as cause.
        RuntimeError: If a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    port = os.environ.get("MASTER_PORT") or str(find_free_network_port())
    processes, connections = [], []
    try:
        for rank in range(number):
            ours, theirs = context.Pipe(duplex=False)
            environment = {"RANK": rank, LOCAL_RANK: rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = context.Process(target=_run_process, args=(environment, theirs, function, dict(arguments)), name=f"nnunetv2-{rank}")
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        errors = _errors_of(processes, connections)
        exit_codes = [process.exitcode for process in processes]  # None for those that are ended below
    finally:
        _end(processes)
    _raise_cause(errors, exit_codes)


def _run_process(environment: Mapping[str, Any], report: Any, function: Callable[..., None], arguments: dict[str, Any]) -> None:
    """What a started process does."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        function(**arguments)
    except KeyboardInterrupt:  # the process that started this one got it too
        sys.exit(1)
    except Exception as error:
        sys.stdout.flush()
        report.send((portable_error(error), traceback.format_exc()))
        sys.exit(1)


def _errors_of(processes: list[Any], connections: list[Any]) -> list[tuple[Exception, str]]:
    """Wait until all processes have ended, or END_SECONDS after one failed; errors and their tracebacks, the earliest first."""
    errors: list[tuple[Exception, str]] = []
    reporting = list(connections)
    deadline: float | None = None

    def receive(timeout: float | None) -> None:
        sources = [*reporting, *(process.sentinel for process in processes if process.is_alive())]
        if not sources:  # the last one ended just now; waiting for nothing would never end
            return
        for source in mp_connection.wait(sources, timeout):
            if source in reporting:
                try:
                    errors.append(source.recv())
                except (EOFError, OSError):
                    reporting.remove(source)

    while any(process.is_alive() for process in processes):
        receive(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if deadline is None and any(process.exitcode not in (None, 0) for process in processes):
            deadline = time.monotonic() + END_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            break
    receive(0)
    return errors


def _end(processes: list[Any]) -> None:
    """End those processes that are left."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + KILL_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _raise_cause(errors: list[tuple[Exception, str]], exit_codes: list[int | None]) -> None:
    """Raise what went wrong first, if anything did; what it led to in other processes only if nothing else is known."""
    consequences = [entry for entry in errors if isinstance(entry[0], PeerFailure)]  # they name the process that failed
    lost_connections = [entry for entry in errors if entry not in consequences and is_lost_connection(entry[0])]
    causes = [entry for entry in errors if entry not in consequences and entry not in lost_connections]
    if causes:
        error, text = causes[0]
        raise error from _TracebackOfProcess(text)
    for rank, code in enumerate(exit_codes):
        if code is not None and code < 0 and not is_ended_by(code, "SIGALRM"):  # its own alarm follows a failure
            advice = " Most likely the system ran out of memory." if is_ended_by(code, "SIGKILL") else ""
            raise RuntimeError(f"Process {rank} of {len(exit_codes)} was ended by {signal_name(-code)}.{advice}")
    if consequences or lost_connections:  # one of them may be the cause after all
        error, _ = (consequences + lost_connections)[0]
        raise error from _TracebackOfProcess(*(text for _, text in consequences + lost_connections))
    for rank, code in enumerate(exit_codes):
        if code != 0:
            raise RuntimeError(
                f"Process {rank} of {len(exit_codes)} {'did not end' if code is None else f'ended with exit status {code}'}."
            )


class _TracebackOfProcess(Exception):
    """Carries the traceback of another process as text."""

    def __str__(self) -> str:
        return "\n" + "".join(str(argument) for argument in self.args)


def find_free_network_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
