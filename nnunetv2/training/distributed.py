"""Several processes train one network: how they share a batch, and what they tell each other."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

LOCAL_RANK = "LOCAL_RANK"  # environment variable of torchrun: number of the process among those of its machine


def is_distributed() -> bool:
    """Whether this process belongs to an initialised process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def process_rank() -> int:
    """Rank of this process, 0 outside a process group."""
    from torch import distributed

    return distributed.get_rank() if is_distributed() else 0


def sample_range_of_rank(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one past the last sample of the global batch that a rank draws.

    Raises:
        ValueError: If there are more processes than samples.
    """
    if global_batch_size < world_size:
        raise ValueError(
            f"The batch size is {global_batch_size}, but there are {world_size} processes and each needs one sample at least. "
            f"Use {global_batch_size} or fewer processes, or plan a larger batch size."
        )
    share, rest = divmod(global_batch_size, world_size)
    first = rank * share + min(rank, rest)
    return first, first + share + (1 if rank < rest else 0)


def batch_share_of_rank(global_batch_size: int, oversample_foreground_percent: float, rank: int, world_size: int) -> tuple[int, float]:
    """Batch size of a rank, and the share of its samples that are forced to hold foreground.

    In the global batch the last samples are forced. A rank forces those of its own samples that lie among them.
    """
    first, end = sample_range_of_rank(global_batch_size, rank, world_size)
    unforced_share = 1 - oversample_foreground_percent
    if end / global_batch_size < unforced_share:
        oversampling = 0.0
    elif first / global_batch_size > unforced_share:
        oversampling = 1.0
    else:
        first_forced = round(global_batch_size * unforced_share)
        oversampling = max(0, end - max(first, first_forced)) / (end - first)
    return end - first, oversampling


# --- what the processes of a training tell each other; without a process group each of these is this process' own answer


def number_of_processes() -> int:
    """Processes of this training, over all machines."""
    from torch import distributed

    return distributed.get_world_size() if is_distributed() else 1


def of_all_processes(value: Any) -> list[Any]:
    """A value, made of plain data, arrays or tensors on the CPU, of every process, by rank. All processes must call it."""
    if not is_distributed():
        return [value]
    from torch import distributed

    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def of_first_process(value: Any) -> Any:
    """What the first process gives; the value of the others is not looked at. All processes must call it."""
    if not is_distributed():
        return value
    from torch import distributed

    values = [value if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all_processes() -> None:
    """Return once every process has come here."""
    of_all_processes(None)


def outputs_of_all_processes(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of an epoch's steps in the order of the samples of the global batches: by step, then by rank."""
    if not is_distributed():
        return outputs
    return [output for of_one_step in zip(*of_all_processes(outputs), strict=True) for output in of_one_step]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes, as DistributedDataParallel does for the network."""
    if not is_distributed():
        return
    from torch import distributed

    for parameter in parameters:
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()


def portable_error(error: Exception) -> Exception:
    """The error itself if it can be sent to another process, else its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


# --- the network


def device_of_process(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine, where the training runs on GPUs."""
    import torch

    if device.type != "cuda":
        return device
    rank = process_rank()
    if LOCAL_RANK in os.environ and is_distributed():
        return torch.device("cuda", int(os.environ[LOCAL_RANK]))
    # a process group of the user's own
    return torch.device("cuda", rank % max(1, torch.cuda.device_count()) if is_distributed() else 0)


def distributed_network(network: nn.Module, device: torch.device, find_unused_parameters: bool) -> nn.Module:
    """The network in the shell that averages gradients over the processes; starts with the weights of the first process."""
    from torch import nn

    return nn.parallel.DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=find_unused_parameters
    )


def with_synchronized_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalization over the batches of all processes, on GPUs; torch has none for CPUs."""
    from torch import nn

    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
