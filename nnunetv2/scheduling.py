"""Run one function for many cases, here, in worker processes or on a Dask cluster, without losing a case to another one's failure.

Every stage that works case by case (fingerprint, preprocessing, verification, export, evaluation) calls
:func:`run_per_case`. A case that fails never stops the others, and all failures are reported together, by case.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from tqdm import tqdm

from nnunetv2.utilities.machine import cause_of_death, count_of_memory_kills

# Errors of these types are raised with whole sentences for the user.
TYPES_WITH_MESSAGES = (ValueError, RuntimeError, OSError)
MOST_CASES_NAMED = 10
LOCAL = "local"
SECONDS_TO_END = 5


@dataclass(frozen=True)
class CaseFailure:
    """What went wrong with one case. The error keeps its traceback as text alone."""

    identifier: str
    error: Exception
    traceback_text: str  # as formatted where the error was raised; empty if the worker process died

    def __post_init__(self) -> None:
        # The frames of a real traceback hold all that the case was worked on, images and a GPU's tensors, and failures are kept until
        # the last case is finished.
        self.error.__traceback__ = self.error.__context__ = None
        self.error.__cause__ = WorkerTraceback(self.traceback_text) if self.traceback_text else None

    def __str__(self) -> str:
        return f"{self.identifier}: {self.reason}"

    @property
    def reason(self) -> str:
        """The message of the error, with its type where that says more."""
        message = str(self.error)
        if not message or not isinstance(self.error, TYPES_WITH_MESSAGES):
            return f"{type(self.error).__name__}: {message}"
        return message


class CaseErrors(RuntimeError):
    """Some cases failed; the others are finished. The failures are in ``failures``, one per case."""

    def __init__(self, failures: Sequence[CaseFailure], number_of_cases: int, description: str = "") -> None:
        self.failures = tuple(failures)
        task = f" ({description})" if description else ""
        others = "; the others went through" if number_of_cases > len(self.failures) else ""
        lines = [f"{len(self.failures)} of {number_of_cases} cases failed{task}{others}:"]
        lines += ["  " + str(failure).replace("\n", "\n    ") for failure in self.failures]
        super().__init__("\n".join(lines))


class WorkerDied(RuntimeError):
    """A worker process ended without an answer, for example because the system killed it."""


class WorkerTraceback(Exception):
    """Carries the traceback of a failed case as text; it is the cause of the error."""

    def __str__(self) -> str:
        return "\n" + "".join(str(argument) for argument in self.args)


def run_per_case(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    *,
    identifiers: Sequence[str],
    num_processes: int,
    description: str = "",
    show_progress: bool = True,
    on_error: Literal["raise", "return"] = "raise",
    on_result: Callable[[int, Any], None] | None = None,
    scheduler: str = LOCAL,
) -> list[Any]:
    """Call ``function(*task)`` for every task and return the results in the order of the tasks.

    With one process, or one task, everything runs in the calling process. Otherwise the tasks go to spawned worker
    processes, for which ``function``, its arguments and its results must be picklable. If a worker process dies,
    the cases it may have been working on are tried once more, each alone, so that only the guilty case is lost;
    ``function`` must therefore be safe to repeat. The same holds for the workers of a Dask cluster, which besides need the
    same paths and the same version of this package; they may come and go. What the cases warn about is printed at the end, one line for each category.

    Args:
        function: Does the work of one case.
        tasks: Positional arguments, one tuple per case.
        identifiers: Name of the case of each task, for messages.
        num_processes: Worker processes at most; never more than there are tasks. 0 and 1 mean the calling process.
        description: What is being done, for the progress bar and messages.
        show_progress: Whether to draw a progress bar on stderr.
        on_error: ``"raise"`` a :class:`CaseErrors` after all cases have run, or ``"return"`` a
            :class:`CaseFailure` in place of the result of each failed case.
        on_result: Called with the number of a task and its result, or its :class:`CaseFailure`, as soon as it is there.
        scheduler: ``"local"``, or the address of a Dask scheduler, or its scheduler file.
    """
    tasks = list(tasks)
    identifiers = [str(identifier) for identifier in identifiers]
    if len(tasks) != len(identifiers):
        raise ValueError(f"{len(tasks)} tasks but {len(identifiers)} identifiers; there must be one identifier per task.")
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}.")
    num_workers = min(num_processes, len(tasks))
    results: list[Any] = [None] * len(tasks)
    with tqdm(total=len(tasks), desc=description or None, disable=not show_progress or not tasks) as progress:
        if scheduler != LOCAL and tasks:
            finished = _run_on_cluster(function, tasks, identifiers, scheduler)
        else:
            finished = _run_here(function, tasks) if num_workers <= 1 else _run_in_pool(function, tasks, identifiers, num_workers)
        noticed: dict[str, list[tuple[str, str]]] = {}  # by category the case and the text of each warning
        for index, outcome in finished:
            results[index] = _result_or_failure(outcome, identifiers[index])
            for category, text in outcome.warnings:
                noticed.setdefault(category, []).append((identifiers[index], text))
            if on_result is not None:
                on_result(index, results[index])
            progress.update()
    _print_warnings(noticed)
    failures = [result for result in results if isinstance(result, CaseFailure)]
    if failures and on_error == "raise":
        raise CaseErrors(failures, len(tasks), description) from failures[0].error
    return results


@dataclass(frozen=True)
class _Outcome:
    """Result or error of one task, in a form that always survives the way back from a worker."""

    result: Any = None
    error: Exception | None = None
    traceback_text: str = ""
    warnings: tuple[tuple[str, str], ...] = ()  # category and text


def _attempt(function: Callable[..., Any], task: tuple) -> _Outcome:
    """Run one task; catch its error and its warnings."""
    with _recorder.warnings_of_this_thread() as noticed:
        try:
            result, error, traceback_text = function(*task), None, ""
        except Exception as raised:
            result, error, traceback_text = None, raised, traceback.format_exc()
    return _Outcome(result=result, error=error, traceback_text=traceback_text, warnings=tuple(noticed))


class _WarningRecorder:
    """Collects the warnings of each case, also where several threads of a process, as of Dask workers, have one each.

    ``warnings.catch_warnings`` replaces what is shown in the whole process, so all cases at work share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work = 0
        self._noticed: ContextVar[list[tuple[str, str]] | None] = ContextVar("noticed", default=None)

    @contextlib.contextmanager
    def warnings_of_this_thread(self) -> Iterator[list[tuple[str, str]]]:
        """Category and text of each, in a list that grows."""
        noticed: list[tuple[str, str]] = []
        token = self._noticed.set(noticed)
        with self._lock:
            self._at_work += 1
            if self._at_work == 1:
                self._state_before = warnings.catch_warnings()
                self._state_before.__enter__()
                self._show_otherwise, warnings.showwarning = warnings.showwarning, self._show
            else:
                with warnings.catch_warnings():
                    pass  # forgets which warnings were shown already: they are news for this case
        try:
            yield noticed
        finally:
            self._noticed.reset(token)
            with self._lock:
                self._at_work -= 1
                if self._at_work == 0:
                    warnings.showwarning = self._show_otherwise
                    self._state_before.__exit__(None, None, None)

    def _show(self, message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        noticed = self._noticed.get()
        if noticed is None:  # of a thread that has no case
            self._show_otherwise(message, category, *place, **more)
        else:
            noticed.append((category.__name__, str(message)))


_recorder = _WarningRecorder()


def _print_warnings(noticed: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """One line for each category of warnings: the first of them, and which other cases have one."""
    for entries in noticed.values():
        others = sorted({case for case, _ in entries} - {entries[0][0]})
        more = f" and {len(others) - MOST_CASES_NAMED} more" if len(others) > MOST_CASES_NAMED else ""
        listed = f" (Likewise {', '.join(others[:MOST_CASES_NAMED])}{more}.)" if others else ""
        print(f"WARNING: {entries[0][1]}{listed}", flush=True)


def _attempt_in_worker(function: Callable[..., Any], task: tuple) -> _Outcome:
    """Like :func:`_attempt`; an error that cannot be pickled both ways (it would break the pool) becomes a RuntimeError."""
    outcome = _attempt(function, task)
    if outcome.error is None:
        return outcome
    error = outcome.error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return replace(outcome, error=error)


def _worker_is_ready() -> bool:
    """First task of a pool: fails if worker processes cannot start at all."""
    return True


def _result_or_failure(outcome: _Outcome, identifier: str) -> Any:
    if outcome.error is None:
        return outcome.result
    return CaseFailure(identifier, outcome.error, outcome.traceback_text)


def _run_here(function: Callable[..., Any], tasks: Sequence[tuple]) -> Iterator[tuple[int, _Outcome]]:
    for index, task in enumerate(tasks):
        yield index, _attempt(function, task)


def _run_in_pool(
    function: Callable[..., Any], tasks: Sequence[tuple], identifiers: Sequence[str], num_workers: int
) -> Iterator[tuple[int, _Outcome]]:
    """Yield ``(index, outcome)`` as tasks finish, replacing the pool whenever one of its workers dies."""
    waiting = deque(range(len(tasks)))
    suspects: list[int] = []  # in flight when a worker died
    while waiting:
        in_flight, cause = yield from _drain(function, tasks, waiting, num_workers)
        if in_flight:
            names = ", ".join(identifiers[index] for index in in_flight)
            print(
                f"WARNING: a worker process was lost ({cause}) while these cases were in work: {names}. "
                "The other cases go on; these are tried again one at a time at the end.",
                flush=True,
            )
            suspects += in_flight
    for index in suspects:
        alone, died, cause = deque([index]), [], ""
        while alone and not died:
            died, cause = yield from _drain(function, tasks, alone, 1)
        if died:
            yield index, _Outcome(error=WorkerDied(_message_about_death(identifiers[index], cause)))


def _message_about_death(identifier: str, cause: str) -> str:
    return (
        f"the worker process was lost ({cause}) while case {identifier} was in work, also when it ran alone. "
        "If memory is short, free some or run on a machine with more; else check the files of this case."
    )


def _drain(
    function: Callable[..., Any], tasks: Sequence[tuple], waiting: deque[int], num_workers: int
) -> Generator[tuple[int, _Outcome], None, tuple[list[int], str]]:
    """Work off ``waiting`` in one pool. Returns the tasks that were in flight when a worker died, normally none, and why it died.

    Tasks are left in ``waiting`` where the pool broke before they were handed out.
    No more tasks are handed out than there are workers, so that "in flight" means "in work".
    """
    executor = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    memory_kills = count_of_memory_kills()
    in_flight: dict[Future, int] = {}
    try:
        _check_that_workers_start(executor)
        while waiting or in_flight:
            while waiting and len(in_flight) < num_workers:
                index = waiting.popleft()
                try:
                    in_flight[executor.submit(_attempt_in_worker, function, tasks[index])] = index
                except BrokenProcessPool:
                    waiting.appendleft(index)
                    break
            if not in_flight:
                return [], ""  # an idle worker died: nothing is lost, but the pool takes no more tasks
            processes = list((executor._processes or {}).values())  # the pool forgets them when it breaks
            done, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            died = []
            for future in done:
                index = in_flight.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    died.append(index)
                    continue
                except Exception as error:  # the task or its result cannot be pickled
                    outcome = _Outcome(error=error, traceback_text=traceback.format_exc())
                yield index, outcome
            if died:
                return sorted([*died, *in_flight.values()]), cause_of_death(_exit_code_of_first_death(processes), memory_kills)
        return [], ""
    finally:
        executor.shutdown(wait=not in_flight, cancel_futures=True)


def _exit_code_of_first_death(processes: Sequence[BaseProcess]) -> int | None:
    """Exit code of the process that broke the pool, which then terminates the others; None if it cannot be told."""
    codes: list[int | None] = [None]
    deadline = time.monotonic() + SECONDS_TO_END
    while None in codes and time.monotonic() < deadline:
        codes = [process.exitcode for process in processes]
        time.sleep(0.01)
    return next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)


def _run_on_cluster(
    function: Callable[..., Any], tasks: Sequence[tuple], identifiers: Sequence[str], scheduler: str
) -> Iterator[tuple[int, _Outcome]]:
    """Yield ``(index, outcome)`` as the workers of a Dask cluster finish tasks."""
    from nnunetv2.utilities.dask_cluster import LostTask, run_on_cluster

    calls = [(function, task) for task in tasks]
    for index, outcome in run_on_cluster(scheduler, _attempt_in_worker, calls, identifiers):
        if isinstance(outcome, LostTask):
            outcome = _Outcome(error=WorkerDied(outcome.message))
        elif isinstance(outcome, Exception):  # a task that cannot be sent, a worker without this package or with another version
            outcome = _Outcome(error=outcome, traceback_text="".join(traceback.format_exception(outcome)))
        yield index, outcome


def _check_that_workers_start(executor: ProcessPoolExecutor) -> None:
    try:
        executor.submit(_worker_is_ready).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "Worker processes could not be started; their own message stands above. If this was called from a script, "
            "its code must be below `if __name__ == '__main__':`, because worker processes import the script. "
            "With one process (-np 1, num_processes=1) no worker processes are needed."
        ) from error
