"""Sizes, shapes and intensities of structures, on shapes whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.inference.morphometry import morphometry, morphometry_names


def _measures(label_map: np.ndarray, image: np.ndarray, spacing: tuple[float, ...], structures: dict[str, tuple[int, ...]]) -> dict[str, float]:
    names = morphometry_names(list(structures), len(image))
    values = morphometry(label_map, image, spacing, structures)
    assert len(names) == len(values)
    return dict(zip(names, values, strict=True))


def _ball(radius_mm: float, spacing: tuple[float, float, float], extent_mm: float = 50) -> np.ndarray:
    axes = [(np.arange(round(extent_mm / s)) + 0.5) * s - extent_mm / 2 for s in spacing]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (z**2 + y**2 + x**2 < radius_mm**2).astype(np.uint8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.25, 1.25)])
def test_a_ball_has_the_measures_of_a_ball_on_any_grid(spacing: tuple[float, float, float]) -> None:
    ball = _ball(15, spacing)
    found = _measures(ball, np.zeros((1, *ball.shape)), spacing, {"lesion": (1,)})
    assert np.exp(found["lesion/log_volume_ml"]) == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.02)
    # A mesh through a binary mask is rougher than the ball: 8 % and 13 % more on these two grids.
    assert np.exp(found["lesion/log_surface_cm2"]) == pytest.approx(4 * np.pi * 1.5**2, rel=0.15)
    assert 0.87 < found["lesion/sphericity"] <= 1.0
    for axis in (1, 2, 3):
        assert found[f"lesion/length_{axis}_mm"] == pytest.approx(30, rel=0.03)
    assert found["lesion/largest_depth_mm"] == pytest.approx(15, abs=1.5)
    assert found["lesion/mean_depth_mm"] == pytest.approx(15 / 4, abs=0.6)  # of a ball: a quarter of the radius
    assert found["lesion/log_pieces"] == 0 and found["lesion/largest_piece"] == 1 and found["lesion/present"] == 1


def test_lengths_are_those_of_the_structure_whatever_its_direction() -> None:
    box = np.zeros((30, 30, 30), np.uint8)
    box[5:15, 10:12, 4:24] = 1
    image = np.zeros((1, *box.shape))
    lying = _measures(box, image, (1, 1, 1), {"a": (1,)})
    standing = _measures(np.ascontiguousarray(box.transpose(2, 0, 1)), image, (1, 1, 1), {"a": (1,)})
    assert lying == pytest.approx(standing)
    # the ellipsoid with the second moments of a box of edge e has the axis e * sqrt(5 / 3)
    assert [lying[f"a/length_{axis}_mm"] for axis in (1, 2, 3)] == pytest.approx(np.array([20, 10, 2]) * np.sqrt(5 / 3))


def test_intensities_ratios_and_pieces_are_those_of_the_voxels() -> None:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0:2, 0:2, 0:2] = 1
    labels[3, 5, 5] = 1
    labels[:, 3, 0:2] = 2
    image = np.random.default_rng(0).normal(size=(2, *labels.shape))
    found = _measures(labels, image, (2.0, 1.0, 1.0), {"organ": (1, 2), "lesion": (2,)})
    lesion = image[1][labels == 2]
    assert found["lesion/channel_1_mean"] == pytest.approx(lesion.mean())
    assert found["lesion/channel_1_deviation"] == pytest.approx(lesion.std())
    assert found["lesion/channel_1_percentile_90"] == pytest.approx(np.percentile(lesion, 90))
    assert found["organ/log_pieces"] == pytest.approx(np.log(3))
    assert found["organ/largest_piece"] == pytest.approx(8 / 17)
    assert found["organ:lesion/log_volume_ratio"] == pytest.approx(np.log(17 / 8))
    assert found["organ:lesion/channel_0_mean_difference"] == pytest.approx(image[0][labels > 0].mean() - image[0][labels == 2].mean())


def test_a_disc_in_one_slice_is_measured_in_two_dimensions() -> None:
    y, x = np.mgrid[:60, :60] - 29.5
    disc = (y**2 + x**2 < 20**2)[None].astype(np.uint8)
    found = _measures(disc, np.zeros((1, *disc.shape)), (999.0, 0.5, 0.5), {"lesion": (1,)})
    assert np.exp(found["lesion/log_volume_ml"]) * 1000 == pytest.approx(np.pi * 10**2, rel=0.02)  # mm2 times 1 mm
    assert np.exp(found["lesion/log_surface_cm2"]) * 100 == pytest.approx(2 * np.pi * 10, rel=0.1)
    assert 0.85 < found["lesion/sphericity"] <= 1.0
    assert found["lesion/length_1_mm"] == pytest.approx(2 * 10 * np.sqrt(5 / 4), rel=0.03)
    assert found["lesion/largest_depth_mm"] == pytest.approx(10, abs=0.5)
    assert found["lesion/mean_depth_mm"] == pytest.approx(10 / 3, abs=0.3)  # of a disc: a third of the radius


def test_the_largest_depth_is_half_the_thickness_of_a_wall() -> None:
    shell = _ball(20, (1.0, 1.0, 1.0)) - _ball(12, (1.0, 1.0, 1.0))
    found = _measures(shell, np.zeros((1, *shell.shape)), (1.0, 1.0, 1.0), {"wall": (1,)})
    assert found["wall/largest_depth_mm"] == pytest.approx(4, abs=1)


def test_an_absent_structure_is_small_and_otherwise_unknown() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    found = _measures(labels, np.ones((1, 3, 4, 5)), (1, 1, 1), {"lesion": (1,)})
    assert found["lesion/present"] == 0
    assert np.exp(found["lesion/log_volume_ml"]) == pytest.approx(0.0005)
    assert np.isnan(found["lesion/sphericity"]) and np.isnan(found["lesion/channel_0_mean"])


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        morphometry(np.zeros((3, 4, 5), np.uint8), np.ones((1, 3, 4, 6)), (1, 1, 1), {"lesion": (1,)})
