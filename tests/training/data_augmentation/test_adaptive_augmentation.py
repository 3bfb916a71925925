"""Images are augmented where the training waits less, and batches stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_loaders import make_loader

from nnunetv2.training.data_augmentation import adaptive_augmentation
from nnunetv2.training.data_augmentation.adaptive_augmentation import AdaptiveStream
from nnunetv2.training.data_augmentation.device_augmentation import DeviceAugmentedStream, ImageLater
from nnunetv2.training.dataloading.batch_stream import BatchStream

DEVICE = torch.device("cpu")
EPOCH = 3  # batches


class Training:
    """Streams of real loaders on a clock that only they and the training's steps advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, load: float, load_on_device: float, **options: Any) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self._seconds = {None: load, DEVICE: load_on_device}
        monkeypatch.setattr(adaptive_augmentation.time, "perf_counter", lambda: self.now)
        self.stream = AdaptiveStream(self.make_stream, DEVICE, self.said.append, **options)

    def make_stream(self, device: torch.device | None) -> Any:
        loader = make_loader("3d", image_later=device is not None)
        stream = BatchStream(loader, EPOCH)
        return Timed(self, stream if device is None else loader.device_stream(stream, device), self._seconds[device])

    def epochs(self, number: int) -> list[Any]:
        batches = []
        for _ in range(number * EPOCH):
            batches.append(next(self.stream))
            self.now += 1.0  # a training step
        return batches

    @property
    def is_on_device(self) -> bool:
        return isinstance(self.stream.current.stream, DeviceAugmentedStream)


class Timed:
    def __init__(self, training: Training, stream: Any, seconds: float) -> None:
        self._training, self.stream, self._seconds = training, stream, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __next__(self) -> Any:
        self._training.now += self._seconds
        return next(self.stream)


def assert_usual_batches(found: list[Any]) -> None:
    """The batches that the loading processes would have made, from the first on."""
    for batch, expected in zip(found, BatchStream(make_loader("3d", image_later=False), EPOCH)):
        assert list(batch["keys"]) == list(expected["keys"])
        assert all(torch.equal(a, b) for a, b in zip(batch["target"], expected["target"], strict=True))
        torch.testing.assert_close(batch["data"], expected["data"], rtol=1e-4, atol=1e-4)


def test_a_training_that_waits_moves_after_its_second_epoch_and_stays_where_it_is_faster(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    batches = training.epochs(1)
    assert not training.is_on_device
    batches += training.epochs(1)
    assert training.is_on_device
    assert "waits for data 60% of its time" in training.said[0]  # three loads and the two steps between them
    batches += training.epochs(3)
    assert training.is_on_device and len(training.said) == 2
    assert "2.3 s there, 5.0 s with the loading processes" in training.said[1]
    assert_usual_batches(batches)


def test_it_comes_back_for_good_where_the_device_is_not_faster(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=1.0)
    batches = training.epochs(4)
    assert not training.is_on_device and "again" in training.said[1]
    batches += training.epochs(4)
    assert not training.is_on_device and len(training.said) == 2
    assert_usual_batches(batches)


def test_a_training_that_hardly_waits_does_not_move_until_it_does(monkeypatch) -> None:
    training = Training(monkeypatch, load=0.1, load_on_device=0.0)
    training.epochs(5)
    assert not training.is_on_device and training.said == []
    training.stream.current._seconds = 2.0  # another training starts on this machine
    training.epochs(1)
    assert training.is_on_device


def failing_after(batches: int, finish: Callable) -> Callable:
    left = [2 * batches]  # samples

    def fail_at_last(*arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")
        return finish(*arguments)

    return fail_at_last


def test_a_device_that_fails_loses_no_batch(monkeypatch) -> None:
    monkeypatch.setattr(ImageLater, "finish", failing_after(4, ImageLater.finish))
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    batches = training.epochs(5)
    assert not training.is_on_device
    assert training.said[-1].endswith("because cpu failed (OutOfMemoryError: CUDA out of memory.).")
    assert_usual_batches(batches)


def test_errors_of_the_loading_processes_are_not_the_devices(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    training.stream.current.loader._data.cases.clear()
    with pytest.raises(RuntimeError, match="no training sample could be made"):
        next(training.stream)
    assert training.said == []


def test_a_device_without_memory_gets_no_images(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1, free_memory=lambda device: 1000)
    training.epochs(3)
    assert not training.is_on_device
    assert len(training.said) == 1 and "no memory left" in training.said[0]


def test_epochs_can_be_skipped(monkeypatch) -> None:
    training = Training(monkeypatch, load=1.0, load_on_device=0.1)
    training.stream.set_epoch(7)
    batch = next(training.stream)
    expected = make_loader("3d", image_later=False).generate_batch(7, 0)
    assert torch.equal(batch["data"], expected["data"]) and training.stream.position == (7, 1)
