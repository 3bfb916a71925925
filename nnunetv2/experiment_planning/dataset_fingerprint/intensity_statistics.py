"""Statistics of 1e8 foreground intensities drawn with replacement, without holding them.

nnU-Net draws the same number of samples from every case and describes them laid end to end. A case has thousands of foreground
voxels and millions of samples, so a case is kept as its voxels and the state of the random generator, and its samples are
drawn again, piece by piece, wherever they are needed. All numbers equal those of ``np.mean``, ``np.std`` and ``np.percentile``
on the one long array, to the last bit: plans and normalised images depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

PERCENTILES = (0.5, 50.0, 99.5)
# Samples at a time; small enough for the processor's cache.
PIECE = 2**18
# With so many samples for each voxel it is quicker to count how often each was drawn than to order the samples.
COUNTING_MIN_SAMPLES_PER_VOXEL = 8


@dataclass(frozen=True)
class ForegroundSamples:
    """Intensities to be drawn with replacement; ``np.asarray`` draws them."""

    voxels: np.ndarray  # float32 (n,), intensities of the foreground in C order
    random_state: tuple  # of the numpy.random.RandomState before the draw
    num_samples: int

    def __len__(self) -> int:
        return self.num_samples

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        samples = np.concatenate([self.voxels[indices] for indices in self.drawn_indices()])
        return samples if dtype is None else samples.astype(dtype)

    def drawn_indices(self) -> Iterator[np.ndarray]:
        """Positions in `voxels` of the samples, in pieces."""
        random = np.random.RandomState()
        random.set_state(self.random_state)
        for start in range(0, self.num_samples, PIECE):
            # what RandomState.choice does for a draw with replacement
            yield random.randint(0, len(self.voxels), size=min(PIECE, self.num_samples - start))


Samples = ForegroundSamples | np.ndarray | list  # of one case; an empty list without foreground


def draw_foreground_samples(segmentation: np.ndarray, images: np.ndarray, seed: int, num_samples: int) -> list[Samples]:
    """Samples of every channel, drawn with replacement from the voxels whose label is above 0 (the ignore label too).

    Args:
        segmentation: Labels (1, x, y, z).
        images: float32 (c, x, y, z).
        seed: Of one random state that all channels share, in order.
        num_samples: By channel.

    Returns:
        By channel something that ``np.asarray`` makes an array; an empty list without foreground.
    """
    mask = segmentation[0] > 0
    num_voxels = int(np.count_nonzero(mask))
    if num_voxels == 0:
        return [[] for _ in images]
    random = np.random.RandomState(seed)
    samples: list[Samples] = []
    for image in images:
        channel_samples = ForegroundSamples(image[mask], random.get_state(), num_samples)
        # Whichever takes less memory travels to the parent process.
        samples.append(channel_samples if num_voxels < num_samples else np.asarray(channel_samples))
        if len(samples) < len(images):
            for start in range(0, num_samples, PIECE):  # the next channel goes on where this one ends
                random.randint(0, num_voxels, size=min(PIECE, num_samples - start))
    return samples


def intensity_properties(samples: Sequence[Samples]) -> dict[str, float]:
    """Mean, median, deviation, extremes and percentiles of the samples of all cases, laid end to end.

    Computed in float32; in float64 if a case has no foreground, since nnU-Net concatenates an empty list then.

    Raises:
        ValueError: If there are no samples.
    """
    dtype = np.dtype(np.float32 if all(len(s) for s in samples) else np.float64)
    samples = [s for s in samples if len(s)]
    num_samples = sum(len(s) for s in samples)
    if num_samples == 0:
        raise ValueError("There are no samples.")
    count_draws = COUNTING_MIN_SAMPLES_PER_VOXEL * sum(num_values(s) for s in samples) <= num_samples

    stream = SampleStream(samples, dtype, count_draws=count_draws)
    lowest, highest = [], []

    def note_extremes(piece: np.ndarray) -> np.ndarray:
        lowest.append(piece.min())
        highest.append(piece.max())
        return piece

    # numpy divides in float64 and rounds to the type of the values
    mean = dtype.type(float(streamed_sum(stream.take, num_samples, note_extremes)) / num_samples)
    squares = streamed_sum(SampleStream(samples, dtype).take, num_samples, lambda piece: np.square(piece - mean))
    std = np.sqrt(dtype.type(float(squares) / num_samples))
    if count_draws:
        low, median, high = percentiles_of_counted_values(*stream.counted_values())
    else:
        values = np.concatenate([np.asarray(s, dtype=dtype) for s in samples])
        low, median, high = np.percentile(values, PERCENTILES, overwrite_input=True)
    return {
        "max": float(max(highest)),
        "mean": float(mean),
        "median": float(median),
        "min": float(min(lowest)),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
        "std": float(std),
    }


class SampleStream:
    """Samples of all cases one after another, in pieces of any size.

    Args:
        samples: Of every case that has any.
        dtype: Of the pieces.
        count_draws: Count how often every voxel is drawn, for `counted_values`.
    """

    def __init__(self, samples: Sequence[Samples], dtype: np.dtype, *, count_draws: bool = False) -> None:
        self.samples = samples
        self.dtype = dtype
        self.counts: list[np.ndarray] | None = [np.zeros(num_values(s), dtype=np.int64) for s in samples] if count_draws else None
        self.pieces = self.all_pieces()
        self.rest = np.empty(0, dtype=dtype)

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples."""
        collected, missing = [], count
        while missing:
            if not len(self.rest):
                self.rest = next(self.pieces)
            collected.append(self.rest[:missing])
            self.rest = self.rest[missing:]
            missing -= len(collected[-1])
        return np.concatenate(collected, dtype=self.dtype)

    def all_pieces(self) -> Iterator[np.ndarray]:
        for case, case_samples in enumerate(self.samples):
            if not isinstance(case_samples, ForegroundSamples):
                if self.counts is not None:
                    self.counts[case] += 1
                yield np.asarray(case_samples)
                continue
            for indices in case_samples.drawn_indices():
                if self.counts is not None:
                    self.counts[case] += np.bincount(indices, minlength=len(case_samples.voxels))
                yield case_samples.voxels[indices]

    def counted_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Intensities and how often each was drawn, once the stream has been read to its end."""
        values = [s.voxels if isinstance(s, ForegroundSamples) else np.asarray(s) for s in self.samples]
        return np.concatenate(values, dtype=self.dtype), np.concatenate(self.counts)


def num_values(samples: Samples) -> int:
    """Values that the samples of a case are drawn from."""
    return len(samples.voxels) if isinstance(samples, ForegroundSamples) else len(samples)


def streamed_sum(
    take: Callable[[int], np.ndarray], count: int, transform: Callable[[np.ndarray], np.ndarray]
) -> np.floating:
    """Sum of the next `count` values, added in the order of ``np.add.reduce``."""
    if sums_whole_arrays():
        return pairwise_sum(take, count, transform)
    total = None
    buffer = np.getbufsize()
    for start in range(0, count, PIECE):
        piece = transform(take(min(PIECE, count - start)))
        for part in range(0, len(piece), buffer):
            part_sum = np.add.reduce(piece[part : part + buffer])
            total = part_sum if total is None else total + part_sum
    return total


def pairwise_sum(take: Callable[[int], np.ndarray], count: int, transform: Callable[[np.ndarray], np.ndarray]) -> np.floating:
    """`streamed_sum` of numpy 2.3 and newer.

    It halves an array (at a multiple of eight) until 128 values are left; halving by the same rule down to pieces that numpy
    sums itself gives its result for the whole.
    """
    if count <= PIECE:
        return np.add.reduce(transform(take(count)))
    half = count // 2
    half -= half % 8
    return pairwise_sum(take, half, transform) + pairwise_sum(take, count - half, transform)


@cache
def sums_whole_arrays() -> bool:
    """Whether this numpy halves whole arrays; before 2.3 it halved one buffer after the other."""
    probe = np.zeros(8194, dtype=np.float32)
    probe[[0, 8191, 8192]] = 2**24, 1, 1  # the ones count only if they meet before they meet the large number
    return bool(np.add.reduce(probe) == 2**24 + 2)


def percentiles_of_counted_values(values: np.ndarray, counts: np.ndarray) -> list[float]:
    """``np.percentile`` of values that each occur several times, linear between neighbours."""
    order = np.argsort(values)
    values, last_positions = values[order], np.cumsum(counts[order])
    results = []
    for percentile in PERCENTILES:
        position = (last_positions[-1] - 1) * (percentile / 100)
        below = int(position)
        following = min(below + 1, int(last_positions[-1]) - 1)
        low, high = values[np.searchsorted(last_positions, [below, following], side="right")]
        share = position - below
        # From the nearer neighbour, as numpy does; the difference is taken in the precision of the values.
        difference = float(high - low)
        results.append(float(low) + difference * share if share < 0.5 else float(high) - difference * (1 - share))
    return results
