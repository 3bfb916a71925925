"""dataset_fingerprint.json, compared with a plain computation of the same numbers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from nnunetv2.experiment_planning.dataset_fingerprint import intensity_statistics
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.dataset_fingerprint.intensity_statistics import (
    PIECE,
    ForegroundSamples,
    draw_foreground_samples,
    intensity_properties,
)
from nnunetv2.scheduling import CaseErrors


class SmallFingerprintExtractor(DatasetFingerprintExtractor):
    """Draws fewer samples, so that tests are quick."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 300_000


def case(seed: int, shape: tuple[int, int, int] = (6, 9, 8), channels: int = 1, foreground: bool = True) -> tuple:
    """Image with an empty border and a cube of foreground."""
    random = np.random.RandomState(seed)
    image = np.zeros((channels, *shape), np.float32)
    image[:, 1:, 1:-1, 2:] = random.normal(100, 20, size=(channels, shape[0] - 1, shape[1] - 2, shape[2] - 2))
    segmentation = np.zeros(shape, np.uint8)
    if foreground:
        segmentation[2:5, 2:5, 3:6] = 1
    return image, segmentation


def plain_samples(images: np.ndarray, segmentation: np.ndarray, num_samples: int, seed: int = 1234) -> list:
    """The draw as nnU-Net describes it."""
    random, mask = np.random.RandomState(seed), segmentation > 0
    return [random.choice(image[mask], num_samples, replace=True) if mask.any() else [] for image in images]


def plain_properties(samples: Sequence) -> dict[str, float]:
    values = np.concatenate(samples)
    low, median, high = np.percentile(values, [0.5, 50, 99.5])
    return {
        "mean": float(np.mean(values)), "median": float(median), "std": float(np.std(values)), "min": float(np.min(values)),
        "max": float(np.max(values)), "percentile_99_5": float(high), "percentile_00_5": float(low),
    }  # fmt: skip


def extract(raw_folder, **options) -> dict:
    return SmallFingerprintExtractor(raw_folder.name, num_processes=1).run(**options)


@pytest.mark.parametrize("num_samples", [5, 1000, PIECE + 17])
def test_the_draw_is_that_of_numpy_and_shared_by_all_channels(num_samples: int) -> None:
    image, segmentation = case(0, channels=3)
    drawn = draw_foreground_samples(segmentation[None], image, 1234, num_samples)
    for ours, plain in zip(drawn, plain_samples(image, segmentation, num_samples), strict=True):
        assert np.array_equal(np.asarray(ours), plain) and len(ours) == num_samples


def test_few_voxels_travel_instead_of_many_samples() -> None:
    image, segmentation = case(0)
    (drawn,) = draw_foreground_samples(segmentation[None], image, 1234, 1_000_000)
    assert isinstance(drawn, ForegroundSamples)
    assert len(pickle.dumps(drawn)) < 10_000
    (drawn,) = draw_foreground_samples(segmentation[None], image, 1234, 10)
    assert isinstance(drawn, np.ndarray)


@pytest.mark.parametrize("with_empty_case", [False, True])
@pytest.mark.parametrize("num_samples", [3, 26, 27, 500, 100_003, 3 * PIECE + 77])
def test_statistics_equal_those_of_one_long_array_to_the_last_bit(num_samples: int, with_empty_case: bool) -> None:
    # 27 voxels a case: below that the samples themselves are kept, from eight times that on the draws are counted
    cases = [case(seed) for seed in range(3)]
    if with_empty_case:
        cases[1][1][:] = 0
    lazy = [draw_foreground_samples(s[None], i, 1234, num_samples)[0] for i, s in cases]
    plain = [plain_samples(i, s, num_samples)[0] for i, s in cases]
    assert intensity_properties(lazy) == plain_properties(plain)
    # a case without foreground makes the concatenation float64, which changes the last digits
    assert np.concatenate(plain).dtype == (np.float64 if with_empty_case else np.float32)


def test_sums_far_longer_than_a_piece_equal_those_of_numpy() -> None:
    voxels = np.random.RandomState(0).lognormal(5, 2, size=50_000).astype(np.float32)
    lazy = [ForegroundSamples(voxels[i::2], np.random.RandomState(i).get_state(), 8_500_001 + i) for i in range(2)]  # together more than float32 counts exactly
    properties = intensity_properties([*lazy, voxels[:1000]])
    assert properties == plain_properties([np.asarray(lazy[0]), np.asarray(lazy[1]), voxels[:1000]])


def test_before_numpy_2_3_buffers_are_summed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity_statistics, "sums_whole_arrays", lambda: False)
    values = np.random.RandomState(0).lognormal(5, 2, size=2 * PIECE + 9000).astype(np.float32)
    expected = np.float32(0)
    for start in range(0, len(values), 8192):
        expected += np.add.reduce(values[start : start + 8192])
    pieces = iter(np.split(values, [PIECE, 2 * PIECE]))
    assert intensity_statistics.streamed_sum(lambda count: next(pieces), len(values), lambda piece: piece) == expected


def test_the_file_holds_shapes_after_cropping_and_sorted_keys(write_raw_dataset, folders) -> None:
    images, segmentations = zip(*(case(seed, channels=2) for seed in range(3)), strict=True)
    raw = write_raw_dataset(images, segmentations, spacing=(2.5, 1.0, 0.5))
    fingerprint = extract(raw)
    text = (folders["nnUNet_preprocessed"] / raw.name / "dataset_fingerprint.json").read_text()
    assert json.loads(text) == fingerprint
    assert list(json.loads(text)) == sorted(fingerprint)
    assert fingerprint["shapes_after_crop"] == [[5, 7, 6]] * 3
    assert fingerprint["spacings"] == [[2.5, 1.0, 0.5]] * 3
    assert fingerprint["median_relative_size_after_cropping"] == 5 * 7 * 6 / (6 * 9 * 8)
    for channel in range(2):
        samples = [plain_samples(i, s, 100_000)[channel] for i, s in zip(images, segmentations, strict=True)]
        assert fingerprint["foreground_intensity_properties_per_channel"][str(channel)] == plain_properties(samples)


def test_worker_processes_give_the_same_numbers(write_raw_dataset) -> None:
    images, segmentations = zip(*(case(seed, channels=2, foreground=seed != 1) for seed in range(3)), strict=True)
    raw = write_raw_dataset(images, segmentations)
    here = extract(raw)
    extractor = DatasetFingerprintExtractor(raw.name, num_processes=2)
    extractor.num_foreground_voxels_for_intensitystats = 300_000
    assert extractor.run(overwrite_existing=True) == here


def test_the_ignore_label_counts_as_foreground(write_raw_dataset) -> None:
    image, segmentation = case(0)
    segmentation[2:4, 6, 6] = 2
    raw = write_raw_dataset([image], [segmentation], labels={"background": 0, "blob": 1, "ignore": 2})
    fingerprint = extract(raw)
    expected = plain_properties([plain_samples(image, segmentation, 300_000)[0]])
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"] == expected


def test_an_existing_fingerprint_is_used_unless_told_otherwise(write_raw_dataset, folders, capsys) -> None:
    raw = write_raw_dataset(*zip(*(case(seed) for seed in range(2)), strict=True))
    first = extract(raw)
    path = folders["nnUNet_preprocessed"] / raw.name / "dataset_fingerprint.json"
    path.write_text(json.dumps(first | {"mine": 1, "spacings": first["spacings"][:1]}))
    assert extract(raw)["mine"] == 1
    assert "computed from 1 cases, the dataset now has 2" in capsys.readouterr().out
    assert extract(raw, overwrite_existing=True) == first == json.loads(path.read_text())


def test_a_dataset_without_foreground_is_an_error_that_says_so(write_raw_dataset, folders) -> None:
    raw = write_raw_dataset(*zip(*(case(seed, foreground=False) for seed in range(2)), strict=True))
    with pytest.raises(ValueError, match="no foreground"):
        extract(raw)
    assert not (folders["nnUNet_preprocessed"] / raw.name / "dataset_fingerprint.json").exists()


def test_all_broken_cases_are_named_at_once(write_raw_dataset) -> None:
    cases = [case(seed) for seed in range(4)]
    images, segmentations = [i for i, _ in cases], [s for _, s in cases]
    segmentations[2] = segmentations[2][:, :-1]
    segmentations[3] = segmentations[3].astype(np.float32) * 1.4
    raw = write_raw_dataset(images, segmentations)
    (raw / "labelsTr" / "case_01.nii.gz").unlink()
    with pytest.raises(CaseErrors) as error:
        extract(raw)
    message = str(error.value)
    assert "case_00" not in message
    assert "case_01.nii.gz" in next(line for line in message.splitlines() if "case_01" in line)
    assert "shapes differ" in next(line for line in message.splitlines() if "case_02" in line)
    assert "whole numbers" in next(line for line in message.splitlines() if "case_03" in line)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "1 NaN"), (np.inf, "1 infinite")])
def test_voxels_that_are_not_finite_are_found_although_itk_reads_them_as_zero(write_raw_dataset, value: float, said: str) -> None:
    images, segmentations = (list(arrays) for arrays in zip(*(case(seed, channels=2) for seed in range(2)), strict=True))
    images[1][1, 0, 0, 0] = value
    raw = write_raw_dataset(images, segmentations)
    with pytest.raises(CaseErrors, match=f"case_01.*{said}") as error:
        extract(raw)
    assert "case_01_0001.nii.gz" in str(error.value) and "case_00" not in str(error.value)


def test_labels_that_are_almost_whole_are_rounded(write_raw_dataset, capsys) -> None:
    image, segmentation = case(0)
    raw = write_raw_dataset([image], [segmentation * np.float32(1.0000153) + np.float32(0.0001) * (segmentation == 0)])
    fingerprint = extract(raw)
    assert "WARNING: Case case_00.nii.gz: the segmentation holds values that are not quite whole" in capsys.readouterr().out
    expected = plain_properties([plain_samples(image, segmentation, 300_000)[0]])
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"] == expected


def test_a_wrong_number_of_channels_is_an_error(write_raw_dataset) -> None:
    raw = write_raw_dataset(*zip(*(case(seed, channels=2) for seed in range(2)), strict=True), channel_names={"0": "MR"})
    with pytest.raises((ValueError, CaseErrors), match="channel"):
        extract(raw)


def test_the_public_helper_returns_arrays() -> None:
    image, segmentation = case(0, channels=2)
    samples, statistics = DatasetFingerprintExtractor.collect_foreground_intensities(segmentation[None], image, num_samples=100)
    assert [type(s) for s in samples] == [np.ndarray] * 2
    assert np.array_equal(samples[1], plain_samples(image, segmentation, 100)[1])
    assert statistics[0]["max"] == image[0][segmentation > 0].max()
    with pytest.raises(ValueError, match="NaN"):
        DatasetFingerprintExtractor.collect_foreground_intensities(segmentation[None], image * np.nan)
