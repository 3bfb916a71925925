"""Labels by machine code: those of numpy, voxel by voxel."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fresh_python import loaded_by
from scipy.ndimage import gaussian_filter

from nnunetv2.inference import blockwise_export
from nnunetv2.inference.blockwise_export import BlockwiseLabels, fill_labels
from nnunetv2.inference.tilewise_export import compiled_labels
from nnunetv2.preprocessing.resampling.blockwise_resampling import BlockwiseResampling, blockwise_resampling
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.machine_code import machine_code, machine_code_module

NEVER = 2**60
# Shape, new shape, both spacings, order and order_z; blocks have 48 voxels by axis, tiles 16, 16 and 48.
GRIDS = {
    "finer": ((40, 33, 70), (60, 49, 105), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0), 1, 0),
    "coarser": ((60, 50, 40), (33, 20, 17), (1.0, 1.0, 1.0), (1.8, 2.5, 2.4), 1, 0),
    "finer and coarser": ((30, 70, 20), (50, 31, 60), (1.7, 1.0, 3.0), (1.0, 2.3, 1.0), 1, 0),
    "one axis unchanged": ((20, 40, 50), (55, 40, 100), (2.7, 1.0, 2.0), (1.0, 1.0, 1.0), 1, 0),
    "two axes unchanged": ((20, 40, 50), (20, 40, 71), (1.0, 1.0, 1.5), (1.0, 1.0, 1.0), 1, 0),
    "first two axes unchanged": ((50, 40, 20), (71, 40, 20), (1.5, 1.0, 1.0), (1.0, 1.0, 1.0), 1, 0),
    "same grid": ((50, 30, 60), (50, 30, 60), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1, 0),
    "separate first axis": ((9, 40, 33), (52, 60, 50), (6.0, 1.0, 1.0), (1.0, 0.7, 0.7), 1, 0),
    "separate last axis": ((30, 22, 9), (60, 30, 50), (1.0, 1.0, 5.0), (0.5, 0.8, 1.0), 1, 0),
    "nearest": ((20, 20, 20), (50, 31, 17), (1.0, 1.0, 1.0), (0.4, 0.7, 1.2), 0, 0),
    "one plane": ((1, 50, 60), (1, 101, 99), (3.0, 2.0, 1.6), (3.0, 1.0, 1.0), 1, 0),
    "one voxel": ((1, 1, 1), (3, 2, 1), (3.0, 2.0, 1.0), (1.0, 1.0, 1.0), 1, 0),
}
HEADS = 7


def labels_manager(heads: int = HEADS) -> LabelManager:
    return LabelManager({"background": 0, **{f"l{index}": index for index in range(1, heads)}}, None)


def resampling_of(grid: str) -> BlockwiseResampling:
    shape, new_shape, spacing, new_spacing, order, order_z = GRIDS[grid]
    found = blockwise_resampling(shape, new_shape, spacing, new_spacing, order=order, order_z=order_z, force_separate_z=None)
    assert found is not None
    return found


def some_logits(kind: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Noise, in which every channel can win everywhere; structures of which few meet; small whole numbers, which often are equal."""
    noise = np.random.default_rng(3).normal(size=(HEADS, *shape))
    if kind == "structures":
        noise = gaussian_filter(noise, (0, 3, 3, 3)) * 400
    return (noise.round() if kind == "ties" else noise).astype(dtype)


@pytest.fixture
def by_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(blockwise_export, "WORTH_COMPILING", 0)


def filled(logits: np.ndarray, resampling: BlockwiseResampling, threads: int = 1, dtype: type = np.uint8) -> np.ndarray:
    """Labels in the middle of an image."""
    image = np.full([n + 4 for n in resampling.new_shape], 99, dtype=dtype)
    inside = image[2:-2, 2:-2, 2:-2]
    assert fill_labels(logits, resampling, labels_manager(len(logits)), inside, threads)
    assert (image == 99).sum() == image.size - inside.size
    return inside


def filled_by_numpy(logits: np.ndarray, resampling: BlockwiseResampling, threads: int = 1) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise_export, "WORTH_COMPILING", NEVER)
        return filled(logits, resampling, threads)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["noise", "structures"])
def test_threads_share_rows_without_machine_code(kind: str, dtype: type) -> None:
    resampling = blockwise_resampling((50, 70, 90), (76, 144, 192), (1.5, 2, 2), (1, 1, 1), order=1)
    assert np.prod([len(axis) for axis in resampling.blocks[1:]]) == 12  # in a row
    logits = some_logits(kind, (50, 70, 90), dtype)
    np.testing.assert_array_equal(filled_by_numpy(logits, resampling, threads=4), filled_by_numpy(logits, resampling))


@pytest.mark.usefixtures("by_machine_code")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["noise", "structures", "ties"])
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_numpy(grid: str, kind: str, dtype: type, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, resampling = some_logits(kind, GRIDS[grid][0], dtype), resampling_of(grid)
    expected = filled_by_numpy(logits, resampling)
    monkeypatch.setattr(BlockwiseResampling, "resample", lambda *arguments: pytest.fail("numpy interpolated"))
    np.testing.assert_array_equal(filled(logits, resampling, threads), expected)


@pytest.mark.usefixtures("by_machine_code")
def test_takes_views_and_arrays_that_must_not_be_written() -> None:
    resampling = resampling_of("finer")
    shape = GRIDS["finer"][0]
    logits = some_logits("noise", shape)
    expected = filled_by_numpy(logits, resampling)
    frozen = logits.copy()
    frozen.flags.writeable = False
    padded = np.full([n + 3 for n in logits.shape], np.nan, dtype=np.float32)
    padded[tuple(slice(1, 1 + n) for n in logits.shape)] = logits
    views = [
        frozen,
        padded[tuple(slice(1, 1 + n) for n in logits.shape)],
        np.asfortranarray(logits),
        logits[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
    ]
    for view in views:
        np.testing.assert_array_equal(filled(view, resampling), expected)


@pytest.mark.usefixtures("by_machine_code")
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_logits_that_are_no_finite_numbers_are_left_to_others(number: float, dtype: type) -> None:
    resampling = resampling_of("finer")
    for place in [(0, 0, 0, 0), (HEADS - 1, 39, 32, 69), (3, 20, 16, 33)]:
        logits = some_logits("noise", GRIDS["finer"][0], dtype)
        logits[place] = number
        assert not fill_labels(logits, resampling, labels_manager(), np.empty(resampling.new_shape, np.uint8))


@pytest.mark.usefixtures("by_machine_code")
def test_many_labels_need_uint16() -> None:
    resampling = resampling_of("one voxel")
    logits = np.zeros((300, 1, 1, 1), dtype=np.float32)
    logits[299] = logits[298] = 1
    assert (filled(logits, resampling, dtype=np.uint16) == 298).all()


def test_rounds_like_float16() -> None:
    pytest.importorskip("numba")
    round_to_half = machine_code("nnunetv2.inference.compiled_export", "round_to_half")
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # all finite ones
    middles = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)])
    values = np.concatenate([values, -values])
    expected = values.astype(np.float16).astype(np.float64)
    round_to_half(values, values.size)
    np.testing.assert_array_equal(values, expected)


def test_rows_change_to_machine_code_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    resampling = resampling_of("finer")
    logits = some_logits("noise", GRIDS["finer"][0])
    expected = filled_by_numpy(logits, resampling)
    values = HEADS * np.prod(resampling.new_shape)
    interpolated = []
    resample = BlockwiseResampling.resample
    monkeypatch.setattr(BlockwiseResampling, "resample", lambda *arguments: interpolated.append(1) or resample(*arguments))
    monkeypatch.setattr(BlockwiseLabels, "_interpolated", 0)
    monkeypatch.setattr(blockwise_export, "WORTH_COMPILING", 2 * values + 1)
    by_numpy = HEADS * np.prod([len(axis) for axis in resampling.blocks])
    for so_far in (by_numpy, 2 * by_numpy, 2 * by_numpy):  # the third image is one too many
        np.testing.assert_array_equal(filled(logits, resampling), expected)
        assert len(interpolated) == so_far


def test_a_small_image_does_not_load_numba() -> None:
    code = (
        "import numpy as np\n"
        "from nnunetv2.inference.blockwise_export import fill_labels\n"
        "from nnunetv2.preprocessing.resampling.blockwise_resampling import blockwise_resampling\n"
        "from nnunetv2.utilities.label_handling.label_handling import LabelManager\n"
        "logits = np.random.default_rng(0).normal(size=(3, 40, 40, 40)).astype(np.float32)\n"
        "resampling = blockwise_resampling((40,) * 3, (60,) * 3, [1.5] * 3, [1.0] * 3, order=1)\n"
        "assert fill_labels(logits, resampling, LabelManager({'background': 0, 'a': 1, 'b': 2}, None), np.empty((60,) * 3, np.uint8))\n"
    )
    assert loaded_by(code, ["numba"]) == []


def test_without_numba_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resampling = resampling_of("finer")
    logits = some_logits("structures", GRIDS["finer"][0])
    expected = filled_by_numpy(logits, resampling)
    monkeypatch.setattr(blockwise_export, "WORTH_COMPILING", 0)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "nnunetv2.inference.compiled_export", raising=False)
    machine_code_module.cache_clear()
    try:
        assert compiled_labels(resampling) is None
        np.testing.assert_array_equal(filled(logits, resampling), expected)
    finally:
        machine_code_module.cache_clear()
