"""Resampling by torch's interpolation: linear, fast, and not equal to the cubic default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

ONE_HOT_SCALE = 1000  # spreads the indicator over float16's range
CERTAIN = 700  # of ONE_HOT_SCALE: no other label can be larger
CPU = torch.device("cpu")
LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}

ArrayOrTensor = np.ndarray | torch.Tensor


def resample_torch_simple(
    data: ArrayOrTensor,
    new_shape: Sequence[int],
    is_seg: bool = False,
    num_threads: int = 4,
    device: torch.device = CPU,
    memefficient_seg_resampling: bool = False,
    mode: str = "linear",
) -> ArrayOrTensor:
    """Resample ``(C, *spatial)`` along all axes together.

    Args:
        data: Image, or labels with ``is_seg``; array or tensor, and the result is of the same kind.
        new_shape: Two or three sizes.
        is_seg: Whether ``data`` holds labels.
        num_threads: Of torch, while this runs on the CPU.
        device: Where to compute.
        memefficient_seg_resampling: One label at a time; ties are decided otherwise.
        mode: ``linear``, or any mode of ``torch.nn.functional.interpolate``.

    Returns:
        float32, or for labels int8 (int16 if one reaches 127); ``data`` itself if the shape does not change.
    """
    size = tuple(int(n) for n in new_shape)
    if tuple(data.shape[1:]) == size:
        return data
    mode = LINEAR_MODES[len(size)] if mode == "linear" else mode
    with torch.no_grad(), _torch_threads(num_threads, device):
        tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
        origin = tensor.device
        tensor = tensor.to(device)
        if is_seg:
            result = _resample_labels(tensor, size, mode, memefficient_seg_resampling)
        else:
            result = _interpolate(tensor.float(), size, mode)
        if isinstance(data, np.ndarray):
            return result.cpu().numpy()
        return result.to(origin)


def resample_torch_fornnunet(
    data: ArrayOrTensor,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    num_threads: int = 4,
    device: torch.device = CPU,
    memefficient_seg_resampling: bool = False,
    force_separate_z: bool | None = None,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
    mode: str = "linear",
    aniso_axis_mode: str = "nearest-exact",
) -> ArrayOrTensor:
    """Resample ``(C, X, Y, Z)``; with a separate axis, slices first and then along it.

    Args:
        data: See :func:`resample_torch_simple`.
        new_shape: Three sizes.
        current_spacing: Voxel size before.
        new_spacing: Voxel size after.
        is_seg, num_threads, device, memefficient_seg_resampling, mode: See :func:`resample_torch_simple`.
        force_separate_z, separate_z_anisotropy_threshold: See ``determine_do_sep_z_and_axis``.
        aniso_axis_mode: Mode along the separate axis.
    """
    new_shape = [int(n) for n in new_shape]
    options = {"num_threads": num_threads, "device": device, "memefficient_seg_resampling": memefficient_seg_resampling}
    separate, axis = determine_do_sep_z_and_axis(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    if not separate:
        return resample_torch_simple(data, new_shape, is_seg, mode=mode, **options)
    is_array = isinstance(data, np.ndarray)
    tensor = torch.from_numpy(data) if is_array else data
    channels = tensor.shape[0]
    in_plane = [n for a, n in enumerate(new_shape) if a != axis]
    # slices become channels: (C, X, Y, Z) -> (C * slices, rows, columns)
    stack = tensor.movedim(axis + 1, 1)
    depth = stack.shape[1]
    stack = resample_torch_simple(stack.reshape(channels * depth, *stack.shape[2:]), in_plane, is_seg, mode=mode, **options)
    result = stack.reshape(channels, depth, *in_plane).movedim(1, axis + 1)
    result = resample_torch_simple(result, new_shape, is_seg, mode=aniso_axis_mode, **options)
    return result.numpy() if is_array else result


def _interpolate(tensor: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """``(C, *spatial)`` interpolated without antialiasing."""
    return functional.interpolate(tensor[None], size=tuple(size), mode=mode, antialias=False)[0]


def _resample_labels(labels: torch.Tensor, size: Sequence[int], mode: str, one_at_a_time: bool) -> torch.Tensor:
    """Every label's indicator interpolated; the largest wins."""
    values = torch.unique(labels)
    dtype = torch.int8 if values.max() < 127 else torch.int16
    result = torch.zeros((labels.shape[0], *size), dtype=dtype, device=labels.device)
    if one_at_a_time:
        for value in values:
            result[_interpolate((labels == value).float(), size, mode) > 0.5] = value.to(dtype)
        return result
    scores = torch.zeros((len(values), *result.shape), dtype=torch.float16, device=labels.device)
    decided = torch.zeros(result.shape, dtype=torch.bool, device=labels.device)
    for index, value in enumerate(values):
        scores[index] = _interpolate((labels == value).float() * ONE_HOT_SCALE, size, mode)
        certain = scores[index] > CERTAIN
        result[certain] = value.to(dtype)
        decided |= certain
    if not decided.all():
        result[~decided] = values[scores[:, ~decided].argmax(0)].to(dtype)
    return result


@contextmanager
def _torch_threads(number: int, device: torch.device) -> Iterator[None]:
    """Limit torch's threads on the CPU for a while."""
    before = torch.get_num_threads()
    if device.type == "cpu" and number < before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
