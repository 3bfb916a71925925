"""Carries batches from worker processes to the training process.

The large arrays of a batch travel in anonymous shared memory where the system has it (Linux: ``memfd_create``), whose
handle goes through a socket; elsewhere through the pipe itself. Neither needs ``/dev/shm``, which containers often keep
too small for a batch: writing beyond it kills the process with a bus error and no message.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from nnunetv2.training.dataloading.batch import Batch

ALIGNMENT = 64  # bytes; vector instructions read cache lines
HAS_ANONYMOUS_MEMORY = hasattr(os, "memfd_create") and hasattr(reduction, "send_handle")


def send_message(connection: Connection, message: Any) -> None:
    """Sends an object made of dicts, lists, tuples, tensors, arrays and small things.

    Raises:
        OSError: If there is no memory for the arrays (then nothing has been sent), or nobody reads the connection.
    """
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(_tensors_to_arrays(message), protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    sizes = [view.nbytes for view in views]
    if not (HAS_ANONYMOUS_MEMORY and sum(sizes) > 0):
        connection.send((head, sizes, False))
        for view in views:
            connection.send_bytes(view)
        return
    descriptor = _written_to_memory(views, sizes)
    try:
        connection.send((head, sizes, True))
        reduction.send_handle(connection, descriptor, None)
    finally:
        os.close(descriptor)


def receive_message(connection: Connection) -> Any:
    """The next object that :func:`send_message` sent; waits for it. Raises EOFError when the sender is gone."""
    head, sizes, in_memory = connection.recv()
    if in_memory:
        buffers = _receive_in_memory(connection, sizes)
    else:
        # recv_bytes returns read-only memory, out of which torch would make tensors that must not be written.
        buffers = [bytearray(connection.recv_bytes()) for _ in sizes]
    return _arrays_to_tensors(pickle.loads(head, buffers=buffers))


def _written_to_memory(views: list[memoryview], sizes: list[int]) -> int:
    """Descriptor of anonymous memory that holds the arrays."""
    offsets, total = _layout(sizes)
    descriptor = os.memfd_create("nnunetv2-batch", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, total)
        # Writing reports missing memory as an error, where touching a mapping would be a bus error.
        for view, offset in zip(views, offsets):
            written = 0
            while written < view.nbytes:
                written += os.pwrite(descriptor, view[written:], offset + written)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _receive_in_memory(connection: Connection, sizes: list[int]) -> list[memoryview]:
    offsets, total = _layout(sizes)
    descriptor = reduction.recv_handle(connection)
    try:
        memory = memoryview(mmap.mmap(descriptor, total))  # stays mapped as long as an array looks into it
    finally:
        os.close(descriptor)
    return [memory[offset : offset + size] for offset, size in zip(offsets, sizes)]


def _layout(sizes: list[int]) -> tuple[list[int], int]:
    """Aligned offset of each array, and the bytes needed for all."""
    offsets, position = [], 0
    for size in sizes:
        offsets.append(position)
        position += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, position


class _TensorAsArray:
    """Marks an array that was a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


def _tensors_to_arrays(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        try:
            return _TensorAsArray(np.asarray(value.detach().numpy(), order="C"))
        except TypeError:  # a dtype that numpy lacks; pickled as it is
            return value
    if isinstance(value, dict):
        converted = {key: _tensors_to_arrays(value[key]) for key in value.keys()}
        return Batch(converted) if isinstance(value, Batch) else converted
    if type(value) in (list, tuple):
        return type(value)(_tensors_to_arrays(item) for item in value)
    return value


def _arrays_to_tensors(value: Any) -> Any:
    if isinstance(value, _TensorAsArray):
        return torch.from_numpy(value.array)
    if isinstance(value, dict):
        converted = {key: _arrays_to_tensors(value[key]) for key in value.keys()}
        return Batch(converted) if isinstance(value, Batch) else converted
    if type(value) in (list, tuple):
        return type(value)(_arrays_to_tensors(item) for item in value)
    return value
