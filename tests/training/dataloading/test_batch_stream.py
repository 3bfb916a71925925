"""The same batches in the same order whatever the number of workers, and no silence when one of them fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from nnunetv2.training.dataloading import batch_transport
from nnunetv2.training.dataloading.batch import Batch
from nnunetv2.training.dataloading.batch_stream import BatchStream
from nnunetv2.training.dataloading.batch_transport import receive_message, send_message
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

ON_LINUX = sys.platform.startswith("linux")
needs_fork = pytest.mark.skipif(not ON_LINUX, reason="workers with a loader that cannot be pickled need fork")


def contents(batch: Batch) -> tuple:
    return batch["data"].numpy().tobytes(), *(t.numpy().tobytes() for t in batch["target"]), tuple(batch["keys"])


@pytest.fixture(scope="module")
def expected(module_loader) -> list[tuple]:
    """Batches 0 to 8 without workers."""
    stream = BatchStream(module_loader, batches_per_epoch=4)
    return [contents(next(stream)) for _ in range(9)]


@pytest.fixture(scope="module")
def module_loader(make_loader) -> nnUNetDataLoader:
    return make_loader()


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, None), (2, None), (3, 7), (2, 1)])
def test_workers_do_not_change_the_batches(module_loader, expected, num_workers: int, prefetch: int | None) -> None:
    with BatchStream(module_loader, 4, num_workers, prefetch) as stream:
        assert [contents(next(stream)) for _ in range(9)] == expected
        assert stream.position == (2, 1)


def test_started_by_spawn_they_are_the_same(module_loader, expected) -> None:
    with BatchStream(module_loader, 4, 1, start_method="spawn") as stream:
        assert [contents(next(stream)) for _ in range(3)] == expected[:3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_training_sees_the_batches_it_would_have_seen(module_loader, expected, num_workers: int) -> None:
    with BatchStream(module_loader, 4, num_workers, start_epoch=1) as stream:
        assert [contents(next(stream)) for _ in range(3)] == expected[4:7]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_be_set_forwards_and_backwards(module_loader, expected, num_workers: int) -> None:
    with BatchStream(module_loader, 4, num_workers, prefetch=5) as stream:
        next(stream)
        stream.set_epoch(2)
        assert contents(next(stream)) == expected[8]
        stream.set_epoch(0)
        assert [contents(next(stream)) for _ in range(3)] == expected[:3]
        stream.set_epoch(1)  # the next batches, some of which are prepared already
        assert [contents(next(stream)) for _ in range(2)] == expected[4:6]
        stream.set_epoch(1)
        assert contents(next(stream)) == expected[4]


def test_setting_the_epoch_that_comes_next_keeps_the_workers(module_loader, expected) -> None:
    with BatchStream(module_loader, 4, 1, prefetch=3) as stream:
        for _ in range(4):
            next(stream)
        worker = stream._workers[0].process.pid
        stream.set_epoch(1)
        assert contents(next(stream)) == expected[4] and stream._workers[0].process.pid == worker


def test_batches_are_writable_and_outlive_the_stream(module_loader) -> None:
    with BatchStream(module_loader, 4, 1) as stream:
        batch = next(stream)
    batch["data"] += 1
    batch["target"][0][:] = 0
    assert isinstance(batch, Batch) and torch.isfinite(batch["data"]).all() and batch["class"] == {}


def test_no_process_is_left_behind(module_loader) -> None:
    stream = BatchStream(module_loader, 4, 2)
    next(stream)
    workers = [worker.process.pid for worker in stream._workers]
    stream.close()
    assert not {child.pid for child in multiprocessing.active_children()} & set(workers)
    assert contents(next(stream)) == contents(module_loader.generate_batch(0, 1))  # it goes on where it was
    stream.close()


class FailingLoader(nnUNetDataLoader):
    """Fails, or dies, at one position."""

    fails_at = (0, 2)
    how = "error"

    def generate_batch(self, epoch: int, iteration: int) -> Batch:
        if (epoch, iteration) == self.fails_at:
            if self.how == "error":
                raise RuntimeError("Case case_3: the voxels are upset")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate_batch(epoch, iteration)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_arrives_with_the_case_and_the_place(make_loader, num_workers: int) -> None:
    with BatchStream(make_loader(FailingLoader), 4, num_workers) as stream:
        next(stream), next(stream)  # what comes before is still handed out
        with pytest.raises(RuntimeError, match="case_3: the voxels are upset") as caught:
            next(stream)
        assert num_workers == 0 or "generate_batch" in str(caught.value)
        assert not stream._workers


@needs_fork
def test_a_killed_worker_is_noticed_and_its_cases_are_named(make_loader) -> None:
    loader = make_loader(FailingLoader)
    loader.how = "kill"
    cases = loader.identifiers_of_batch(0, 2)
    with BatchStream(loader, 4, 2) as stream:
        started = time.monotonic()
        with pytest.raises(RuntimeError, match="SIGKILL.*memory.*nnUNet_n_proc_DA") as caught:
            for _ in range(4):
                next(stream)
        assert all(case in str(caught.value) for case in cases) and time.monotonic() - started < 60


@needs_fork
def test_a_worker_killed_while_idle_is_noticed(module_loader) -> None:
    with BatchStream(module_loader, 4, 1, prefetch=1) as stream:
        next(stream)
        time.sleep(0.5)
        os.kill(stream._workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="died"):
            for _ in range(3):
                next(stream)


@needs_fork
def test_workers_end_with_a_training_that_is_killed(preprocessed_folder) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from nnunetv2.training.dataloading.batch_stream import BatchStream
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
make = lambda: BatchStream(nnUNetDataLoader(nnUNetDatasetBlosc2({preprocessed_folder!r}), 2, (8, 8, 8), (8, 8, 8),
                           LabelManager({{"background": 0, "a": 1}}, None)), 4, 2)
streams = [make(), make()]
for stream in streams: next(stream)
print(*[worker.process.pid for stream in streams for worker in stream._workers], flush=True)
time.sleep(600)
"""
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in training.stdout.readline().split()]
    training.kill()
    training.wait()
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(workers) == 4 and not any(_is_running(pid) for pid in workers)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class RandomLoader(nnUNetDataLoader):
    """Batches of nothing but what torch and numpy draw."""

    def generate_train_batch(self) -> dict:
        return {"data": torch.rand(4), "target": [torch.from_numpy(np.random.rand(4))], "keys": np.array(["a"])}


@needs_fork
def test_workers_do_not_repeat_each_others_random_numbers(make_loader) -> None:
    with BatchStream(make_loader(RandomLoader), 50, 2) as stream:
        drawn = [contents(next(stream)) for _ in range(12)]
    assert len({d[0] for d in drawn}) == 12 and len({d[1] for d in drawn}) == 12


def test_nonsense_is_refused(module_loader) -> None:
    with pytest.raises(ValueError, match="per epoch"):
        BatchStream(module_loader, 0)
    with pytest.raises(ValueError, match="workers"):
        BatchStream(module_loader, 1, -1)


# --- the way between processes


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_kind_of_content_arrives(monkeypatch, in_memory: bool) -> None:
    if in_memory and not batch_transport.HAS_ANONYMOUS_MEMORY:
        pytest.skip("this system has no anonymous memory files")
    monkeypatch.setattr(batch_transport, "HAS_ANONYMOUS_MEMORY", in_memory)
    ours, theirs = multiprocessing.Pipe(duplex=True)
    content = Batch(
        data=torch.arange(6.0).reshape(2, 3).t(),
        target=[torch.ones(2, 1, dtype=torch.bool), torch.zeros(0, 3, dtype=torch.int16)],
        keys=np.array(["case_1", "ü"]),
        extra={"scalar": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16), "text": "x", "none": None},
    )
    send_message(theirs, (5, content))
    number, found = receive_message(ours)
    assert number == 5 and isinstance(found, Batch) and found["keys"].tolist() == ["case_1", "ü"]
    assert torch.equal(found["data"], content["data"]) and found["data"].dtype == torch.float32
    assert found["target"][0].dtype == torch.bool and found["target"][1].shape == (0, 3)
    assert found["extra"]["scalar"].shape == () and found["extra"]["half"].dtype == torch.bfloat16 and found["extra"]["none"] is None
    found["data"] += 1
    send_message(theirs, "nothing big")
    assert receive_message(ours) == "nothing big"
    theirs.close()
    with pytest.raises(EOFError):
        receive_message(ours)


@pytest.mark.skipif(not ON_LINUX, reason="needs anonymous memory files")
@needs_fork
def test_lack_of_memory_is_an_error_in_the_training(module_loader, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch_transport.os, "pwrite", full)  # inherited by the forked worker
    with BatchStream(module_loader, 4, 1, start_method="fork") as stream:
        with pytest.raises(RuntimeError, match="no memory.*nnUNet_n_proc_DA"):
            next(stream)
