"""Per-case tasks: order, failures, dying workers."""

from __future__ import annotations

import os
import signal
import sys
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
