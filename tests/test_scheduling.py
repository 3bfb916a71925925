"""Per-case tasks: order, failures, dying workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from nnunetv2 import scheduling
from nnunetv2.scheduling import CaseErrors, CaseFailure, WorkerDied, run_per_case


class ErrorWithTwoArguments(Exception):
    """Cannot be unpickled, as some libraries' errors."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def double(value: int, behaviour: str = "fine") -> int:
    if behaviour == "fails":
        raise ValueError(f"no {value}")
    if behaviour == "fails oddly":
        raise ErrorWithTwoArguments("odd", 3)
    if behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "exits":
        os._exit(7)
    if behaviour == "is slow":
        time.sleep(0.3)
    return 2 * value


def process_id() -> int:
    return os.getpid()


def imported_torch() -> bool:
    import nnunetv2.imageio.reader_writer_registry  # noqa: F401

    return "torch" in sys.modules


@pytest.mark.parametrize("num_processes", [0, 1, 2])
def test_results_come_in_the_order_of_the_tasks(num_processes: int) -> None:
    tasks = [(0, "is slow"), (1,), (2,), (3,)]
    assert run_per_case(double, tasks, identifiers="abcd", num_processes=num_processes, show_progress=False) == [0, 2, 4, 6]


def test_no_tasks_give_no_results() -> None:
    assert run_per_case(double, [], identifiers=[], num_processes=4) == []


def test_one_process_or_one_task_runs_in_the_calling_process() -> None:
    assert run_per_case(process_id, [(), ()], identifiers="ab", num_processes=1, show_progress=False) == [os.getpid()] * 2
    assert run_per_case(process_id, [()], identifiers="a", num_processes=8, show_progress=False) == [os.getpid()]


def test_several_processes_are_other_processes_without_torch() -> None:
    identifiers = run_per_case(process_id, [(), ()], identifiers="ab", num_processes=2, show_progress=False)
    assert os.getpid() not in identifiers
    assert run_per_case(imported_torch, [(), ()], identifiers="ab", num_processes=2, show_progress=False) == [False, False]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_failing_case_does_not_stop_the_others_and_all_failures_are_named(num_processes: int) -> None:
    tasks = [(0,), (1, "fails"), (2,), (3, "fails oddly"), (4,)]
    names = ["case_a", "case_b", "case_c", "case_d", "case_e"]
    results = run_per_case(double, tasks, identifiers=names, num_processes=num_processes, show_progress=False, on_error="return")
    assert [results[0], results[2], results[4]] == [0, 4, 8]
    assert isinstance(results[1], CaseFailure) and isinstance(results[1].error, ValueError)
    assert "in double" in results[1].traceback_text
    with pytest.raises(CaseErrors, match="2 of 5") as caught:
        run_per_case(double, tasks, identifiers=names, num_processes=num_processes, show_progress=False)
    assert [failure.identifier for failure in caught.value.failures] == ["case_b", "case_d"]
    assert "case_b: no 1" in str(caught.value) and "case_d: ErrorWithTwoArguments: odd" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def warn_about(value: int) -> None:
    if value:
        warnings.warn(f"value {value}", UserWarning, stacklevel=1)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_cases_warn_about_is_one_line_that_names_them(num_processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    run_per_case(warn_about, [(0,), (1,), (2,), (3,)], identifiers="abcd", num_processes=num_processes, show_progress=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("WARNING: value ") and "Likewise" in lines[0]
    assert num_processes > 1 or lines == ["WARNING: value 1 (Likewise c, d.)"]


def warn_between(case: str, begun: threading.Event, may_warn: threading.Event) -> None:
    begun.set()
    may_warn.wait(10)
    warnings.warn(f"from {case}", UserWarning, stacklevel=1)


def test_cases_in_threads_of_one_process_keep_their_own_warnings() -> None:
    """As in a Dask worker with several threads."""
    shown, outcomes = warnings.showwarning, {}
    begun, may_warn = ({case: threading.Event() for case in "abc"} for _ in range(2))

    def run(case: str) -> None:
        outcomes[case] = scheduling._attempt(warn_between, (case, begun[case], may_warn[case]))

    threads = {case: threading.Thread(target=run, args=(case,)) for case in "abc"}
    for case in "abc":
        threads[case].start()
        begun[case].wait(10)
    for case in "acb":  # all at work before the first warning, and one ends after the other
        may_warn[case].set()
        threads[case].join(10)
    assert {case: outcome.warnings for case, outcome in outcomes.items()} == {c: (("UserWarning", f"from {c}"),) for c in "abc"}
    assert warnings.showwarning is shown
    with pytest.warns(UserWarning, match="later"):  # what is not of a case is shown as ever
        warnings.warn("later", UserWarning, stacklevel=1)


def test_a_killed_worker_costs_only_its_own_case(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [(0, "is slow"), (1, "is killed"), (2,), (3,), (4,)]
    names = ["case_a", "case_b", "case_c", "case_d", "case_e"]
    results = run_per_case(double, tasks, identifiers=names, num_processes=2, show_progress=False, on_error="return")
    assert [results[0], *results[2:]] == [0, 4, 6, 8]
    assert isinstance(results[1].error, WorkerDied) and "signal 9, SIGKILL: most likely memory ran out" in str(results[1].error)
    assert "case_b" in capsys.readouterr().out


def test_a_worker_that_ends_by_itself_is_named_with_its_exit_code() -> None:
    (failure, other) = run_per_case(double, [(0, "exits"), (1,)], identifiers="ab", num_processes=2, show_progress=False, on_error="return")
    assert "ended with exit code 7" in str(failure.error) and "memory ran out" not in str(failure.error)
    assert other == 2


def test_results_are_handed_over_as_they_come() -> None:
    seen = {}
    results = run_per_case(
        double, [(0,), (1, "fails")], identifiers="ab", num_processes=1, show_progress=False, on_error="return", on_result=seen.__setitem__
    )
    assert seen == dict(enumerate(results))


def test_a_pool_that_breaks_while_idle_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class BreaksAfterEveryTask(ProcessPoolExecutor):
        """As if the system killed an idle worker."""

        submitted = 0

        def submit(self, *args, **kwargs):
            self.submitted += 1
            if self.submitted > 2:  # the first asks whether workers start
                raise BrokenProcessPool("a worker was killed")
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(scheduling, "ProcessPoolExecutor", BreaksAfterEveryTask)
    assert run_per_case(double, [(0,), (1,)], identifiers="ab", num_processes=2, show_progress=False) == [0, 2]


def test_identifiers_must_match_the_tasks() -> None:
    with pytest.raises(ValueError, match="2 tasks but 1 identifiers"):
        run_per_case(double, [(0,), (1,)], identifiers=["a"], num_processes=1)
