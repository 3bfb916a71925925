"""Datasets of preprocessed cases in both formats."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2.training.dataloading import nnunet_dataset
from nnunetv2.training.dataloading.nnunet_dataset import (
    comp_blosc2_params,
    infer_dataset_class,
    nnUNetBaseDataset,
    nnUNetDatasetBlosc2,
    nnUNetDatasetNumpy,
)
from nnunetv2.training.dataloading.utils import unpack_dataset

FORMATS = [nnUNetDatasetBlosc2, nnUNetDatasetNumpy]


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    return random.randn(2, 5, 6, 7).astype(np.float32), random.randint(-1, 3, (1, 5, 6, 7)).astype(np.int16)


def properties(rows: int = 4, largest: int = 6) -> dict[str, Any]:
    locations = np.arange(rows * 4, dtype=np.int64).reshape(rows, 4) % (largest + 1)
    return {"spacing": (1.0, 1.0, 1.0), "sitk_stuff": {"origin": (0.0, 0.0)}, "class_locations": {1: locations, (1, 2): []}}


def write_cases(dataset: type[nnUNetBaseDataset], folder: Path, identifiers: tuple[str, ...] = ("b", "a")) -> str:
    folder.mkdir(exist_ok=True)
    for index, identifier in enumerate(identifiers):
        dataset.save_case(*arrays(index), properties(), str(folder / identifier))
    return str(folder)


@pytest.mark.parametrize("dataset_class", FORMATS)
class TestBothFormats:
    def test_a_case_is_loaded_as_it_was_saved(self, dataset_class: type[nnUNetBaseDataset], tmp_path: Path) -> None:
        dataset = dataset_class(write_cases(dataset_class, tmp_path))
        assert dataset.identifiers == ["a", "b"]
        for loaded in (dataset.load_case("a"), dataset["a"]):
            data, seg, previous, loaded_properties = loaded
            np.testing.assert_array_equal(data[:], arrays(1)[0])
            np.testing.assert_array_equal(seg[:], arrays(1)[1])
            assert previous is None
            assert loaded_properties["sitk_stuff"] == {"origin": (0.0, 0.0)}
            np.testing.assert_array_equal(loaded_properties["class_locations"][1], properties()["class_locations"][1])
            assert len(loaded_properties["class_locations"][(1, 2)]) == 0

    def test_given_identifiers_are_sorted_in_place(self, dataset_class: type[nnUNetBaseDataset], tmp_path: Path) -> None:
        identifiers = ["b", "a"]
        assert dataset_class(str(tmp_path), identifiers).identifiers is identifiers
        assert identifiers == ["a", "b"]

    def test_segmentations_of_the_previous_stage(self, dataset_class: type[nnUNetBaseDataset], tmp_path: Path) -> None:
        folder = write_cases(dataset_class, tmp_path / "data")
        (tmp_path / "previous").mkdir()
        seg = arrays()[1][0]
        dataset_class.save_seg(seg, str(tmp_path / "previous" / "b"))
        previous = dataset_class(folder, folder_with_segs_from_previous_stage=str(tmp_path / "previous")).load_case("b")[2]
        np.testing.assert_array_equal(previous[:], seg)

    def test_the_class_is_inferred_despite_other_files(self, dataset_class: type[nnUNetBaseDataset], tmp_path: Path) -> None:
        write_cases(dataset_class, tmp_path)
        for name in (".DS_Store", "notes.txt", ".tmp-1-0-c.b2nd", ".tmp-1-0-c.npz"):
            (tmp_path / name).touch()
        assert infer_dataset_class(str(tmp_path)) is dataset_class
        assert dataset_class.get_identifiers(str(tmp_path)) == ["a", "b"]

    def test_a_pickle_that_is_more_than_data_is_refused(self, dataset_class: type[nnUNetBaseDataset], tmp_path: Path) -> None:
        write_cases(dataset_class, tmp_path)
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"class_locations": Path}))
        with pytest.raises(ValueError, match=r"a\.pkl"):
            dataset_class(str(tmp_path)).load_case("a")


class TestCacheOfProperties:
    def test_files_are_read_once(self, tmp_path: Path) -> None:
        dataset = nnUNetDatasetBlosc2(write_cases(nnUNetDatasetBlosc2, tmp_path))
        first = dataset.load_case("a")[3]
        (tmp_path / "a.pkl").unlink()
        second = dataset.load_case("a")[3]
        assert second == first or second.keys() == first.keys()
        assert second["class_locations"][1] is first["class_locations"][1]

    def test_a_callers_changes_stay_with_the_caller(self, tmp_path: Path) -> None:
        dataset = nnUNetDatasetBlosc2(write_cases(nnUNetDatasetBlosc2, tmp_path))
        dataset.load_case("a")[3]["spacing"] = None
        assert dataset.load_case("a")[3]["spacing"] == (1.0, 1.0, 1.0)

    @pytest.mark.parametrize(("largest", "dtype"), [(511, np.int16), (20000, np.int32)])
    def test_coordinates_are_compact_and_leave_room_for_arithmetic(self, tmp_path: Path, largest: int, dtype: type) -> None:
        saved = properties(rows=10000, largest=largest)
        nnUNetDatasetBlosc2.save_case(*arrays(), saved, str(tmp_path / "a"))
        rows = nnUNetDatasetBlosc2(str(tmp_path)).load_case("a")[3]["class_locations"][1]
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows, saved["class_locations"][1])

    def test_the_least_used_cases_give_way(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nnunet_dataset, "MAX_CACHED_BYTES", 2 * 4 * 4 * 2)  # two cases of four int16 rows
        dataset = nnUNetDatasetBlosc2(write_cases(nnUNetDatasetBlosc2, tmp_path, ("a", "b", "c")))
        for identifier in ("a", "b", "a", "c"):
            dataset.load_case(identifier)
        for identifier in ("a", "b", "c"):
            (tmp_path / f"{identifier}.pkl").unlink()
        dataset.load_case("a")
        dataset.load_case("c")
        with pytest.raises(FileNotFoundError, match=r"b\.pkl"):
            dataset.load_case("b")

    def test_a_copy_for_another_process_travels_without_the_cache(self, tmp_path: Path) -> None:
        dataset = nnUNetDatasetBlosc2(write_cases(nnUNetDatasetBlosc2, tmp_path))
        empty = len(pickle.dumps(dataset))
        dataset.load_case("a")
        assert len(pickle.dumps(dataset)) == empty
        assert pickle.loads(pickle.dumps(dataset)).load_case("a")[3]["spacing"] == (1.0, 1.0, 1.0)


class TestBlosc2:
    def test_chunks_and_blocks_are_used(self, tmp_path: Path) -> None:
        data, seg = arrays()
        blocks, chunks = comp_blosc2_params(data.shape, (4, 4, 4), 4)
        nnUNetDatasetBlosc2.save_case(data, seg, properties(), str(tmp_path / "a"), chunks=chunks, blocks=blocks)
        loaded, loaded_seg, _, _ = nnUNetDatasetBlosc2(str(tmp_path)).load_case("a")
        assert (loaded.chunks, loaded.blocks) == (chunks, blocks)
        assert (loaded_seg.chunks, loaded_seg.blocks) == (chunks, blocks)

    def test_identifiers_may_end_like_a_segmentation(self, tmp_path: Path) -> None:
        folder = write_cases(nnUNetDatasetBlosc2, tmp_path, ("a", "a_seg_x", "b_seg"))
        assert nnUNetDatasetBlosc2.get_identifiers(folder) == ["a", "a_seg_x", "b_seg"]

    def test_a_case_whose_writing_was_interrupted_is_none(self, tmp_path: Path) -> None:
        folder = write_cases(nnUNetDatasetBlosc2, tmp_path)
        (tmp_path / "a.pkl").unlink()
        assert nnUNetDatasetBlosc2.get_identifiers(folder) == ["b"]

    def test_there_is_nothing_to_unpack(self, tmp_path: Path) -> None:
        folder = write_cases(nnUNetDatasetBlosc2, tmp_path)
        before = sorted(tmp_path.iterdir())
        nnUNetDatasetBlosc2.unpack_dataset(folder, num_processes=1)
        assert sorted(tmp_path.iterdir()) == before


class TestNumpy:
    def test_unpacked_arrays_are_memory_mapped(self, tmp_path: Path) -> None:
        folder = write_cases(nnUNetDatasetNumpy, tmp_path)
        nnUNetDatasetNumpy.unpack_dataset(folder, num_processes=1)
        data, seg, _, _ = nnUNetDatasetNumpy(folder).load_case("a")
        assert isinstance(data, np.memmap)
        assert isinstance(seg, np.memmap)
        np.testing.assert_array_equal(data, arrays(1)[0])
        np.testing.assert_array_equal(seg, arrays(1)[1])

    def test_segmentations_can_stay_packed(self, tmp_path: Path) -> None:
        unpack_dataset(write_cases(nnUNetDatasetNumpy, tmp_path), unpack_segmentation=False, num_processes=1)
        assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["a.npy", "b.npy"]

    @pytest.mark.parametrize(("verify", "is_whole"), [(True, True), (False, False)])
    def test_a_damaged_file_is_unpacked_again_when_verifying(self, tmp_path: Path, verify: bool, is_whole: bool) -> None:
        folder = write_cases(nnUNetDatasetNumpy, tmp_path)
        nnUNetDatasetNumpy.unpack_dataset(folder, num_processes=1)
        (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
        nnUNetDatasetNumpy.unpack_dataset(folder, num_processes=1, verify=verify)
        assert ((tmp_path / "a.npy").stat().st_size > 200) is is_whole

    def test_existing_files_are_kept_unless_told_otherwise(self, tmp_path: Path) -> None:
        folder = write_cases(nnUNetDatasetNumpy, tmp_path)
        np.save(tmp_path / "a.npy", np.zeros(3))
        nnUNetDatasetNumpy.unpack_dataset(folder, num_processes=1)
        assert np.load(tmp_path / "a.npy").shape == (3,)
        nnUNetDatasetNumpy.unpack_dataset(folder, overwrite_existing=True, num_processes=1)
        assert np.load(tmp_path / "a.npy").shape == (2, 5, 6, 7)


class TestInference:
    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess"):
            infer_dataset_class(str(tmp_path / "nothing"))

    def test_an_empty_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no preprocessed case"):
            infer_dataset_class(str(tmp_path))

    def test_two_formats_are_an_error(self, tmp_path: Path) -> None:
        write_cases(nnUNetDatasetBlosc2, tmp_path)
        write_cases(nnUNetDatasetNumpy, tmp_path)
        with pytest.raises(ValueError, match=r"both \.npz and \.b2nd"):
            infer_dataset_class(str(tmp_path))
