"""Processes of one training on this machine: none of them outlives another one's failure."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run import process_functions
from run.process_functions import (
    second_fails,
    write_averaged_gradients,
    write_error_of_a_lost_connection,
    write_initial_weights,
    write_seconds_until_left,
    write_threads_that_are_left,
    write_what_all_say,
    write_what_is_left_after_an_error,
)

from nnunetv2.run import processes
from nnunetv2.run.peer_watch import PeerFailure
from nnunetv2.run.processes import _errors_of, _raise_cause, in_every_process, run_on_this_machine

SECONDS = 60  # within which all must have ended


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def pids(folder: Path) -> list[int]:
    return [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]


def test_processes_hear_each_other(tmp_path: Path) -> None:
    run_on_this_machine(2, write_what_all_say, {"folder": str(tmp_path)})
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"([{'rank': 0}, {'rank': 1}], 'from 0')"}
    assert len(list(tmp_path.glob("*.txt"))) == 2


def test_gradients_become_their_mean_over_the_processes(tmp_path: Path) -> None:
    """AdamW hardly tells a sum from a mean, so that trained heads do not."""
    run_on_this_machine(2, write_averaged_gradients, {"folder": str(tmp_path)})
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["[[1.5, 15.0], [2.5, 25.0]]"] * 2


def test_all_processes_start_with_the_weights_of_the_first(tmp_path: Path) -> None:
    run_on_this_machine(2, write_initial_weights, {"folder": str(tmp_path)})
    torch.manual_seed(0)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [str(torch.nn.Linear(3, 1).weight.tolist())] * 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_no_thread_of_the_group_is_left_to_abort_the_end_of_the_interpreter(tmp_path: Path) -> None:
    run_on_this_machine(2, write_threads_that_are_left, {"folder": str(tmp_path)})
    for path in (tmp_path / "0.txt", tmp_path / "1.txt"):
        inside, after = path.read_text().split("] ")
        assert "gloo" in inside
        assert after == "['MainThread']"


def test_the_error_of_one_process_is_raised_and_ends_the_other(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="case_007 has no label") as raised:
        run_on_this_machine(2, second_fails, {"folder": str(tmp_path), "how": "raise", "others_are_busy": False})
    assert "in fail" in str(raised.value.__cause__)  # the traceback of the process
    assert len(pids(tmp_path)) == 2 and not any(map(is_running, pids(tmp_path)))


def test_a_killed_process_is_named_and_ends_those_that_are_busy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the third one, which is connected with the first one alone."""
    monkeypatch.setattr(processes, "END_SECONDS", 300.0)  # on other machines nobody would end them
    with pytest.raises(RuntimeError, match="Process 1 of 3 was ended by SIGKILL"):
        run_on_this_machine(3, second_fails, {"folder": str(tmp_path), "how": "kill", "others_are_busy": True})
    assert not list(tmp_path.glob("*.not_ended"))
    printed = capfd.readouterr().err
    for rank in (0, 2):
        assert re.search(rf"process {rank} of 3 \(.*\) stops, because process 1 of 3", printed)
    assert len(pids(tmp_path)) == 3 and not any(map(is_running, pids(tmp_path)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_after_an_error_nothing_of_the_group_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="case_007 has no label"):
        run_on_this_machine(2, write_what_is_left_after_an_error, {"folder": str(tmp_path)})
    left = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert left[1].startswith("False ['MainThread'") and left[1].endswith(" KeyError")
    assert left[0].startswith("False ['MainThread'") and left[0].endswith(" PeerFailure")
    assert "gloo" not in "".join(left)


def test_a_failed_process_does_not_wait_for_one_that_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 1.0)
    with pytest.raises(KeyError, match="case_007 has no label"):
        run_on_this_machine(2, write_seconds_until_left, {"folder": str(tmp_path)})
    assert float((tmp_path / "seconds.txt").read_text()) < 5


LOST = RuntimeError("[pair.cc:534] Gloo: Connection closed by peer [127.0.0.1]:4711")


def test_a_process_that_lost_the_connection_is_recognized_and_the_killed_one_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Process 1 of 2 was ended by SIGKILL"):
        run_on_this_machine(2, write_error_of_a_lost_connection, {"folder": str(tmp_path)})
    assert (tmp_path / "lost.txt").read_text().startswith("True ")


@pytest.mark.parametrize(
    ("errors", "exit_codes", "expected"),
    [
        ([LOST, KeyError("case_007")], [1, 1], "case_007"),
        ([LOST], [1, -9], "Process 1 of 2 was ended by SIGKILL"),
        ([LOST, PeerFailure("stops, because process 1")], [1, 1], "because process 1"),
        ([LOST], [1, 0], "Connection closed"),
        ([torch.distributed.DistNetworkError("reset"), ValueError("no memory")], [1, 1], "no memory"),
        ([RuntimeError("cannot read igloo/case_3"), PeerFailure("stops, because process 0")], [1, 1], "cannot read igloo"),
        ([PeerFailure("stops, because process 1")], [-signal.SIGALRM, -9], "Process 1 of 2 was ended by SIGKILL"),
    ],
)
def test_the_process_that_failed_first_is_named(errors: list[Exception], exit_codes: list[int], expected: str) -> None:
    with pytest.raises(Exception, match=expected):
        _raise_cause([(error, "") for error in errors], exit_codes)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_a_process_that_was_ended_is_named_where_signals_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGKILL")  # as on Windows
    with pytest.raises(RuntimeError, match=r"Process 0 of 2 was ended by SIGTERM\.$"):
        _raise_cause([], [-15, 0])
    with pytest.raises(RuntimeError, match=r"Process 1 of 2 was ended by signal 35\.$"):
        _raise_cause([], [0, -35])


def test_nothing_is_left_of_a_killed_launcher(tmp_path: Path) -> None:
    tests = Path(process_functions.__file__).parents[1]
    command = [sys.executable, "-m", "run.process_functions", str(tmp_path)]
    launcher = subprocess.Popen(command, cwd=tests, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(pids(tmp_path)) == 2)
    launcher.kill()
    launcher.wait()
    assert wait_until(lambda: not any(map(is_running, pids(tmp_path))))


@in_every_process
def training(num_gpus: int = 1, device: torch.device = torch.device("cuda")) -> None:
    raise AssertionError("nothing may be started")


def test_more_gpus_than_there_are_start_nothing() -> None:
    with pytest.raises(RuntimeError, match=f"-num_gpus 99, but torch finds {torch.cuda.device_count()} CUDA devices"):
        training(99)
    with pytest.raises(ValueError, match="mps has one GPU"):
        training(2, torch.device("mps"))


def test_torchrun_decides_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="-num_gpus 2, but torchrun started 4 processes"):
        training(2)


class EndsWhileLookedAt:
    """A process that is alive when asked first, and not any more when asked again."""

    exitcode = 0

    def __init__(self) -> None:
        self.answers = iter([True])

    def is_alive(self) -> bool:
        return next(self.answers, False)


def test_a_process_that_ends_while_it_is_looked_at_is_not_waited_for() -> None:
    waiting = threading.Thread(target=_errors_of, args=([EndsWhileLookedAt()], []), daemon=True)
    waiting.start()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
