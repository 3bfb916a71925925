"""Small tools that trainers import."""

from __future__ import annotations

from types import TracebackType

import torch


def softmax_helper_dim0(x: torch.Tensor) -> torch.Tensor:
    """Softmax over axis 0."""
    return torch.softmax(x, 0)


def softmax_helper_dim1(x: torch.Tensor) -> torch.Tensor:
    """Softmax over axis 1."""
    return torch.softmax(x, 1)


def empty_cache(device: torch.device) -> None:
    """Give unused memory of an accelerator back; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class dummy_context:
    """A context that does nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None) -> None:
        return None
