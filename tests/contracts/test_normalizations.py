"""What every normalization scheme owes the preprocessing, and what each one computes."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)

STATISTICS = {"mean": 4.0, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 9.0, "min": 0.0, "max": 10.0, "median": 4.0}
ALL_SCHEMES = sorted(set(channel_name_to_normalization_mapping.values()), key=lambda scheme: scheme.__name__)


def some_image() -> np.ndarray:
    return (np.random.RandomState(0).rand(4, 5, 6) * 200).astype(np.float32)


def some_mask() -> np.ndarray:
    seg = np.zeros((4, 5, 6), dtype=np.int8)
    seg[:2] = -1
    seg[3] = 1
    return seg


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@pytest.mark.parametrize("target_dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("source_dtype", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize("use_mask", [None, False, True])
class TestEveryScheme:
    def test_keeps_shape_and_returns_the_target_dtype(
        self, scheme: type[schemes.ImageNormalization], target_dtype: type, source_dtype: type, use_mask: bool | None
    ) -> None:
        image = (some_image() / 20).astype(source_dtype)
        result = scheme(use_mask, STATISTICS, target_dtype).run(image, some_mask())
        assert result.dtype == target_dtype
        assert result.shape == image.shape
        assert np.isfinite(result).all()

    def test_a_constant_image_stays_finite(
        self, scheme: type[schemes.ImageNormalization], target_dtype: type, source_dtype: type, use_mask: bool | None
    ) -> None:
        result = scheme(use_mask, STATISTICS, target_dtype).run(np.full((3, 3, 3), 5, dtype=source_dtype), np.zeros((3, 3, 3), np.int8))
        assert np.isfinite(result).all()


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
def test_states_what_happens_outside_the_mask(scheme: type[schemes.ImageNormalization]) -> None:
    assert isinstance(scheme.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true, bool)


def test_a_users_scheme_needs_only_run() -> None:
    class Halved(schemes.ImageNormalization):
        leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

        def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
            return image.astype(self.target_dtype) / self.intensityproperties["std"]

    assert Halved(use_mask_for_norm=None, intensityproperties=STATISTICS, target_dtype=np.float32).run(np.full((1, 1, 1), 8)) == 4


def test_zscore_uses_the_whole_image() -> None:
    image = some_image()
    expected = (image - image.mean()) / image.std()
    np.testing.assert_array_equal(schemes.ZScoreNormalization(False).run(image.copy()), expected)


def test_zscore_inside_the_mask_leaves_the_rest_alone() -> None:
    image, seg = some_image(), some_mask()
    result = schemes.ZScoreNormalization(True).run(image.copy(), seg)
    np.testing.assert_array_equal(result[:2], image[:2])
    assert abs(result[2:].mean()) < 1e-5
    assert abs(result[2:].std() - 1) < 1e-5


def test_zscore_with_an_empty_mask_changes_nothing() -> None:
    image = some_image()
    np.testing.assert_array_equal(schemes.ZScoreNormalization(True).run(image.copy(), np.full((4, 5, 6), -1)), image)


def test_zscore_with_mask_needs_the_mask() -> None:
    with pytest.raises(ValueError, match="no mask was given"):
        schemes.ZScoreNormalization(True).run(some_image())


def test_ct_clips_to_percentiles_and_uses_the_datasets_statistics() -> None:
    image = np.array([[[0.0, 1.0, 4.0, 9.0, 50.0]]], dtype=np.float32)
    np.testing.assert_array_equal(schemes.CTNormalization(False, STATISTICS).run(image), [[[-1.5, -1.5, 0.0, 2.5, 2.5]]])


def test_ct_names_missing_statistics() -> None:
    with pytest.raises(ValueError, match="missing: std, percentile_99_5"):
        schemes.CTNormalization(False, {"mean": 1.0, "percentile_00_5": 0.0}).run(some_image())


def test_rescaling_reaches_zero_and_one() -> None:
    result = schemes.RescaleTo01Normalization(False).run(np.array([-4.0, 0.0, 4.0], dtype=np.float32))
    np.testing.assert_array_equal(result, [0, 0.5, 1])


def test_rgb_divides_by_255() -> None:
    np.testing.assert_array_equal(schemes.RGBTo01Normalization(False).run(np.array([0, 51, 255], dtype=np.uint8)), np.float32([0, 0.2, 1]))


@pytest.mark.parametrize("value", [-1, 256])
def test_rgb_refuses_other_ranges(value: int) -> None:
    with pytest.raises(ValueError, match=f"{value}"):
        schemes.RGBTo01Normalization(False).run(np.array([0, 3, value], dtype=np.float32))


def test_channel_names_are_compared_without_case_and_default_to_zscore() -> None:
    assert get_normalization_scheme("CT") is schemes.CTNormalization
    assert get_normalization_scheme("RGB_to_0_1") is schemes.RGBTo01Normalization
    assert get_normalization_scheme("noNorm") is schemes.NoNormalization
    assert get_normalization_scheme("rescale_to_0_1") is schemes.RescaleTo01Normalization
    assert get_normalization_scheme("T1 CT") is schemes.ZScoreNormalization


def test_a_channel_name_must_be_text() -> None:
    with pytest.raises(ValueError, match="must be text, found 3"):
        get_normalization_scheme(3)
