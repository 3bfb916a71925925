"""From raw case to stored case."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.scheduling import CaseErrors
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

# NRRD, because the NIfTI library silently reads infinite voxels as 0
DATASET_JSON = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nrrd", "numTraining": 3}
RESAMPLING = "resample_data_or_seg_to_shape"
IMAGE_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Tiny",
    "plans_name": "nnUNetPlans",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -9.0, "percentile_99_5": 9.0}},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "patch_size": [16, 16, 16],
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["NoNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": RESAMPLING,
            "resampling_fn_seg": RESAMPLING,
            "resampling_fn_data_kwargs": IMAGE_RESAMPLING,
            "resampling_fn_seg_kwargs": {**IMAGE_RESAMPLING, "is_seg": True, "order": 1},
            "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        },
        "2d": {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_2d", "patch_size": [16, 16], "spacing": [1.0, 1.0]},
    },
}


def run_on_arrays(
    data: np.ndarray,
    seg: np.ndarray | None,
    spacing: list[float],
    *,
    configuration: str = "3d_fullres",
    dataset_json: dict[str, Any] = DATASET_JSON,
    preprocessor: DefaultPreprocessor | None = None,
    plans_entries: dict[str, Any] | None = None,
    **configuration_entries: Any,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    plans = deepcopy(PLANS) | (plans_entries or {})
    plans["configurations"][configuration] |= configuration_entries
    manager = PlansManager(plans)
    return (preprocessor or DefaultPreprocessor(verbose=False)).run_case_npy(
        data, seg, {"spacing": spacing}, manager, manager.get_configuration(configuration), dataset_json
    )


def image_and_seg(shape: tuple[int, int, int] = (6, 8, 10)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    data = random.rand(1, *shape).astype(np.float32) + 1
    seg = np.zeros((1, *shape), dtype=np.float32)
    seg[0, 1:4, 2:6, 3:7] = 1
    seg[0, 2, 3, 4] = 2
    return data, seg


class TestArrays:
    def test_nothing_happens_to_a_case_that_fits(self) -> None:
        data, seg = image_and_seg()
        result, result_seg, properties = run_on_arrays(data, seg, [1.0, 1.0, 1.0])
        np.testing.assert_array_equal(result, data)
        np.testing.assert_array_equal(result_seg, seg)
        assert (result.dtype, result_seg.dtype) == (np.float32, np.int8)
        assert properties["bbox_used_for_cropping"] == [[0, 6], [0, 8], [0, 10]]
        assert list(properties["class_locations"]) == [1, 2]

    def test_the_callers_arrays_are_not_changed(self) -> None:
        data, seg = image_and_seg()
        data[0, :, 0] = 0
        before = data.copy(), seg.copy()
        run_on_arrays(data, seg, [1.0, 2.0, 1.0], normalization_schemes=["ZScoreNormalization"])
        np.testing.assert_array_equal(data, before[0])
        np.testing.assert_array_equal(seg, before[1])

    def test_axes_are_permuted_cropped_and_resampled(self) -> None:
        data, seg = image_and_seg()
        data[0, :, :2] = 0
        result, result_seg, properties = run_on_arrays(
            data, seg, [1.0, 2.0, 3.0], plans_entries={"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
        )
        assert tuple(properties["shape_before_cropping"]) == (10, 6, 8)
        assert properties["bbox_used_for_cropping"] == [[0, 10], [0, 6], [2, 8]]
        assert tuple(properties["shape_after_cropping_and_before_resampling"]) == (10, 6, 6)
        assert result.shape == result_seg.shape == (1, 30, 6, 12)
        assert properties["spacing"] == [1.0, 2.0, 3.0]

    def test_2d_keeps_the_slices(self) -> None:
        result, _, _ = run_on_arrays(*image_and_seg(), [7.0, 0.5, 0.5], configuration="2d")
        assert result.shape == (1, 6, 4, 5)

    def test_normalization_comes_before_resampling(self) -> None:
        data, seg = image_and_seg()
        resampled, _, _ = run_on_arrays(data, seg, [1.0, 1.0, 2.0], normalization_schemes=["RescaleTo01Normalization"])
        assert (resampled.min(), resampled.max()) == (0.0, 1.0)
        assert resampled.shape == (1, 6, 8, 20)

    def test_without_label_the_segmentation_is_the_nonzero_mask(self) -> None:
        data, _ = image_and_seg()
        data[0, 0, 0, :5] = 0
        _, seg, properties = run_on_arrays(data, None, [1.0, 1.0, 1.0])
        assert (seg == -1).sum() == 5
        assert seg.max() == 0
        assert "class_locations" not in properties

    def test_a_mask_is_used_where_the_plans_say_so(self) -> None:
        data, seg = image_and_seg()
        data[0, 0] = 0
        data[0, 0, 0, 0] = 1.5
        result, result_seg, _ = run_on_arrays(
            data, seg, [1.0, 1.0, 1.0], normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[True]
        )
        outside = result_seg < 0
        assert outside.sum() == 79
        assert (result[outside] == 0).all()
        assert abs(result[~outside].mean()) < 1e-5

    def test_large_labels_get_int16(self) -> None:
        data, seg = image_and_seg()
        seg[seg == 2] = 200
        labels = DATASET_JSON | {"labels": {"background": 0, "a": 1, "b": 200}}
        assert run_on_arrays(data, seg, [1.0, 1.0, 1.0], dataset_json=labels)[1].dtype == np.int16

    def test_a_subclass_changes_the_segmentation(self) -> None:
        class OneLabel(DefaultPreprocessor):
            def modify_seg_fn(self, seg, plans_manager, dataset_json, configuration_manager):
                return (seg > 0).astype(seg.dtype)

        _, seg, properties = run_on_arrays(*image_and_seg(), [1.0, 1.0, 1.0], preprocessor=OneLabel(verbose=False))
        assert seg.max() == 1
        assert len(properties["class_locations"][2]) == 1  # sampled before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data, seg: (data, seg[:, 1:]), "different shapes"),
            (lambda data, seg: (np.where(data > 1.9, np.nan, data), seg), "NaN"),
            (lambda data, seg: (data, seg + 0.3), "labels are whole numbers"),
            (lambda data, seg: (data, seg + 40000), "can be stored"),
            (lambda data, seg: (np.concatenate((data, data)), seg), "2 channels, but the plans describe 1"),
        ],
    )
    def test_wrong_input_is_named(self, change: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run_on_arrays(*change(*image_and_seg()), [1.0, 1.0, 1.0])


class TestClassLocations:
    """Recorded from nnunetv2 2.8.1."""

    @staticmethod
    def cube() -> np.ndarray:
        seg = np.zeros((1, 6, 6, 6), dtype=np.int16)
        seg[0, 1:4, 1:4, 1:4] = 1
        seg[0, 2, 2, 2] = 2
        return seg

    def test_labels(self) -> None:
        locations = DefaultPreprocessor._sample_foreground_locations(self.cube(), [1, 2])
        assert {key: len(rows) for key, rows in locations.items()} == {1: 26, 2: 1}
        assert locations[1][:3].tolist() == [[0, 1, 3, 2], [0, 2, 3, 3], [0, 1, 1, 3]]
        assert locations[1].dtype == np.int64

    def test_regions_and_annotated_voxels(self) -> None:
        locations = DefaultPreprocessor._sample_foreground_locations(self.cube(), [(1, 2), 2, [-1, 0, 1, 2]])
        assert [len(rows) for rows in locations.values()] == [27, 1, 216]
        assert locations[(1, 2)][:2].tolist() == [[0, 3, 1, 2], [0, 1, 3, 2]]
        assert locations[(-1, 0, 1, 2)][:2].tolist() == [[0, 5, 5, 4], [0, 5, 4, 2]]

    def test_absent_classes_have_an_empty_list(self) -> None:
        assert DefaultPreprocessor._sample_foreground_locations(self.cube(), [1, 7])[7] == []
        assert DefaultPreprocessor._sample_foreground_locations(np.zeros((1, 3, 3, 3), np.int8), [1, (1, 2)]) == {1: [], (1, 2): []}

    def test_number_of_samples(self) -> None:
        seg = np.ones((1, 30, 40, 50), dtype=np.int8)
        sample = DefaultPreprocessor._sample_foreground_locations
        assert len(sample(seg, [1])[1]) == 10000
        assert len(sample(seg, [1], min_num_samples=5, min_percent_coverage=0.5)[1]) == 30000

    def test_an_ignore_label_adds_the_annotated_voxels(self) -> None:
        dataset_json = DATASET_JSON | {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
        data, seg = image_and_seg()
        seg[0, 0] = 3
        _, _, properties = run_on_arrays(data, seg, [1.0, 1.0, 1.0], dataset_json=dataset_json)
        assert list(properties["class_locations"]) == [1, 2, (-1, 0, 1, 2)]
        assert len(properties["class_locations"][(-1, 0, 1, 2)]) == (seg != 3).sum()


def test_labels_above_the_declared_ones_are_an_error() -> None:
    data, seg = image_and_seg()
    seg[0, 4, 5, 5], seg[0, 4, 5, 6] = 5, 3
    with pytest.raises(ValueError, match="holds 3, 5, but dataset.json declares the labels 0, 1, 2"):
        run_on_arrays(data, seg, [1.0, 1.0, 1.0])
    seg[seg == 5] = 3
    with_ignore = DATASET_JSON | {"labels": {**DATASET_JSON["labels"], "ignore": 3}}
    assert run_on_arrays(data, seg, [1.0, 1.0, 1.0], dataset_json=with_ignore)[1].max() == 3


def test_a_preprocessor_of_ones_own_may_replace_labels_that_are_not_declared() -> None:
    class MergesLabels(DefaultPreprocessor):
        def modify_seg_fn(self, seg, plans_manager, dataset_json, configuration_manager):
            return np.minimum(seg, 2)

    data, seg = image_and_seg()
    seg[0, 4, 5, 5] = 7
    assert run_on_arrays(data, seg, [1.0, 1.0, 1.0], preprocessor=MergesLabels(verbose=False))[1].max() == 2


@pytest.fixture
def raw_dataset(nnunet_folders: dict[str, Path]) -> Path:
    """Three cases and their plans; returns the preprocessed folder of the dataset."""
    raw, preprocessed = nnunet_folders["raw"] / "Dataset001_Tiny", nnunet_folders["preprocessed"] / "Dataset001_Tiny"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    preprocessed.mkdir()
    for index in range(3):
        data, seg = image_and_seg((6, 8, 10 + index))
        write_image(data[0], raw / "imagesTr" / f"case_{index}_0000.nrrd")
        write_image(seg[0].astype(np.uint8), raw / "labelsTr" / f"case_{index}.nrrd")
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    return preprocessed


def write_image(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 1.0, 1.0))
    sitk.WriteImage(image, str(path))


def run_dataset(num_processes: int = 1, num_parts: int = 1, part_id: int = 0) -> None:
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessor.num_parts, preprocessor.part_id = num_parts, part_id
    preprocessor.show_progress_bar = False
    preprocessor.run(1, "3d_fullres", "nnUNetPlans", num_processes)


class TestDataset:
    @pytest.mark.parametrize("num_processes", [1, 2])
    def test_every_case_is_stored(self, raw_dataset: Path, num_processes: int) -> None:
        run_dataset(num_processes)
        folder = raw_dataset / "nnUNetPlans_3d_fullres"
        dataset = infer_dataset_class(str(folder))(str(folder))
        assert dataset.identifiers == ["case_0", "case_1", "case_2"]
        data, seg, previous, properties = dataset.load_case("case_1")
        assert (data.shape, data.dtype) == ((1, 6, 8, 22), np.float32)
        assert (seg.shape, seg.dtype) == ((1, 6, 8, 22), np.int16)
        assert previous is None
        assert set(properties) == {
            "sitk_stuff", "spacing", "shape_before_cropping", "bbox_used_for_cropping",
            "shape_after_cropping_and_before_resampling", "class_locations",
        }  # fmt: skip
        assert len(list(folder.iterdir())) == 9

    def test_stale_files_go_and_a_second_run_gives_the_same_files(self, raw_dataset: Path) -> None:
        run_dataset()
        folder = raw_dataset / "nnUNetPlans_3d_fullres"
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name in ("gone.b2nd", "gone_seg.b2nd", "gone.pkl", "case_1.npz", ".tmp-1-a-case_1.b2nd"):
            (folder / name).touch()
        run_dataset()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_part_of_several_removes_no_files_of_other_parts(self, raw_dataset: Path) -> None:
        folder = raw_dataset / "nnUNetPlans_3d_fullres"
        folder.mkdir()
        at_work = {"case_0.npz", "case_0.pkl", "case_0_weights.npz", ".tmp-1-a-case_2.b2nd"}
        for name in (*at_work, "gone.npz", "gone.b2nd", "case_0_of_old.b2nd"):
            (folder / name).touch()
        run_dataset(num_parts=2, part_id=1)
        assert {path.name for path in folder.iterdir()} == at_work | {"case_1.b2nd", "case_1_seg.b2nd", "case_1.pkl"}

    def test_a_broken_case_is_named_and_the_others_are_finished(self, raw_dataset: Path, nnunet_folders: dict[str, Path]) -> None:
        run_dataset()
        image = nnunet_folders["raw"] / "Dataset001_Tiny" / "imagesTr" / "case_1_0000.nrrd"
        array = image_and_seg((6, 8, 11))[0][0]
        array[0, 0, 0] = np.inf
        write_image(array, image)
        with pytest.raises(CaseErrors, match=r"(?s)1 of 1 cases failed.*case_1_0000\.nrrd.*1 infinite"):
            run_dataset()
        folder = raw_dataset / "nnUNetPlans_3d_fullres"
        # What an earlier run made of it is not lost.
        assert infer_dataset_class(str(folder)).get_identifiers(str(folder)) == ["case_0", "case_1", "case_2"]

    def test_labels_on_another_grid_are_named(self, raw_dataset: Path, nnunet_folders: dict[str, Path]) -> None:
        label = nnunet_folders["raw"] / "Dataset001_Tiny" / "labelsTr" / "case_2.nrrd"
        write_image(np.zeros((6, 8, 9), np.uint8), label)
        with pytest.raises(CaseErrors, match=r"shapes differ: case_2_0000\.nrrd has .* case_2\.nrrd has \(6, 8, 9\)"):
            run_dataset()

    def test_missing_plans_are_named(self, raw_dataset: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"otherPlans\.json does not exist"):
            DefaultPreprocessor(verbose=False).run(1, "3d_fullres", "otherPlans", 1)
