from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2.inference.sliding_window_prediction import (
    TileAccumulator,
    compute_gaussian,
    compute_steps_for_sliding_window,
    grouped_tiles,
    half_accumulation_requested,
    mirror_combinations,
    tile_slicers,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("image", "tile", "step", "expected"),
    [
        ((110,), (64,), 0.5, [[0, 23, 46]]),
        ((129,), (128,), 0.5, [[0, 1]]),
        ((300,), (128,), 1, [[0, 86, 172]]),
        ((300,), (128,), 0.25, [[0, 29, 57, 86, 115, 143, 172]]),
        ((200, 150, 100), (128, 128, 96), 0.5, [[0, 36, 72], [0, 22], [0, 4]]),
        ((64,), (64,), 0.5, [[0]]),
    ],
)
def test_steps_equal_the_recorded_ones_of_nnunet(image, tile, step, expected) -> None:
    assert compute_steps_for_sliding_window(image, tile, step) == expected


def test_a_tile_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the tile"):
        compute_steps_for_sliding_window((10, 64), (64, 64), 0.5)


@pytest.mark.parametrize("step", [0, -0.5, 1.5])
def test_a_step_outside_of_0_to_1_is_refused(step) -> None:
    with pytest.raises(ValueError, match="step size"):
        compute_steps_for_sliding_window((64,), (64,), step)


def test_gaussian_equals_the_recorded_values_of_nnunet() -> None:
    weights = compute_gaussian((8, 8), 1.0 / 8, 10, torch.float16, CPU)
    expected = [0.003355, 0.11108, 1.35352, 6.06641, 10, 6.06641, 1.35352, 0.11108]
    assert weights[4].tolist() == pytest.approx(expected, rel=1e-3)
    assert float(weights[0, 0]) == pytest.approx(1.1325e-6, rel=0.1)  # a float16 subnormal


def test_gaussian_of_a_large_tile_has_no_zero_in_float16() -> None:
    weights = compute_gaussian((64, 64, 64), 1.0 / 8, 10, torch.float16, CPU)
    assert weights.dtype == torch.float16
    assert float(weights.max()) == 10
    assert float(weights.min()) > 0


def test_2d_tiles_are_taken_from_every_slice() -> None:
    slicers = tile_slicers((3, 20, 16), (16, 16), 0.5)
    assert len(slicers) == 3 * 2
    image = torch.zeros(1, 3, 20, 16)
    assert image[slicers[0]].shape == (1, 16, 16)
    assert [slicer[1] for slicer in slicers] == [0, 0, 1, 1, 2, 2]


def test_tiles_cover_every_voxel() -> None:
    covered = torch.zeros(1, 37, 25, 18, dtype=torch.int)
    for slicer in tile_slicers((37, 25, 18), (16, 16, 16), 0.5):
        covered[slicer] += 1
    assert int(covered.min()) >= 1


def test_mirror_combinations_are_all_subsets_without_the_empty_one() -> None:
    assert mirror_combinations((0, 1, 2)) == [(2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    assert mirror_combinations((1,)) == [(3,)]
    assert mirror_combinations(None) == []
    assert mirror_combinations(()) == []


@pytest.mark.parametrize("half", [False, True])
def test_agreeing_tiles_give_back_their_values(half) -> None:
    image = torch.randn(2, 20, 20, 20)
    weights = compute_gaussian((16, 16, 16), 1.0 / 8, 10, torch.half if half else torch.float32, CPU)
    accumulator = TileAccumulator(2, (20, 20, 20), weights, half=half)
    for slicer in tile_slicers((20, 20, 20), (16, 16, 16), 0.5):
        accumulator.add(image[slicer].clone(), slicer)
    result = accumulator.result()
    assert result.dtype == (torch.half if half else torch.float32)
    interior = (slice(None), *[slice(4, 16)] * 3)
    torch.testing.assert_close(result[interior].float(), image[interior], rtol=0, atol=2e-2 if half else 1e-5)


def test_float32_sums_keep_the_corner_that_float16_quantises() -> None:
    """A corner voxel has a single tile and the smallest weight: logits 2.3, 2.6, -0.4 become 2, 3, 0 in float16 (128^3 tiles)."""
    logits = torch.tensor([2.3, 2.6, -0.4])[:, None, None, None].expand(3, 64, 64, 64).clone()
    slicer = tile_slicers((64, 64, 64), (64, 64, 64), 0.5)[0]

    def corner(half: bool) -> list[float]:
        weights = compute_gaussian((64, 64, 64), 1.0 / 8, 10, torch.half if half else torch.float32, CPU)
        accumulator = TileAccumulator(3, (64, 64, 64), weights, half=half)
        accumulator.add(logits.clone(), slicer)
        return accumulator.result()[:, 0, 0, 0].tolist()

    assert corner(half=False) == pytest.approx([2.3, 2.6, -0.4], abs=1e-5)
    assert corner(half=True) == [2.0, 3.0, 0.0]


def test_without_weights_tiles_are_averaged_plainly() -> None:
    accumulator = TileAccumulator(1, (1, 1, 6), None)
    accumulator.add(torch.full((1, 1, 1, 4), 1.0), (slice(None), slice(0, 1), slice(0, 1), slice(0, 4)))
    accumulator.add(torch.full((1, 1, 1, 4), 3.0), (slice(None), slice(0, 1), slice(0, 1), slice(2, 6)))
    np.testing.assert_allclose(accumulator.result()[0, 0, 0], [1, 1, 2, 2, 3, 3])


def test_half_accumulation_is_off_unless_asked_for(monkeypatch) -> None:
    monkeypatch.delenv("nnUNet_half_accumulation", raising=False)
    assert not half_accumulation_requested()
    monkeypatch.setenv("nnUNet_half_accumulation", "1")
    assert half_accumulation_requested()
    monkeypatch.setenv("nnUNet_half_accumulation", "0")
    assert not half_accumulation_requested()


@pytest.mark.parametrize(("value", "finite"), [(float("nan"), False), (float("inf"), False), (3e38, True)])
def test_results_that_are_no_numbers_are_noticed_and_large_ones_are_not(value, finite) -> None:
    accumulator = TileAccumulator(2, (4, 4, 4), None)
    logits = torch.zeros(2, 4, 4, 4)
    logits[1, :2] = value  # the sum of all is infinite in each case
    accumulator.add(logits, (slice(None), slice(0, 4), slice(0, 4), slice(0, 4)))
    accumulator.result()
    assert accumulator.is_finite == finite


def test_tiles_are_grouped_in_their_order() -> None:
    tiles = tile_slicers((20, 14, 10), (10, 6, 10), 0.5)  # three rows of four
    assert [len(group) for group in grouped_tiles(tiles, 8, by_rows=False)] == [8, 1, 1, 1, 1]
    groups = grouped_tiles(tiles, 3, by_rows=True)
    assert [len(group) for group in groups] == [3, 1] * 3 and sum(groups, []) == tiles
    # a part of the rows is grouped like the whole
    assert grouped_tiles(tiles[4:], 3, by_rows=True) == groups[2:]
