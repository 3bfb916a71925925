"""Images are augmented where the training waits less, and batches stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_loaders import make_loader

from nnunetv2.training.data_augmentation import adaptive_augmentation
from nnunetv2.training.data_augmentation.adaptive_augmentation import AdaptiveStream
from nnunetv2.training.data_augmentation.device_augmentation import ImageLater
from nnunetv2.training.dataloading.batch_stream import BatchStream

DEVICE = torch.device("cpu")
EPOCH = 3  # batches


class Timed:
    """A stream on a clock that only its loading advances."""

    def __init__(self, training: Training, stream: Any, seconds: float) -> None:
        self._training, self._stream, self.seconds = training, stream, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __next__(self) -> Any:
        self._training.now += self.seconds
        return next(self._stream)

    def on_device(self, device: torch.device) -> Timed:
        return Timed(self._training, self._stream.on_device(device), self._training.load_on_device)


class Training:
    """A real loader whose batches, and a training whose steps, take the seconds that they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, load: float, load_on_device: float, **options: Any) -> None:
        self.now = 0.0
        self.load_on_device = load_on_device
        self.said: list[str] = []
        self.usual = Timed(self, BatchStream(make_loader("3d"), EPOCH), load)
        self.stream = AdaptiveStream(self.usual, DEVICE, self.said.append, **options)
        monkeypatch.setattr(adaptive_augmentation.time, "perf_counter", lambda: self.now)

    def epochs(self, number: int) -> list[Any]:
        batches = []
        for _ in range(number * EPOCH):
            batches.append(next(self.stream))
            self.now += 1.0  # a training step
        return batches


def assert_usual_batches(found: list[Any]) -> None:
    """The batches that the loading processes would have made, from the first on."""
    for batch, expected in zip(found, BatchStream(make_loader("3d"), EPOCH)):
        assert list(batch["keys"]) == list(expected["keys"])
        assert all(torch.equal(a, b) for a, b in zip(batch["target"], expected["target"], strict=True))
        torch.testing.assert_close(batch["data"], expected["data"], rtol=1e-4, atol=1e-4)


def test_a_training_that_waits_moves_and_stays_where_it_is_faster(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    batches = training.epochs(2)
    assert not training.stream.is_on_device
    batches += training.epochs(1)
    assert training.stream.is_on_device
    assert "waits for data 60% of its time" in training.said[0]  # three loads and the two steps between them
    batches += training.epochs(3)
    assert training.stream.is_on_device and len(training.said) == 2
    assert "2.3 s there, 5.0 s with the loading processes" in training.said[1]
    assert_usual_batches(batches)


@pytest.mark.parametrize("load_on_device", [1.0, 0.95])  # five seconds, and hardly less
def test_it_comes_back_for_good_where_the_device_is_not_faster(monkeypatch, load_on_device) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=load_on_device)
    batches = training.epochs(5)
    assert not training.stream.is_on_device and "again" in training.said[1]
    batches += training.epochs(4)
    assert not training.stream.is_on_device and len(training.said) == 2
    assert_usual_batches(batches)


def test_a_training_that_hardly_waits_does_not_move(monkeypatch) -> None:
    training = Training(monkeypatch, load=0.1, load_on_device=0.0)
    training.epochs(5)
    assert not training.stream.is_on_device and training.said == []
    training.usual.seconds = 2.0  # the disk is busy, once
    training.epochs(1)
    training.usual.seconds = 0.1
    training.epochs(1)
    training.usual.seconds = 2.0  # another training starts on this machine, and stays
    training.epochs(1)
    assert not training.stream.is_on_device
    training.epochs(1)
    assert training.stream.is_on_device


def failing_after(batches: int, finish: Callable) -> Callable:
    left = [2 * batches]  # samples

    def fail_at_last(*arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")
        return finish(*arguments)

    return fail_at_last


@pytest.mark.parametrize("batches_on_device", [4, 13])  # before and after it was decided that images stay there
def test_a_device_that_fails_loses_no_batch(monkeypatch, batches_on_device) -> None:
    monkeypatch.setattr(ImageLater, "finish", failing_after(batches_on_device, ImageLater.finish))
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    batches = training.epochs(9)
    assert not training.stream.is_on_device
    assert training.said[-1].endswith("because cpu failed (OutOfMemoryError: CUDA out of memory.).")
    assert_usual_batches(batches)


@pytest.mark.parametrize("epochs_before", [0, 3, 6])
def test_errors_of_the_loading_processes_are_not_the_devices(monkeypatch, epochs_before) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    training.epochs(epochs_before)
    said = list(training.said)
    training.stream.loader._data.cases.clear()
    with pytest.raises(RuntimeError, match="no training sample could be made"):
        next(training.stream)
    assert training.said == said


def test_a_device_without_memory_gets_no_images(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1, free_memory=lambda device: 1000)
    training.epochs(4)
    assert not training.stream.is_on_device
    assert len(training.said) == 1 and "too little memory" in training.said[0]


def test_epochs_can_be_skipped(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    training.stream.set_epoch(7)
    batch = next(training.stream)
    expected = make_loader("3d").generate_batch(7, 0)
    assert torch.equal(batch["data"], expected["data"]) and training.stream.position == (7, 1)


def test_changes_of_the_loader_go_with_it(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    training.stream.loader.indices = ["y"]
    batches = training.epochs(5)
    assert training.stream.is_on_device
    assert {name for batch in batches for name in batch["keys"]} == {"y"}
