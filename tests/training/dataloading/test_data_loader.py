"""Which patches are drawn, and that a batch is a function of its position."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms, validation_transforms
from nnunetv2.training.dataloading import data_loader
from nnunetv2.training.dataloading.batch import Batch
from nnunetv2.training.dataloading.class_targets import EvidenceRule
from nnunetv2.training.dataloading.data_loader import crop_with_padding, nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
from nnunetv2.utilities.label_handling.label_handling import LabelManager

TASKS = classification_tasks({"labels": {"background": 0}, "classification": {"grade": {"classes": ["low", "high"]}}})


class MemoryDataset:
    """Cases in memory, as a user's own dataset may keep them."""

    def __init__(self, cases: dict) -> None:
        self.cases = cases
        self.identifiers = list(cases)

    def load_case(self, identifier: str):
        return self.cases[identifier]


def case(shape=(1, 6, 6, 6), labels=None, previous=None):
    labels = np.zeros((1, *shape[1:]), np.int16) if labels is None else labels
    locations = {label: np.argwhere(labels == label) for label in (1, 2)}
    return np.ones(shape, np.float32), labels, previous, {"class_locations": locations}


def loader(patch, final=None, cases=None, label_manager=None, batch_size=2, **settings) -> nnUNetDataLoader:
    label_manager = label_manager or LabelManager({"background": 0, "a": 1, "b": 2}, None)
    return nnUNetDataLoader(MemoryDataset(cases or {"x": case()}), batch_size, patch, final or patch, label_manager, **settings)


@pytest.fixture
def ignoring() -> LabelManager:
    return LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)


# --- the box


def corners(of: nnUNetDataLoader, shape, force_fg=False, locations=None, n=300) -> np.ndarray:
    np.random.seed(0)
    return np.array([of.get_bbox(np.array(shape), force_fg, locations)[0] for _ in range(n)])


def test_boxes_stay_inside_when_patch_and_final_patch_agree() -> None:
    found = corners(loader((4, 4, 4)), (10, 4, 6))
    assert found.min(0).tolist() == [0, 0, 0] and found.max(0).tolist() == [6, 0, 2]


def test_boxes_reach_out_by_what_augmentation_needs() -> None:
    found = corners(loader((9, 8, 8), (4, 5, 8)), (10, 10, 10), n=800)
    assert found.min(0).tolist() == [-3, -2, 0] and found.max(0).tolist() == [4, 4, 2]  # 5 and 3 to pad, floor below, rest above


def test_small_images_are_padded_to_the_patch() -> None:
    found = corners(loader((8, 9, 8)), (3, 4, 8))
    assert found.min(0).tolist() == [-3, -3, 0] and found.max(0).tolist() == [-2, -2, 0]
    lower, upper = loader((8, 9, 8)).get_bbox(np.array((3, 4, 8)), False, None)
    assert [u - low for low, u in zip(lower, upper)] == [8, 9, 8]


def test_pad_sides_reach_farther() -> None:
    found = corners(loader((4, 4, 4), pad_sides=(4, 0, 2)), (10, 10, 10), n=800)
    assert found.min(0).tolist() == [-2, 0, -1] and found.max(0).tolist() == [8, 6, 7]


def test_forced_boxes_are_centred_on_a_voxel_without_upper_limit() -> None:
    lower, upper = loader((4, 4, 4)).get_bbox((10, 10, 10), True, {1: np.array([[0, 9, 5, 0]]), 2: []})
    assert lower == [7, 3, 0] and upper == [11, 7, 4]


def test_forced_boxes_take_every_class_equally_often() -> None:
    locations = {1: np.array([[0, 2, 2, 2]] * 99), 2: np.array([[0, 7, 7, 7]]), 3: np.zeros((0, 4))}
    found = corners(loader((4, 4, 4)), (10, 10, 10), True, locations, 400)
    assert set(map(tuple, found)) == {(0, 0, 0), (5, 5, 5)} and 150 < (found[:, 0] == 5).sum() < 250


def test_a_class_can_be_asked_for() -> None:
    locations = {1: np.array([[0, 2, 2, 2]]), 2: np.array([[0, 7, 7, 7]]), 3: []}
    for _ in range(5):
        assert loader((4, 4, 4)).get_bbox((10, 10, 10), True, locations, overwrite_class=2)[0] == [5, 5, 5]
    with pytest.raises(ValueError, match="overwrite_class 3"):
        loader((4, 4, 4)).get_bbox((10, 10, 10), True, locations, overwrite_class=3)


def test_without_foreground_forced_boxes_lie_anywhere() -> None:
    assert len(np.unique(corners(loader((4, 4, 4)), (10, 10, 10), True, {1: [], 2: []}), axis=0)) > 50


def test_with_an_ignore_label_unforced_boxes_show_annotated_voxels(ignoring) -> None:
    annotated = (-1, 0, 1, 2)
    locations = {1: [], 2: np.array([[0, 8, 8, 8]]), annotated: np.array([[0, 3, 3, 3]])}
    of = loader((4, 4, 4), label_manager=ignoring)
    assert set(map(tuple, corners(of, (10, 10, 10), False, locations, 20))) == {(1, 1, 1)}
    assert set(map(tuple, corners(of, (10, 10, 10), True, locations, 20))) == {(6, 6, 6)}  # annotated only counts alone
    assert set(map(tuple, corners(of, (10, 10, 10), True, {1: [], annotated: locations[annotated]}, 20))) == {(1, 1, 1)}


def test_an_image_without_annotation_warns(ignoring) -> None:
    with pytest.warns(UserWarning, match="no annotated voxel"):
        loader((4, 4, 4), label_manager=ignoring).get_bbox((10, 10, 10), False, {1: [], (-1, 0, 1, 2): []})


# --- oversampling


@pytest.mark.parametrize(("batch_size", "forced"), [(2, 1), (3, 1), (4, 1), (5, 2), (9, 3), (12, 4)])
def test_the_last_third_of_a_batch_is_forced(batch_size: int, forced: int) -> None:
    of = loader((4, 4, 4), batch_size=batch_size, oversample_foreground_percent=0.33)
    assert [of.get_do_oversample(j) for j in range(batch_size)] == [False] * (batch_size - forced) + [True] * forced


def test_oversampling_by_chance() -> None:
    of = loader((4, 4, 4), oversample_foreground_percent=0.25, probabilistic_oversampling=True)
    np.random.seed(0)
    assert 0.2 < np.mean([of.get_do_oversample(0) for _ in range(2000)]) < 0.3


# --- cropping


def test_outside_of_the_image_is_padding() -> None:
    array = np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4)
    patch = crop_with_padding(array, [-1, 1, 2], [2, 4, 6], -1, np.int16)
    assert patch.dtype == np.int16 and patch.shape == (1, 3, 3, 4)
    assert patch[0, 1].tolist() == [[6, 7, -1, -1], [10, 11, -1, -1], [-1, -1, -1, -1]] and (patch[0, 0] == -1).all()


@pytest.mark.parametrize("lower", [(-9, 0, 0), (0, 3, 0), (0, 0, 9)])
def test_a_box_beside_the_image_is_all_padding(lower) -> None:
    patch = crop_with_padding(np.zeros((1, 2, 3, 4)), lower, [low + 3 for low in lower], -1, np.int16)
    assert patch.shape == (1, 3, 3, 3) and (patch == -1).all()


def test_a_crop_never_shares_memory_with_the_image() -> None:
    array = np.zeros((1, 3, 3, 3), dtype=np.float32)
    crop_with_padding(array, (0, 0, 0), (3, 3, 3), 0, np.float32)[:] = 5
    assert (array == 0).all()


def test_segmentations_are_padded_with_minus_one_and_images_with_zero() -> None:
    batch = loader((9, 9, 9), cases={"x": case(previous=np.full((6, 6, 6), 2, np.int16))}).generate_train_batch()
    inside = batch["data"][:, :1] == 1
    assert inside.sum() == 2 * 6**3 and (batch["data"][~inside] == 0).all()
    assert (batch["target"][:, :1][~inside] == -1).all() and (batch["target"][:, 1:][inside] == 2).all()
    assert (batch["target"][:, 1:][~inside] == -1).all()


@pytest.mark.parametrize("mode", ["3d", "planes", "2d"])
def test_reading_only_what_is_needed_changes_nothing(monkeypatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    cases = {}
    for name in "xy":
        labels = np.repeat(rng.integers(-1, 3, (1, 14, 5, 12)), 5, axis=2).astype(np.int16)
        image, _, _, properties = case((2, 14, 25, 12), labels)
        cases[name] = rng.normal(size=image.shape).astype(np.float32), labels, labels[0], properties
    patch = (12, 10) if mode == "2d" else (8, 12, 10)
    initial = (20, 17) if mode == "2d" else (8 if mode == "planes" else 13, 20, 17)
    transforms = training_transforms(patch, (-1, 1), None, (0, 1), mode == "planes", None, True, [1, 2])
    of = loader(initial, patch, cases, oversample_foreground_percent=0.5, transforms=transforms, seed=0)
    monkeypatch.setattr(data_loader, "PARTIAL_READING_FROM_VOXELS", 10**9)
    whole = [of.generate_batch(0, i) for i in range(12)]
    monkeypatch.setattr(data_loader, "PARTIAL_READING_FROM_VOXELS", 0)
    sizes = []
    monkeypatch.setattr(data_loader, "crop_with_padding", lambda *a: sizes.append((crop := crop_with_padding(*a)).size) or crop)
    for i, expected in enumerate(whole):
        found = of.generate_batch(0, i)
        assert torch.equal(found["data"], expected["data"]) and torch.equal(found["target"], expected["target"])
    assert min(sizes) == np.prod(patch) and len(set(sizes)) > 4  # the middle alone, and parts of various sizes


def test_what_was_drawn_for_a_broken_case_is_not_used_for_the_next(monkeypatch) -> None:
    monkeypatch.setattr(data_loader, "PARTIAL_READING_FROM_VOXELS", 0)
    image, labels, previous, properties = case((1, 20, 20, 20))
    broken = np.zeros((1, 20, 20), np.float32), labels, previous, properties  # fails after the box is known
    transforms = training_transforms((8, 8, 8), (-1, 1), None, (0, 1), False)
    of = loader((12, 12, 12), (8, 8, 8), {"x": (image, labels, previous, properties)}, transforms=transforms, seed=0)
    alone = of.generate_batch(0, 3)
    of._data.cases["x"] = broken
    with pytest.raises(RuntimeError, match="Case x"):
        of.generate_batch(0, 1)
    of._data.cases["x"] = image, labels, previous, properties
    assert torch.equal(of.generate_batch(0, 3)["data"], alone["data"])


# --- batches


def test_layout_of_a_batch(make_loader) -> None:
    batch = make_loader().generate_train_batch()
    assert isinstance(batch, Batch) and batch["data"].shape == (2, 2, 12, 16, 14) and batch["data"].dtype == torch.float32
    assert [tuple(t.shape) for t in batch["target"]] == [(2, 1, 12, 16, 14), (2, 1, 6, 8, 7)] and batch["target"][0].dtype == torch.int16
    assert len(batch["keys"]) == 2 and batch["class"] == {}


def test_2d_patches_are_slices(preprocessed_folder, label_manager) -> None:
    of = nnUNetDataLoader(nnUNetDatasetBlosc2(preprocessed_folder), 3, (20, 18), (16, 14), label_manager, 0.33, seed=0)
    batch = of.generate_batch(0, 0)
    assert batch["data"].shape == (3, 2, 20, 18) and batch["target"].shape == (3, 1, 20, 18)
    assert set(batch["target"][2].unique().tolist()) & {1, 2} or batch["keys"][2] == "case_4"


def test_forced_samples_show_foreground(make_loader) -> None:
    of = make_loader(transforms=None, oversample_foreground_percent=1.0)
    for iteration in range(20):
        batch = of.generate_batch(0, iteration)
        for name, labels in zip(batch["keys"], batch["target"]):
            assert name == "case_4" or (labels > 0).any()


def test_the_same_position_gives_the_same_batch(make_loader) -> None:
    one, other = make_loader(), make_loader()
    other.generate_batch(0, 0)
    first, second = one.generate_batch(3, 5), other.generate_batch(3, 5)
    assert torch.equal(first["data"], second["data"]) and first["keys"].tolist() == second["keys"].tolist()
    assert first["keys"].tolist() == one.identifiers_of_batch(3, 5)
    for different in (one.generate_batch(3, 6), one.generate_batch(4, 5), make_loader(seed=8).generate_batch(3, 5)):
        assert not torch.equal(first["data"], different["data"])


def test_the_number_of_threads_does_not_matter(make_loader) -> None:
    threads = torch.get_num_threads()
    batches = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            batches.append([make_loader().generate_batch(0, i)["data"] for i in range(4)])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*batches))


def test_the_samples_of_a_batch_are_independent(make_loader) -> None:
    batch = make_loader().generate_batch(1, 2)
    assert not torch.equal(batch["data"][0], batch["data"][1])


def test_ranks_draw_the_parts_of_the_global_batch(make_loader) -> None:
    whole = make_loader(batch_size=3, oversample_foreground_percent=1 / 3)
    first = make_loader(batch_size=2, oversample_foreground_percent=0.0, global_batch_size=3)
    second = make_loader(batch_size=1, oversample_foreground_percent=1.0, sample_offset=2)
    for iteration in range(6):
        expected = whole.generate_batch(1, iteration)
        parts = [rank.generate_batch(1, iteration) for rank in (first, second)]
        assert [name for part in parts for name in part["keys"]] == expected["keys"].tolist()
        assert torch.equal(torch.cat([part["data"] for part in parts]), expected["data"])
        assert torch.equal(torch.cat([part["target"][0] for part in parts]), expected["target"][0])
        assert second.identifiers_of_batch(1, iteration) == expected["keys"][2:].tolist()


def test_random_states_of_the_training_are_left_alone(make_loader) -> None:
    np.random.seed(1), torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(1), torch.manual_seed(1)
    make_loader().generate_batch(0, 0)
    assert (np.random.rand(), torch.rand(1).item()) == expected


def test_without_a_seed_every_loader_has_its_own(make_loader) -> None:
    assert make_loader(seed=None).seed != make_loader(seed=None).seed


def test_classes_come_with_the_batch(make_loader) -> None:
    case_labels = CaseLabels(TASKS, {"case_0": {"grade": 0}, "case_4": {"grade": 1}})
    of = make_loader(case_labels=case_labels, evidence_weights={"grade": EvidenceRule((2,), (1,))})
    plain = make_loader()
    seen = set()
    for iteration in range(12):
        batch = of.generate_batch(0, iteration)
        image, segmentation, classes = batch
        assert torch.equal(image, plain.generate_batch(0, iteration)["data"])  # classes change nothing else
        for j, name in enumerate(batch["keys"]):
            labels = set(segmentation[0][j].unique().tolist())
            expected = 1.0 if 2 in labels else 0.3 if 1 in labels else 0.0
            assert classes["grade"]["weight"][j] == pytest.approx(expected)
            assert classes["grade"]["target"][j] == {"case_0": 0, "case_4": 1}.get(str(name), -1)
            seen.add(expected)
    assert len(seen) > 1


def test_a_dataset_without_tasks_has_no_classes(make_loader) -> None:
    assert make_loader(case_labels=CaseLabels()).generate_batch(0, 0)["class"] == {}


def test_a_loader_with_its_own_batches_is_seeded_too(make_loader) -> None:
    class Own(nnUNetDataLoader):
        def generate_train_batch(self):
            return {"data": torch.rand(2) + np.random.rand(), "target": None, "keys": self.get_indices()}

    one, other = make_loader(Own).generate_batch(0, 1), make_loader(Own).generate_batch(0, 1)
    assert torch.equal(one["data"], other["data"]) and one["class"] == {}


def test_sampling_probabilities_are_followed_and_checked(make_loader) -> None:
    of = make_loader(sampling_probabilities=[0, 0, 1, 0, 0], transforms=None)
    assert {name for i in range(5) for name in of.identifiers_of_batch(0, i)} == {"case_2"}
    with pytest.raises(ValueError, match="5 numbers"):
        make_loader(sampling_probabilities=[0.5, 0.5])
    with pytest.raises(ValueError, match="sum to 1"):
        make_loader(sampling_probabilities=[0.5] * 5)


def test_errors_name_the_case(make_loader) -> None:
    def broken(**sample):
        raise KeyError("nonsense")

    with pytest.raises(RuntimeError, match=r"Case case_\d.*KeyError.*nonsense"):
        make_loader(transforms=broken).generate_batch(0, 0)
    with pytest.raises(RuntimeError, match="number of channels"):
        of = loader((4, 4, 4), cases={"x": case(), "y": case((2, 6, 6, 6))}, seed=0)
        for iteration in range(20):
            of.generate_batch(0, iteration)
    with pytest.raises(ValueError, match="no cases"):
        nnUNetDataLoader(MemoryDataset({}), 2, (4, 4, 4), (4, 4, 4), LabelManager({"background": 0, "a": 1}, None))


# Ending batchgenerators' augmenter while a batch is on its way makes its own thread complain.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_batchgenerators_augmenters_take_the_loader(make_loader) -> None:
    of = make_loader(transforms=validation_transforms(None))
    assert next(SingleThreadedAugmenter(of, None))["data"].shape == (2, 2, 16, 22, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork
        augmenter = NonDetMultiThreadedAugmenter(of, None, 1, 1, seeds=None, pin_memory=False, wait_time=0.002)
        try:
            assert next(augmenter)["target"].shape == (2, 1, 16, 22, 20)
        finally:
            augmenter._finish()
