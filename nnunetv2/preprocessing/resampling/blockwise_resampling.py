"""Linear and nearest-neighbour resampling of one block of the result at a time.

Whoever wants labels, not resampled values, needs the values of all channels for a moment only: block by block they fit into the
processor's cache, and memory depends neither on the size of the image nor on the number of channels. No value of a block leaves the
range of the part of the input that the block reads, so that many channels need not be interpolated at all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis, resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.interpolation_operators import linear_taps, nearest_indices

# Splines of these orders never leave the range of their neighbours.
CONVEX_ORDERS = (0, 1)
OUTPUTS_PER_BLOCK = 48  # per axis: a block of float64 takes 0.9 MiB, which a core's own cache holds


class Workspace:
    """Arrays that one thread writes again and again: of fresh memory the first use takes longer than the arithmetic."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: Sequence[int], dtype: np.dtype | type = np.float64) -> np.ndarray:
        """A contiguous array with any content; its memory is that of earlier ones of this name, which have the same type."""
        size = math.prod(shape)
        found = self._arrays.get(name)
        if found is None or found.size < size:
            found = self._arrays[name] = np.empty(size, dtype=dtype)
        return found[:size].reshape(shape)


@dataclass(frozen=True)
class AxisBlock:
    """Some outputs of one axis and the inputs that they are computed from; positions count from the first of these."""

    outputs: slice
    inputs: slice
    lower: np.ndarray | None = None  # position of the input below each output, or nearest to it; None where the axis keeps its size
    upper: np.ndarray | None = None  # of the one above; None where the nearest is taken
    weights: tuple[np.ndarray, np.ndarray] | None = None  # of the two

    def resize(self, values: np.ndarray, axis: int, workspace: Workspace) -> np.ndarray:
        """The outputs of float64 inputs ``(X, Y, Z)`` along one axis, in an array of the workspace; the inputs where the axis keeps its size."""
        if self.lower is None:
            return values
        shape = [*values.shape[:axis], len(self.lower), *values.shape[axis + 1 :]]
        result = workspace.array(f"axis {axis}", shape)
        values.take(self.lower, axis, out=result, mode="clip")  # all are inside; other modes write to fresh memory first
        if self.upper is None:
            return result
        lower_weight, upper_weight = (weight.reshape([-1 if a == axis else 1 for a in range(3)]) for weight in self.weights)
        # No matrix product: so small ones would start a library's threads, beside a network that uses them all.
        result *= lower_weight
        upper = workspace.array("upper", shape)
        values.take(self.upper, axis, out=upper, mode="clip")
        upper *= upper_weight
        result += upper
        return result


@dataclass(frozen=True)
class BlockwiseResampling:
    """How ``(X, Y, Z)`` of one shape become another: every combination of three :class:`AxisBlock` is a block."""

    blocks: tuple[tuple[AxisBlock, ...], ...]  # by axis
    axes: tuple[int, ...]  # in the order in which they are resized

    @property
    def new_shape(self) -> tuple[int, ...]:
        """Voxels of the result by axis."""
        return tuple(blocks[-1].outputs.stop for blocks in self.blocks)

    @property
    def keeps_all(self) -> bool:
        """Whether the result is the input."""
        return all(blocks[0].lower is None for blocks in self.blocks)

    def resample(self, values: np.ndarray, block: Sequence[AxisBlock], workspace: Workspace) -> np.ndarray:
        """One block of the result.

        Args:
            values: What the block reads, ``(X, Y, Z)``; finite.
            block: One entry for each axis.
            workspace: Of whose arrays the result is one: it holds until the next call.

        Returns:
            float64.
        """
        inputs = workspace.array("inputs", values.shape)
        np.copyto(inputs, values)
        for axis in self.axes:
            inputs = block[axis].resize(inputs, axis, workspace)
        return inputs


def blockwise_resampling(
    shape: Sequence[int],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
    *,
    row_stops: Sequence[int] = (),
) -> BlockwiseResampling | None:
    """What ``resample_data_or_seg_to_shape`` does with the same arguments, in blocks; None where blocks cannot do it (cubic splines, labels).

    Args:
        shape: Voxels by axis before resampling.
        new_shape: Voxels by axis afterwards.
        current_spacing: See ``resample_data_or_seg_to_shape``, like all that follow.
        new_spacing: See there.
        is_seg: See there.
        order: See there.
        order_z: See there.
        force_separate_z: See there.
        separate_z_anisotropy_threshold: See there.
        row_stops: Inputs of the first axis at which its blocks are cut besides: what can be computed from the inputs before one of them
            is not put off to a block that reads others too.
    """
    separate, axis = False, None
    if tuple(shape) != tuple(new_shape):
        separate, axis = determine_do_sep_z_and_axis(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    orders = [order_z if separate and a == axis else order for a in range(3)]
    if is_seg or len(shape) != 3 or any(spline not in CONVEX_ORDERS for spline in orders):
        return None
    factors = [new / old for old, new in zip(shape, new_shape, strict=True)]
    # What shrinks first, what grows last, because that leaves the least to do; the last axis early, because it is the slowest.
    axes = sorted((2, 1, 0), key=lambda a: factors[a])
    stops = (row_stops, (), ())
    blocks = tuple(_axis_blocks(int(old), int(new), *how) for old, new, *how in zip(shape, new_shape, orders, stops, strict=True))
    return BlockwiseResampling(blocks, tuple(axes))


def works_in_blocks(function: Callable) -> bool:
    """Whether a function of plans is one that :func:`blockwise_resampling` can replace for images of every shape and spacing."""
    if not isinstance(function, functools.partial) or function.func is not resample_data_or_seg_to_shape or function.args:
        return False
    keywords = function.keywords
    orders = keywords.get("order", 3), keywords.get("order_z", 0)  # as above
    return not keywords.get("is_seg", False) and all(order in CONVEX_ORDERS for order in orders)


def _axis_blocks(old: int, new: int, order: int, stops: Sequence[int]) -> tuple[AxisBlock, ...]:
    """All blocks of one axis."""
    if old == new:
        return tuple(AxisBlock(part, part) for part in _parts(np.arange(new), stops))
    if order == 0:
        nearest = nearest_indices(old, new)
        return tuple(AxisBlock(part, *_read(nearest[part])) for part in _parts(nearest, stops))
    lower, *weights = linear_taps(old, new)
    upper = np.minimum(lower + 1, old - 1)
    blocks = []
    for part in _parts(upper, stops):
        inputs, positions = _read(np.concatenate([lower[part], upper[part]]))
        blocks.append(AxisBlock(part, inputs, *np.split(positions, 2), tuple(weight[part] for weight in weights)))
    return tuple(blocks)


def _parts(last_inputs: np.ndarray, stops: Sequence[int]) -> list[slice]:
    """The outputs of each block, from the last input that every output reads (ascending) and the inputs where blocks are cut."""
    edges = sorted({0, *(int(np.searchsorted(last_inputs, stop)) for stop in stops), len(last_inputs)})
    return [
        slice(start, min(start + OUTPUTS_PER_BLOCK, edge))
        for before, edge in itertools.pairwise(edges)
        for start in range(before, edge, OUTPUTS_PER_BLOCK)
    ]


def _read(indices: np.ndarray) -> tuple[slice, np.ndarray]:
    """The inputs between the first and the last index, and the indices counted from the first."""
    first = int(indices.min())
    return slice(first, int(indices.max()) + 1), indices - first
