"""Images augmented by the loading processes, or by the GPU where a training would wait for these."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from nnunetv2.training.data_augmentation.device_augmentation import VARIABLE, StreamAround
from nnunetv2.training.dataloading.batch_stream import BatchStream

WORTH_MOVING = 0.2  # share of the time of an epoch's training steps that is spent waiting for batches
WORTH_STAYING = 0.95  # of the shorter of two epochs' time with the loading processes
EPOCHS_BEFORE_MOVE = 2  # that wait, one after the other: a single one may have had to share disk or processor
# Epochs that are not judged: the first one compiles, fills queues and reads files that the system then keeps in memory.
EPOCHS_TO_SETTLE_IN = 1
# Of a batch's images, what the device takes to augment them: larger parts of the volumes, noise, coordinates and copies.
COPIES_OF_IMAGES = 10
SPARE_MEMORY = 0.05  # of the device: training steps take their memory in other pieces afterwards


class AdaptiveStream(StreamAround):
    """A stream of batches that measures how long the training waits for it, and moves the augmentation of images to the GPU if that helps.

    Batches come in the same order with the same cases, patches and targets wherever images are augmented; images are equal up to rounding.
    The augmentation goes to the device after two epochs that waited much. It comes back for good if an epoch does not get shorter there, or
    whenever the device fails to augment.

    Args:
        stream: Whose loader can leave images to a device.
        device: Of the training.
        say: Writes a line into the training's log.
        free_memory: Gives the bytes that are free on a device; None: what the GPU's driver says.
    """

    def __init__(
        self,
        stream: BatchStream,
        device: torch.device,
        say: Callable[[str], None],
        free_memory: Callable[[torch.device], int] | None = None,
    ) -> None:
        super().__init__(stream)
        self._usual = stream
        self._device = device
        self._say = say
        self._free_memory = free_memory or _free_memory
        self._is_settled = False  # nothing is measured any more
        self._epochs_here = 0
        self._begun: float | None = None  # when the first batch of the epoch was asked for
        self._waited = 0.0
        self._waiting_epochs: list[float] = []  # seconds of the training steps of the latest epochs that waited

    def __next__(self) -> Any:
        """The next batch; the last one of an epoch may be followed by a move."""
        if self._is_settled:
            return self._next_batch()
        _, iteration = self.position
        asked = time.perf_counter()
        if iteration == 0:
            self._begun, self._waited = asked, 0.0
        batch = self._next_batch()
        came = time.perf_counter()
        self._waited += came - asked
        if iteration == self.batches_per_epoch - 1 and self._begun is not None and not self._is_settled:
            self._judge(came - self._begun, self._waited, batch)
        return batch

    @property
    def is_on_device(self) -> bool:
        """Whether the device augments the images now."""
        return self.current is not self._usual

    def _next_batch(self) -> Any:
        position = self.position
        try:
            return next(self.current)
        except RuntimeError as error:
            if not self.is_on_device or self.position == position:  # the loading processes failed
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        self._settle_here(f"Images are augmented by the loading processes again, because {self._device} failed ({reason}).", position)
        return next(self.current)

    def _judge(self, seconds: float, waited: float, batch: Any) -> None:
        """Decide after an epoch whose training steps took ``seconds``."""
        self._epochs_here += 1
        self._begun = None
        if self._epochs_here <= EPOCHS_TO_SETTLE_IN:
            return
        if self.is_on_device:
            before = min(self._waiting_epochs)
            times = f"an epoch's training steps take {seconds:.1f} s there, {before:.1f} s with the loading processes alone"
            if seconds < WORTH_STAYING * before:
                self._is_settled = True
                self._say(f"Images stay on {self._device}: {times}.")
            else:
                self._settle_here(f"Images are augmented by the loading processes again: {times}.", self.position)
            return
        self._waiting_epochs = [*self._waiting_epochs, seconds] if waited > WORTH_MOVING * seconds else []
        if len(self._waiting_epochs) == EPOCHS_BEFORE_MOVE:
            self._move_to_device(f"The training waits for data {waited / seconds:.0%} of its time", batch["data"].nbytes)

    def _move_to_device(self, why: str, image_bytes: int) -> None:
        needed, free = COPIES_OF_IMAGES * image_bytes, self._free_memory(self._device)
        if needed > free:
            self._is_settled = True
            self._say(f"{why}, but {self._device} has too little memory to augment images ({free / 1e6:.0f} of {needed / 1e6:.0f} MB).")
            return
        self._say(f"{why}: from the next epoch on {self._device} augments the images ({VARIABLE}=cpu: never).")
        self._usual.close()
        self.current = self._usual.on_device(self._device)
        self._epochs_here = 0

    def _settle_here(self, line: str, position: tuple[int, int]) -> None:
        """Go back to the loading processes for good."""
        self._say(line)
        self._is_settled = True
        self.current.close()
        self.current = self._usual
        self.current.set_position(*position)


def _free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody uses, less a reserve; what torch keeps for itself is not among them. Other devices have enough."""
    if device.type != "cuda":
        return sys.maxsize
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - SPARE_MEMORY * total))
