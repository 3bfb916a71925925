"""Images augmented by the loading processes, or by the GPU where a training would wait for these."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from nnunetv2.training.data_augmentation.device_augmentation import VARIABLE

WORTH_MOVING = 0.2  # share of the time of an epoch's training steps that is spent waiting for batches
EPOCHS_TO_MEASURE = 2  # the first one also compiles, fills queues and reads files that the system then keeps in memory
# What the device needs at once for each sample it augments: the part of the volume, the coordinates of three axes, noise and copies.
COPIES_OF_IMAGES = 10


class AdaptiveStream:
    """A stream of batches that measures how long the training waits for it, and moves the augmentation of images to the GPU if that helps.

    Batches come in the same order with the same cases, patches and targets wherever images are augmented; images are equal up to rounding.
    The augmentation goes to the device after an epoch that waited much, and comes back for good if epochs do not get shorter there or the
    device fails.

    Args:
        make_stream: Makes the stream that augments on the given device, or with None the one that does it in the loading processes.
        device: Of the training.
        say: Writes a line into the training's log.
        free_memory: Gives the bytes that are free on a device; None: what the GPU's driver says.
    """

    def __init__(
        self,
        make_stream: Callable[[torch.device | None], Any],
        device: torch.device,
        say: Callable[[str], None],
        free_memory: Callable[[torch.device], int] | None = None,
    ) -> None:
        self.current = make_stream(None)
        self._make_stream = make_stream
        self._device = device
        self._say = say
        self._free_memory = free_memory or _free_memory
        self._on_device = False
        self._is_settled = False  # nothing is measured any more
        self._epochs_here = 0
        self._begun: float | None = None  # when the first batch of the epoch was asked for
        self._waited = 0.0
        self._seconds_before = 0.0  # that the training steps of an epoch took with the loading processes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "current":  # while it is copied it has no stream yet
            raise AttributeError(name)
        return getattr(self.current, name)

    def __iter__(self) -> AdaptiveStream:
        return self

    def __enter__(self) -> AdaptiveStream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __next__(self) -> Any:
        """The next batch; the last one of an epoch may be followed by a move."""
        if self._is_settled:
            return next(self.current)
        _, iteration = self.position
        asked = time.perf_counter()
        if iteration == 0:
            self._begun, self._waited = asked, 0.0
        batch = self._next_batch()
        came = time.perf_counter()
        self._waited += came - asked
        if iteration == self.batches_per_epoch - 1 and self._begun is not None:
            self._judge(came - self._begun, self._waited, batch)
        return batch

    def _next_batch(self) -> Any:
        position = self.position
        try:
            return next(self.current)
        except RuntimeError as error:
            if not self._on_device:
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        self._settle(f"Images are augmented by the loading processes again, because {self._device} failed ({reason}).", position)
        return next(self.current)

    def _judge(self, seconds: float, waited: float, batch: Any) -> None:
        """Decide after an epoch whose training steps took ``seconds``."""
        self._epochs_here += 1
        self._begun = None
        if self._epochs_here < EPOCHS_TO_MEASURE:
            return
        if self._on_device:
            times = f"an epoch's training steps take {seconds:.1f} s there, {self._seconds_before:.1f} s with the loading processes alone"
            if seconds < self._seconds_before:
                self._is_settled = True
                self._say(f"Images stay on {self._device}: {times}.")
            else:
                self._settle(f"Images are augmented by the loading processes again: {times}.", self.position)
        elif waited > WORTH_MOVING * seconds:
            share = f"The training waits for data {waited / seconds:.0%} of its time"
            needed, free = COPIES_OF_IMAGES * batch["data"].nbytes, self._free_memory(self._device)
            if needed > free:
                self._is_settled = True
                self._say(f"{share}, but {self._device} has no memory left to augment images ({free / 1e6:.0f} of {needed / 1e6:.0f} MB).")
                return
            self._say(f"{share}: from the next epoch on {self._device} augments the images ({VARIABLE}=cpu: never).")
            self._seconds_before = seconds
            self._move(self._device, self.position)

    def _settle(self, line: str, position: tuple[int, int]) -> None:
        """Go back to the loading processes for good."""
        self._say(line)
        self._is_settled = True
        self._move(None, position)

    def _move(self, device: torch.device | None, position: tuple[int, int]) -> None:
        self.current.close()
        self.current = self._make_stream(device)
        self.current.set_position(*position)
        self._on_device = device is not None
        self._epochs_here = 0


def _free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses; what torch keeps for itself is not among them. Other devices have enough."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize
