"""Label maps: the same labels as batchgenerators' resize_segmentation, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation

from nnunetv2.preprocessing.resampling import label_resampling
from nnunetv2.preprocessing.resampling.label_resampling import resize_labels


@pytest.fixture(params=["numpy", "numba"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes: machine code takes large volumes otherwise."""
    if request.param == "numba":
        pytest.importorskip("numba")
        monkeypatch.setattr(label_resampling, "SMALLEST_COMPILED", 0)
        assert label_resampling.compiled_kernel() is not None
    return request.param


def blocks_of_labels(shape: tuple[int, ...], labels: list[int], edge: int, seed: int) -> np.ndarray:
    """Random blocks, so that borders, edges and corners of several labels occur."""
    coarse = np.random.RandomState(seed).choice(labels, tuple(-(-n // edge) for n in shape))
    fine = np.kron(coarse, np.ones((edge,) * len(shape), dtype=int))
    return fine[tuple(slice(n) for n in shape)]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("labels", [[0, 1], [-1, 0, 1, 2], list(range(30)), [0, 300, 40000]])
@pytest.mark.parametrize("new_shape", [(24, 28, 20), (12, 14, 10), (6, 7, 5), (18, 9, 25), (12, 29, 10), (1, 1, 1)])
@pytest.mark.parametrize("edge", [1, 3])
@pytest.mark.parametrize("order", [0, 1])
def test_equals_batchgenerators(labels: list[int], new_shape: tuple[int, int, int], edge: int, order: int) -> None:
    seg = blocks_of_labels((12, 14, 10), labels, edge, seed=3)
    result = resize_labels(seg, new_shape, order)
    assert result.dtype == seg.dtype
    np.testing.assert_array_equal(result, resize_segmentation(seg, new_shape, order))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.float32])
def test_keeps_the_dtype(dtype: type) -> None:
    seg = blocks_of_labels((5, 6, 7), [0, 1, 2], 2, seed=1).astype(dtype)
    result = resize_labels(seg, (8, 9, 7), 1)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, resize_segmentation(seg, (8, 9, 7), 1))


@pytest.mark.usefixtures("arithmetic")
def test_ties_go_to_the_nearest_label() -> None:
    seg = np.array([[0, 0, 1, 1], [0, 2, 1, 1], [2, 2, -1, 1]])[None]
    np.testing.assert_array_equal(resize_labels(seg, (1, 6, 8), 1), np.kron(seg, np.ones((1, 2, 2))))


@pytest.mark.usefixtures("arithmetic")
def test_a_tie_without_the_nearest_label_goes_to_the_smallest() -> None:
    seg = np.array([3, 1, 1, 1, 2, 2, 2, 3]).reshape(2, 2, 2)
    assert resize_labels(seg, (1, 1, 1), 1) == 1


@pytest.mark.usefixtures("arithmetic")
def test_slices_do_not_mix_when_the_first_axis_stays() -> None:
    seg = blocks_of_labels((4, 9, 11), [0, 1, 2, 5], 2, seed=5)
    result = resize_labels(seg, (4, 13, 17), 1)
    for index in range(4):
        np.testing.assert_array_equal(result[index], resize_segmentation(seg[index], (13, 17), 1))


def test_the_input_is_not_changed() -> None:
    seg = blocks_of_labels((5, 6, 7), [0, 1, 2], 2, seed=1)
    before = seg.copy()
    resize_labels(seg, (9, 9, 9), 1)
    np.testing.assert_array_equal(seg, before)
