"""Cases on a Dask cluster: nothing is lost or done to different ends when workers are killed. Skipped without Dask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_datasets import PLANNER, PLANS, write_tiny_dataset
from tiny_models import write_images, write_model

from nnunetv2.scheduling import CaseFailure, WorkerDied, run_per_case
from nnunetv2.utilities import dask_cluster
from nnunetv2.utilities.dask_cluster import ClusterError, connect

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")


def work(value: int, behaviour: str = "fine") -> int:
    if behaviour == "fails":
        raise ValueError(f"no {value}")
    if behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * value


def environment_of_worker(name: str) -> str | None:
    return os.environ.get(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a scheduler with two workers, which are started again when they are killed."""
    # Workers that die once count as lost at once; otherwise it takes four deaths.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1", silence_logs=50
        ) as local,
    ):
        yield local.scheduler_address


def kill_a_worker_when(address: str, is_time: Callable[[], bool]) -> threading.Thread:
    """A thread that kills one worker process as soon as something has happened."""

    def watch() -> None:
        client = connect(address)
        processes = list(client.run(os.getpid).values())
        while not is_time():
            time.sleep(0.002)
        os.kill(processes[0], signal.SIGKILL)
        client.close()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_results_failures_and_deaths_are_those_of_their_cases(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"case_{letter}" for letter in "abcdef"]
    tasks = [(0,), (1, "fails"), (2, "is killed"), (3,), (4,), (5,)]
    seen = {}
    results = run_per_case(
        work,
        tasks,
        identifiers=names,
        num_processes=1,
        show_progress=False,
        on_error="return",
        on_result=seen.__setitem__,
        scheduler=cluster,
    )
    assert [results[index] for index in (0, 3, 4, 5)] == [0, 6, 8, 10]
    assert isinstance(results[1], CaseFailure) and str(results[1]) == "case_b: no 1" and "in work" in results[1].traceback_text
    assert isinstance(results[2].error, WorkerDied) and "case_c" in str(results[2]) and "memory" in str(results[2])
    assert seen == dict(enumerate(results))
    assert "2 workers, 2 cases at a time" in capsys.readouterr().out


def test_workers_know_where_the_users_classes_are(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "/somewhere")
    options = {"identifiers": ["a"], "num_processes": 1, "show_progress": False, "scheduler": cluster}
    assert run_per_case(environment_of_worker, [("nnUNet_extTrainer",)], **options) == ["/somewhere"]


def test_a_command_waits_for_the_first_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dask_cluster, "SECONDS_BETWEEN_LOOKS", 0.2)
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "host": "127.0.0.1", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=0, **options) as local:
        joining = threading.Timer(1, local.scale, args=[1])
        joining.start()
        tasks = {"identifiers": "ab", "num_processes": 1, "show_progress": False, "scheduler": local.scheduler_address}
        assert run_per_case(work, [(1,), (2,)], **tasks) == [2, 4]
        joining.join()
    assert "has no workers; waiting for some to join" in capsys.readouterr().out


def test_workers_of_another_version_are_refused(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "package_version", lambda: "0.0")
    with pytest.raises(RuntimeError, match="the command that asks it 0.0"):
        run_per_case(work, [(1,)], identifiers=["a"], num_processes=1, show_progress=False, scheduler=cluster)


def test_a_scheduler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(ClusterError, match="tcp://127.0.0.1:9"):
        run_per_case(work, [(1,)], identifiers=["a"], num_processes=1, show_progress=False, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"dask scheduler --scheduler-file .*none\.json"):
        connect(str(tmp_path / "none.json"))


def test_a_lost_scheduler_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(dask_cluster, "SECONDS_BETWEEN_LOOKS", 0.2)
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    # The scheduler looks into what it hands on, so that it has to find the function above.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    scheduler = subprocess.Popen([*command, "--scheduler-file", str(file)], stderr=subprocess.DEVNULL, cwd=tmp_path, env=environment)
    try:
        while not file.is_file():
            assert scheduler.poll() is None
            time.sleep(0.05)
        threading.Timer(1, scheduler.kill).start()
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(ClusterError, match="run the command again"):
            run_per_case(work, [(1,)], identifiers=["a"], num_processes=1, show_progress=False, scheduler=str(file))
        assert not [record for record in caplog.records if record.name == "distributed.client"]
    finally:
        scheduler.kill()
        scheduler.wait()


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """As Dask's workers compute. With another number of threads torch adds in another order, which moves the last digits of a float."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_worker_killed_in_preprocessing_costs_no_case(cluster: str, nnunet_folders: dict[str, Path], capsys) -> None:
    from nnunetv2.cli.plan_and_preprocess import extract_fingerprint_entry, plan_experiment_entry, preprocess_entry

    write_tiny_dataset(nnunet_folders["raw"] / "Dataset007_Tiny", num_cases=8)
    preprocessed = nnunet_folders["preprocessed"] / "Dataset007_Tiny"
    extract_fingerprint_entry(["-d", "7", "--no_pbar", "--scheduler", cluster])
    plan_experiment_entry(["-d", "7", "-pl", PLANNER])
    command = ["-d", "7", "-p", PLANS, "-c", "3d_fullres", "-np", "1", "--no_pbar"]
    folder, records = (preprocessed / f"{PLANS}_3d_fullres{ending}" for ending in ("", ".cases"))

    killer = kill_a_worker_when(cluster, lambda: records.is_dir() and len(list(records.glob("case_*.json"))) >= 2)
    preprocess_entry([*command, "--scheduler", cluster])
    killer.join()
    on_cluster = content(folder)
    assert len(on_cluster) == 3 * 8 and not any(name.startswith(".tmp") for name in on_cluster)
    said = capsys.readouterr().out
    assert "Dask cluster at" in said and "processes, because" not in said  # not one of the stages ran here

    preprocess_entry([*command, "--start_over"])
    assert content(folder) == on_cluster


def test_a_worker_killed_in_prediction_costs_no_case(cluster: str, one_torch_thread: None, tmp_path: Path) -> None:
    from nnunetv2.cli.predict import predict_modelfolder_entry

    images, here, there = tmp_path / "images", tmp_path / "here", tmp_path / "there"
    write_images(images, number=8)
    model = write_model(tmp_path / "model", classification=True)
    command = ["-m", str(model), "-i", str(images), "-f", "0", "--disable_tta", "-device", "cpu", "--save_cls", "--disable_progress_bar"]
    killer = kill_a_worker_when(cluster, lambda: len(list(there.glob("case_*.nii.gz"))) >= 2)
    predict_modelfolder_entry([*command, "-o", str(there), "--scheduler", cluster])
    killer.join()
    predict_modelfolder_entry([*command, "-o", str(here), "-npp", "0", "-nps", "0"])
    first, second = content(here), content(there)
    assert sorted(first) == sorted(second) and len([name for name in first if name.endswith(".nii.gz")]) == 8
    assert [name for name, written in first.items() if name.endswith((".nii.gz", ".csv")) and second[name] != written] == []

    (there / "case_3.nii.gz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in there.glob("*.nii.gz")}
    predict_modelfolder_entry([*command, "-o", str(there), "--scheduler", cluster, "--continue_prediction"])
    after = {path.name: path.stat().st_mtime_ns for path in there.glob("*.nii.gz")}
    assert {name for name in after if after[name] != before.get(name)} == {"case_3.nii.gz"}
