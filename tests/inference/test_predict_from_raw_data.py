from __future__ import annotations

import gzip
import itertools
import json
import pickle
import shutil
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fresh_python import loaded_by
from tiny_models import CLASSIFICATION, dataset_json, plans, random_network, write_images, write_model

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference import data_iterators, predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.scheduling import CaseErrors
from nnunetv2.utilities.checkpoint_io import CheckpointError
from nnunetv2.utilities.file_io import load_properties
from nnunetv2.utilities.label_handling.class_calibration import ClassCalibration, TaskCalibration
from nnunetv2.utilities.label_handling.classification_table import part_file, read_classification_csv, write_classification_csv
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

CPU = torch.device("cpu")


def predictor_of(model: Path, folds=(0,), **options) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Segmentation alone, two folds."""
    return write_model(tmp_path_factory.mktemp("model") / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0, 1))


@pytest.fixture(scope="module")
def joint_model(tmp_path_factory) -> Path:
    """With heads, two folds."""
    return write_model(tmp_path_factory.mktemp("joint") / "model", folds=(0, 1), classification=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(joint_model):
    return predictor_of(joint_model).classification_tasks


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


# --- segmentation ----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_becomes_a_folder_of_segmentations(model, images, tmp_path) -> None:
    result = predictor_of(model).predict_from_files(str(images), str(tmp_path / "out"), save_probabilities=True)
    assert result == [None, None, None]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [f"case_{i}{ending}" for i in range(3) for ending in (".nii.gz", ".npz", ".pkl")]
        + ["dataset.json", "plans.json", "predict_from_raw_data_args.json"]
    )
    image, segmentation = (sitk.ReadImage(str(f)) for f in (images / "case_1_0000.nii.gz", tmp_path / "out" / "case_1.nii.gz"))
    assert segmentation.GetPixelID() == sitk.sitkUInt8
    for geometry in ("GetSize", "GetOrigin", "GetDirection", "GetSpacing"):
        assert getattr(segmentation, geometry)() == getattr(image, geometry)()
    probabilities = np.load(tmp_path / "out" / "case_1.npz")["probabilities"]
    assert probabilities.shape == (3, 20, 22, 18)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=0), sitk.GetArrayFromImage(segmentation))
    assert len(np.unique(probabilities.argmax(axis=0))) > 1
    assert load_properties(tmp_path / "out" / "case_1.pkl")["shape_before_cropping"] == (20, 22, 18)


def test_all_ways_to_predict_agree(model, images, tmp_path) -> None:
    predictor = predictor_of(model)
    predictor.predict_from_files(str(images), str(tmp_path / "out"))
    written = [read(tmp_path / "out" / f"case_{i}.nii.gz") for i in range(3)]
    files = [[str(images / f"case_{i}_0000.nii.gz")] for i in range(3)]
    arrays, properties = zip(*[SimpleITKIO().read_images(f) for f in files])
    assert predictor.predict_from_files_sequential(str(images), str(tmp_path / "sequential")) == []
    others = {
        "sequential": [read(tmp_path / "sequential" / f"case_{i}.nii.gz") for i in range(3)],
        "returned": predictor.predict_from_files(files, None),
        "returned sequentially": predictor.predict_from_files_sequential(files, None),
        "arrays": predictor.predict_from_list_of_npy_arrays(list(arrays), None, list(properties), None),
        "single": [predictor.predict_single_npy_array(a, {"spacing": p["spacing"]}) for a, p in zip(arrays, properties)],
        "case": [predictor.predict_case(a, p).segmentation for a, p in zip(arrays, properties)],
        "probabilities": [t[0] for t in predictor.predict_from_files(files, None, save_probabilities=True)],
    }
    for way, segmentations in others.items():
        for index, segmentation in enumerate(segmentations):
            np.testing.assert_array_equal(segmentation, written[index], err_msg=way)


def test_worker_processes_change_nothing(model, images, tmp_path, monkeypatch) -> None:
    predictor = predictor_of(model)
    predictor.predict_from_files(str(images), str(tmp_path / "here"))
    monkeypatch.setattr(predict_from_raw_data, "worthwhile_processes", lambda files, number: number)
    predictor.predict_from_files(str(images), str(tmp_path / "workers"), num_processes_preprocessing=2, num_processes_segmentation_export=2)
    for index in range(3):
        np.testing.assert_array_equal(read(tmp_path / "here" / f"case_{index}.nii.gz"), read(tmp_path / "workers" / f"case_{index}.nii.gz"))


@pytest.mark.parametrize("ahead", [True, False])
def test_small_jobs_are_preprocessed_while_the_network_works(model, images, monkeypatch, ahead) -> None:
    begun: list[str] = []
    second = threading.Event()

    class Watched(DefaultPreprocessor):
        def run_case(self, image_files, *arguments):
            begun.append(image_files[0])
            if len(begun) == 2:
                second.set()
            return super().run_case(image_files, *arguments)

    predictor = predictor_of(model)
    monkeypatch.setattr(type(predictor.configuration_manager), "preprocessor_class", property(lambda self: Watched))
    files = [[str(file)] for file in sorted(images.iterdir())]
    cases = predictor._internal_get_data_iterator_from_lists_of_filenames(files, None, None, 2 if ahead else 0)
    next(cases)
    assert second.wait(20 if ahead else 0.2) == ahead  # the first is still in use
    assert len(list(cases)) == len(files) - 1
    assert begun == [file for [file] in files]


def test_logits_equal_a_plain_forward_pass_of_the_network() -> None:
    """An image as large as the tile, without mirroring: one tile, whose weights cancel."""
    content, dataset = plans(), dataset_json()
    network = random_network(content, dataset, seed=3)
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, allow_tqdm=False)
    predictor.manual_initialization(network, manager, manager.get_configuration("3d_fullres"), None, dataset, "nnUNetTrainer", (0, 1, 2))
    data = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(predictor.predict_sliding_window_return_logits(data), network(data[None])[0], atol=1e-4, rtol=1e-4)


def test_a_network_that_is_ready_is_not_moved_again_and_parts_in_training_are_noticed(model, monkeypatch) -> None:
    predictor = predictor_of(model)
    image = torch.zeros(1, 16, 16, 16)
    expected = predictor.predict_sliding_window_return_logits(image)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *arguments: moved.append(self) or self)
    part = list(predictor.network.modules())[-1]
    part.train()
    torch.testing.assert_close(predictor.predict_sliding_window_return_logits(image), expected, rtol=0, atol=0)
    assert not part.training
    assert not moved


def test_mirrored_logits_are_the_mean_over_all_flips() -> None:
    content, dataset = plans(), dataset_json()
    network = random_network(content, dataset, seed=3).eval()
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.manual_initialization(network, manager, manager.get_configuration("3d_fullres"), None, dataset, "nnUNetTrainer", (0, 2))
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = sum(torch.flip(network(torch.flip(x, axes)), axes) for axes in ((), (2,), (4,), (2, 4))) / 4
        torch.testing.assert_close(predictor._internal_maybe_mirror_and_predict(x), expected)


def test_small_images_are_padded_and_come_back_in_their_size(model) -> None:
    segmentation = predictor_of(model).predict_single_npy_array(np.random.rand(1, 5, 30, 9).astype(np.float32) + 1, {"spacing": [1, 1, 1]})
    assert segmentation.shape == (5, 30, 9)


def test_folds_are_averaged(model, images) -> None:
    data = torch.randn(1, 20, 20, 20)
    both = predictor_of(model, (0, 1)).predict_logits_from_preprocessed_data(data)
    alone = [predictor_of(model, fold).predict_logits_from_preprocessed_data(data) for fold in (0, 1)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_half_accumulation_gives_float16_logits(model, monkeypatch) -> None:
    data = torch.randn(1, 20, 20, 20)
    predictor = predictor_of(model)
    exact = predictor.predict_logits_from_preprocessed_data(data)
    monkeypatch.setenv("nnUNet_half_accumulation", "1")
    half = predictor.predict_logits_from_preprocessed_data(data)
    assert (exact.dtype, half.dtype) == (torch.float32, torch.float16)
    assert float((exact - half).abs().mean()) < 0.05
    assert not torch.equal(exact, half.float())


@pytest.mark.parametrize(("dimensions", "size"), [(3, (48, 56, 40)), (2, (3, 72, 64))])
def test_float32_sums_change_whole_predictions_only_where_float16_is_coarse(dimensions, size, monkeypatch) -> None:
    content, dataset = plans(dimensions, patch_size=32), dataset_json()
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    network, configuration = random_network(content, dataset, seed=0), manager.get_configuration("2d" if dimensions == 2 else "3d_fullres")
    predictor.manual_initialization(network, manager, configuration, None, dataset, "any", tuple(range(dimensions)))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32))
    whole = predictor.predict_sliding_window_return_logits(image)
    monkeypatch.setenv("nnUNet_half_accumulation", "1")
    half = predictor.predict_sliding_window_return_logits(image).float()

    same_label = (whole.argmax(0) == half.argmax(0)).float()
    gap = (whole.softmax(0) - half.softmax(0)).abs().amax(0)
    inside = tuple(slice(8, -8) if extent > 8 else slice(None) for extent in size)  # a quarter of a tile away from the image's border
    # float16 has 11 bits: logits of about 1 are right to 1/2000, and only near-ties get another label. Measured: 0.9996 and 0.0012.
    assert same_label[inside].mean() >= 0.999
    assert 0 < gap[inside].max() <= 0.002
    # In the image's corners, which one tile covers with its lowest weight, the smallest float16 there is, logits are rounded to whole
    # numbers: wrong by at most 0.5 each, which moves a probability by at most 0.25. Measured: 0.997 and 0.228 (2D: 0.9999 and 0.005).
    assert same_label.mean() >= 0.995
    assert gap.max() <= 0.25
    assert gap.mean() <= 0.001
    if dimensions == 3:
        assert gap.max() > 0.1  # the corners: float32 is worth its memory


@pytest.mark.parametrize("fails", [False, True])
def test_compiled_networks_predict_the_same_and_a_failing_compiler_is_left_out(joint_model, fails, monkeypatch, capsys) -> None:
    data = torch.randn(1, 20, 16, 16)
    logits, classes = predictor_of(joint_model).predict_logits_and_classes_from_preprocessed_data(data)
    real, compiled = torch.compile, []

    def backend(graph, _inputs):
        compiled.append(graph)
        if fails:
            raise RuntimeError("no C compiler")
        return graph

    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=backend))
    monkeypatch.setenv("nnUNet_compile", "1")
    predictor = predictor_of(joint_model)
    again, classes_again = predictor.predict_logits_and_classes_from_preprocessed_data(data)
    torch.testing.assert_close(again, logits)
    np.testing.assert_allclose(classes_again["subtype"], classes["subtype"], atol=1e-6)
    torch.testing.assert_close(predictor.predict_sliding_window_return_logits(data), logits)  # without the heads
    only = predictor.predict_logits_and_classes_from_preprocessed_data(data, ClassificationOptions(only=True))[1]
    assert only["subtype"].sum() == pytest.approx(1)
    assert compiled
    assert ("torch.compile failed, the prediction goes on without it" in capsys.readouterr().out) == fails


def test_tiles_reach_the_network_contiguous(model) -> None:
    # A compiled network is compiled anew for other strides, and those of a view depend on the size of the image.
    predictor, strides = predictor_of(model, use_mirroring=False), set()
    predictor.network.register_forward_pre_hook(lambda _, inputs: strides.add(inputs[0].stride()))
    for size in (20, 24):
        predictor.predict_sliding_window_return_logits(torch.randn(1, size, size, size))
    assert strides == {(4096, 4096, 256, 16, 1)}


class OneByOne(nnUNetPredictor):
    def _patches_at_once(self) -> int:
        return 1


class InGroups(nnUNetPredictor):
    """Four tiles at a time, and eight patches in a batch of the network, as on a GPU."""

    most = 100  # patches for which there is memory

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes: list[int] = []  # of the network's batches
        self.groups: list[int] = []  # tiles

    def _tiles_at_once(self) -> int:
        return 1 if self._patches_one_by_one else 4

    def _patches_at_once(self) -> int:
        return 1 if self._patches_one_by_one else 8

    def _forward(self, x: torch.Tensor, **parts: bool) -> Any:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super()._forward(x, **parts)

    def _tiles_on_device(self, data: torch.Tensor, group: list) -> torch.Tensor:
        self.groups.append(len(group))
        return super()._tiles_on_device(data, group)


@pytest.mark.parametrize("mirroring", [False, True])
@pytest.mark.parametrize("only", [False, True])
def test_tiles_that_go_through_the_network_together_give_what_each_gives_alone(joint_model, only, mirroring) -> None:
    found = []
    for kind in (OneByOne, InGroups, InGroups):
        predictor = kind(device=CPU, allow_tqdm=False, use_mirroring=mirroring)
        predictor.initialize_from_trained_model_folder(str(joint_model), (0,))
        data = torch.randn(1, 32, 30, 32, generator=torch.Generator().manual_seed(0))
        if len(found) == 2:
            predictor.most = 1  # a device whose memory does not suffice for two
        found.append(predictor.predict_logits_and_classes_from_preprocessed_data(data, ClassificationOptions(only=only)))
        if len(found) == 2:
            copies = 2 if mirroring else 1  # eight patches hold two copies of four tiles; of the nine in a row one is left
            assert max(predictor.sizes) == 4 * copies and set(predictor.groups) == {1, 4}
        elif len(found) == 3:
            assert predictor.sizes[0] > 1 and set(predictor.sizes[1:]) == {1}  # tried once
            assert only or (predictor.groups[0] > 1 and set(predictor.groups[1:]) == {1})  # their logits take memory, too
    for logits, classes in found[1:]:
        assert only or torch.allclose(logits, found[0][0], atol=1e-5)
        np.testing.assert_allclose(classes["subtype"], found[0][1]["subtype"], rtol=1e-5)


def test_how_many_patches_go_through_the_network_together() -> None:
    cases = [
        ("cuda", 160, 1, (), (1, 1)),
        ("cuda", 160, 2, (0, 1, 2), (2, 1)),
        ("cuda", 160, 3, (), (2, 2)),
        ("cuda", 160, 13, (0, 1), (8, 2)),
        ("cuda", 160, 13, (), (8, 8)),
        ("cpu", 160, 2, (), (1, 1)),
        ("cpu", 64, 2, (0, 1, 2), (2, 1)),
        ("cpu", 64, 2, (), (2, 1)),
        ("cpu", 48, 2, (), (2, 2)),
        ("cpu", 16, 2, (), (4, 4)),
        ("cpu", 16, 2, (0,), (4, 2)),
        ("mps", 16, 2, (), (1, 1)),
    ]
    for device, size, batch_size, axes, expected in cases:
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.device, predictor.allowed_mirroring_axes = torch.device(device), axes
        content = plans()
        content["configurations"]["3d_fullres"] |= {"batch_size": batch_size, "patch_size": [size] * 3}
        manager = PlansManager(content)
        predictor.configuration_manager = manager.get_configuration("3d_fullres")
        predictor.label_manager = manager.get_label_manager({"labels": {"background": 0, "a": 1}})
        assert (predictor._patches_at_once(), predictor._tiles_at_once()) == expected, (device, size, batch_size, axes)
    predictor.device = CPU
    predictor.label_manager = manager.get_label_manager({"labels": {"background": 0} | {f"a{label}": label for label in range(1, 1025)}})
    assert predictor._tiles_at_once() == 1  # 64 MiB of logits
    predictor.device, predictor._internal_maybe_mirror_and_predict = torch.device("cuda"), lambda x: x  # a user's own, for single tiles
    assert predictor._tiles_at_once() == 1


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_without_room_on_the_device_a_case_is_predicted_anew_with_results_on_the_cpu(joint_model, message, capsys) -> None:
    class SmallDevice(nnUNetPredictor):
        """Runs out of memory at the second tile, as long as results are collected on the device."""

        message = ""

        def _internal_predict_sliding_window_return_logits(self, data, slicers, do_on_device=True, *classification):
            slicers = self._first_of(slicers) if do_on_device else slicers
            return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device, *classification)

        def _first_of(self, slicers):
            yield slicers[0]
            raise RuntimeError(self.message)

    predictor = SmallDevice(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(joint_model), (0,))
    data = torch.randn(1, 24, 16, 16)
    expected, classes = predictor.predict_logits_and_classes_from_preprocessed_data(data)
    predictor.message, predictor.perform_everything_on_device = message, True  # as on a GPU
    logits, classes_again = predictor.predict_logits_and_classes_from_preprocessed_data(data)
    assert "collected in the CPU's memory" in capsys.readouterr().out
    # Patches go through the network one by one then: sums in another order. A tile that counted twice would differ much more.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(classes_again["subtype"], classes["subtype"], rtol=1e-5)
    predictor.message = "my mistake"
    with pytest.raises(RuntimeError, match="my mistake"):
        predictor.predict_sliding_window_return_logits(data)


def test_resampled_and_cropped_images_come_back_to_their_grid(tmp_path) -> None:
    model = write_model(tmp_path / "model", plans_content=plans(spacing=(1.5, 0.75, 1.0)))
    write_images(tmp_path / "images", number=1, spacing=(1.2, 1.1, 3.0))
    image = sitk.ReadImage(str(tmp_path / "images" / "case_0_0000.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    array[:4] = 0  # is cropped away
    cropped = sitk.GetImageFromArray(array)
    cropped.CopyInformation(image)
    sitk.WriteImage(cropped, str(tmp_path / "images" / "case_0_0000.nii.gz"))
    predictor_of(model).predict_from_files(str(tmp_path / "images"), str(tmp_path / "out"), save_probabilities=True)
    segmentation = read(tmp_path / "out" / "case_0.nii.gz")
    probabilities = np.load(tmp_path / "out" / "case_0.npz")["probabilities"]
    assert segmentation.shape == array.shape == probabilities.shape[1:]
    assert not segmentation[:4].any()
    assert (probabilities[0, :4] == 1).all()
    assert segmentation[4:].any()


def test_two_dimensional_configurations_predict_slice_by_slice(tmp_path) -> None:
    model = write_model(tmp_path / "model", plans_content=plans(dimensions=2))
    predictor = predictor_of(model)
    image = np.random.default_rng(0).normal(size=(1, 3, 20, 17)).astype(np.float32)
    whole = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image))
    single = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image[:, 1:2]))
    torch.testing.assert_close(whole[:, 1:2], single)


def test_regions_are_painted_in_their_order(tmp_path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    model = write_model(tmp_path / "model", dataset=dataset_json(labels, regions_class_order=[1, 2]))
    predictor = predictor_of(model)
    segmentation, probabilities = predictor.predict_single_npy_array(
        np.random.rand(1, 16, 16, 16).astype(np.float32), {"spacing": [1, 1, 1]}, save_or_return_probabilities=True
    )
    expected = np.where(probabilities[1] > 0.5, 2, np.where(probabilities[0] > 0.5, 1, 0))
    np.testing.assert_array_equal(segmentation, expected)
    assert set(np.unique(segmentation)) == {0, 1, 2}


def test_regions_without_probabilities_give_the_same_labels(tmp_path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    predictor = predictor_of(write_model(tmp_path / "model", dataset=dataset_json(labels, regions_class_order=[1, 2])))
    image = np.random.default_rng(0).random((1, 16, 16, 16), dtype=np.float32)
    with_probabilities = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, save_or_return_probabilities=True)[0]
    np.testing.assert_array_equal(predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}), with_probabilities)


def test_a_users_override_of_a_hook_is_used(model) -> None:
    class Constant(nnUNetPredictor):
        def _internal_maybe_mirror_and_predict(self, x):
            logits = torch.zeros(1, 3, *x.shape[2:])
            logits[:, 2] = 1
            return logits

    predictor = Constant(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    assert (predictor.predict_single_npy_array(np.random.rand(1, 16, 16, 16).astype(np.float32), {"spacing": [1, 1, 1]}) == 2).all()


def test_logits_that_are_no_numbers_are_an_error(model) -> None:
    predictor = predictor_of(model)
    with torch.no_grad():
        next(predictor.network.decoder.seg_layers.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        predictor.predict_sliding_window_return_logits(torch.randn(1, 16, 16, 16))


# --- cases that fail, and what is checked first ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_case_that_cannot_be_read_does_not_stop_the_others(joint_model, images, tmp_path, workers, tasks, monkeypatch, capsys) -> None:
    monkeypatch.setattr(predict_from_raw_data, "worthwhile_processes", lambda files, number: number)
    source = shutil.copytree(images, tmp_path / "images")
    (source / "case_1_0000.nii.gz").write_bytes((images / "case_1_0000.nii.gz").read_bytes()[:2000])
    (source / "case_4_0000.nii.gz").write_bytes(b"")
    shutil.copy(source / "case_0_0000.nii.gz", source / "case_2_0001.nii.gz")
    with pytest.raises(CaseErrors) as caught:
        predictor_of(joint_model).predict_from_files(
            str(source), str(tmp_path / "out"), num_processes_preprocessing=workers, save_classification=True
        )
    assert {failure.identifier for failure in caught.value.failures} == {"case_1", "case_2", "case_4"}
    assert "found 2 channels, but the model was trained on 1" in str(caught.value)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.nii.gz")) == ["case_0.nii.gz"]
    lines = (tmp_path / "out" / "classification.csv").read_text().splitlines()
    assert lines[0].endswith(",error")
    assert lines[2].startswith("case_1,,,")
    assert set(read_classification_csv(tmp_path / "out" / "classification.csv", tasks)) == {"case_0"}


def test_nnunets_iterators_and_adapters_preprocess_like_the_predictor(model, images) -> None:
    predictor = predictor_of(model)
    files = [[str(images / f"case_{index}_0000.nii.gz")] for index in range(3)]
    arrays, properties = zip(*(SimpleITKIO().read_images(channels) for channels in files), strict=True)
    outputs = ["out_0", "out_1", "out_2"]
    settings = (predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager)
    preprocessor = predictor.configuration_manager.preprocessor_class()
    ways = [
        data_iterators.preprocessing_iterator_fromfiles(files, None, outputs, *settings, 0),
        data_iterators.preprocessing_iterator_fromnpy(arrays, None, properties, outputs, *settings, 2),
        data_iterators.PreprocessAdapter(files, None, preprocessor, outputs, *settings),
        data_iterators.PreprocessAdapterFromNpy(arrays, None, properties, outputs, *settings),
    ]
    expected = [predictor._preprocess_array(image, values, None) for image, values in zip(arrays, properties, strict=True)]
    for way in ways:
        items = list(way)
        assert [item["ofile"] for item in items] == outputs
        for item, (data, case_properties) in zip(items, expected, strict=True):
            assert torch.equal(item["data"], data)
            assert item["data_properties"]["bbox_used_for_cropping"] == case_properties["bbox_used_for_cropping"]


def test_nnunets_iterators_raise_for_unreadable_cases_after_the_others(model, images, tmp_path) -> None:
    predictor = predictor_of(model)
    (tmp_path / "bad_0000.nii.gz").write_bytes(b"broken")
    files = [[str(tmp_path / "bad_0000.nii.gz")], [str(images / "case_0_0000.nii.gz")]]
    iterator = data_iterators.preprocessing_iterator_fromfiles(
        files, None, None, predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager, 0
    )
    assert next(iterator)["data"].shape[0] == 1
    with pytest.raises(CaseErrors, match="1 of 2 cases failed"):
        next(iterator)


def test_a_worker_that_dies_loses_its_case_only(model, images, tmp_path, monkeypatch) -> None:
    source = shutil.copytree(images, tmp_path / "images")
    predictor = predictor_of(model)
    cases = data_iterators.cases_from_files([[str(source / f"case_{i}_0000.nii.gz")] for i in range(3)], None, None, ".nii.gz")
    settings = predictor._preprocessing_settings()
    killed = []
    start_case = data_iterators._Worker.start_case

    def start_and_kill(self, case):
        start_case(self, case)
        if case.identifier == "case_0" and not killed:
            killed.append(self._process.pid)
            self._process.kill()

    monkeypatch.setattr(data_iterators._Worker, "start_case", start_and_kill)
    items = list(data_iterators.preprocessed_cases(cases, settings, 1))
    assert [item["identifier"] for item in items] == ["case_0", "case_1", "case_2"]
    assert "signal 9, SIGKILL: most likely memory ran out" in str(items[0]["failure"])
    assert all(item["data"].shape == (1, 20, 22, 18) for item in items[1:])


@pytest.mark.parametrize("step", ["_internal_predict_sliding_window_return_logits", "_add_tiles", "_finish"])
def test_a_failed_case_gives_its_memory_back(model, images, step, monkeypatch) -> None:
    # On a GPU the tensors of one case that did not fit would leave no room for the next one.
    failed: list[weakref.ref] = []

    def fail(values, *_, **__) -> None:
        if failed:
            assert failed[0]() is None, "the first case is still in memory"
        failed.append(weakref.ref(values))
        raise RuntimeError("it does not fit")

    predictor = predictor_of(model)
    monkeypatch.setattr(predictor, step, fail)
    with pytest.raises(CaseErrors, match="3 of 3 cases failed") as caught:
        predictor.predict_from_files_sequential(str(images), None)
    assert len(failed) == 3
    assert ", in fail" in str(caught.value.__cause__.__cause__)  # where it happened, as text


def test_output_between_the_images_is_refused(model, images) -> None:
    before = sorted(images.iterdir())
    with pytest.raises(ValueError, match="same folder"):
        predictor_of(model).predict_from_files(str(images), str(images))
    assert sorted(images.iterdir()) == before


def test_a_folder_without_images_says_what_was_expected(model, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case.nii.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"CASE_0000\.nii\.gz"):
        predictor_of(model).predict_from_files(str(tmp_path / "images"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part_id", "num_parts"), [(2, 2), (-1, 2), (0, 0)])
def test_parts_are_counted_from_zero(model, images, part_id, num_parts) -> None:
    with pytest.raises(ValueError, match="parts are counted from 0"):
        predictor_of(model).predict_from_files(str(images), None, part_id=part_id, num_parts=num_parts)


def test_missing_checkpoints_are_listed_with_what_is_there(model) -> None:
    with pytest.raises(FileNotFoundError, match=r"fold_3/checkpoint_final\.pth.*There is: fold_0/checkpoint_final\.pth"):
        nnUNetPredictor(device=CPU).initialize_from_trained_model_folder(str(model), (0, 3))


def test_folds_are_found(model) -> None:
    predictor = nnUNetPredictor(device=CPU)
    assert predictor.auto_detect_available_folds(str(model), "checkpoint_final.pth") == [0, 1]
    predictor.initialize_from_trained_model_folder(str(model), None)
    assert len(predictor.list_of_parameters) == 2


def test_a_truncated_checkpoint_is_named(model, tmp_path) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    file = broken / "fold_1" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="fold_1"):
        nnUNetPredictor(device=CPU).initialize_from_trained_model_folder(str(broken), (0, 1))


class _Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_not_executed(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = shutil.copytree(model, tmp_path / "model")
    file = hostile / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=True) | {"logging": _Exploit()}, file, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="refused"):
        nnUNetPredictor(device=CPU).initialize_from_trained_model_folder(str(hostile), (0,))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("entries", "aspect"),
    [
        ({"trainer_name": "nnUNetTrainerDA5"}, "trainer: fold_0 nnUNetTrainer; fold_1 nnUNetTrainerDA5"),
        ({"inference_allowed_mirroring_axes": (0,)}, "mirroring axes"),
        ({"init_args": {"configuration": "2d"}}, "configuration: fold_0 3d_fullres; fold_1 2d"),
    ],
)
def test_folds_of_different_trainings_are_refused(model, tmp_path, entries, aspect) -> None:
    mixed = shutil.copytree(model, tmp_path / "model")
    file = mixed / "fold_1" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=True) | entries, file)
    with pytest.raises(ValueError, match=aspect):
        nnUNetPredictor(device=CPU).initialize_from_trained_model_folder(str(mixed), (0, 1))


def test_folds_whose_decision_trees_are_of_different_sizes_are_averaged(tmp_path) -> None:
    folder = write_model(tmp_path / "model", folds=(0, 1), classification=True, level="case", morphometry=True, trees=5)
    nodes = [
        torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth")["network_weights"]["classification_heads.task_subtype.trees.feature"].shape[1]
        for fold in (0, 1)
    ]
    assert nodes[0] != nodes[1]
    data = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for folds in ((0,), (1,), (0, 1)):
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, use_mirroring=False)
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        found.append(predictor.predict_logits_and_classes_from_preprocessed_data(data)[1])
    for task, together in found[2].items():
        np.testing.assert_allclose(together, (found[0][task] + found[1][task]) / 2, atol=1e-7)
        assert np.abs(found[0][task] - found[1][task]).max() > 1e-3


def test_a_trainer_that_is_not_installed_predicts_with_a_warning(model, tmp_path) -> None:
    foreign = shutil.copytree(model, tmp_path / "model")
    file = foreign / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=True) | {"trainer_name": "nnUNetTrainerOfSomebodyElse"}, file)
    with pytest.warns(UserWarning, match="nnUNetTrainerOfSomebodyElse"):
        predictor = predictor_of(foreign)
    image = np.random.rand(1, 16, 16, 16).astype(np.float32)
    expected = predictor_of(model).predict_single_npy_array(image, {"spacing": [1, 1, 1]})
    np.testing.assert_array_equal(predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}), expected)


def test_weights_of_another_network_are_refused(model, tmp_path) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    file = other / "plans.json"
    file.write_text(file.read_text().replace("[4, 8]", "[4, 16]"))
    with pytest.raises(ValueError, match="do not fit"):
        predictor_of(other)


# --- continuing and parts --------------------------------------------------------------------------------------------------------


def test_continuing_predicts_what_is_missing_or_broken_only(model, images, tmp_path) -> None:
    out = tmp_path / "out"
    predictor = predictor_of(model)
    predictor.predict_from_files(str(images), str(out), save_probabilities=True)
    complete = (out / "case_0.nii.gz").read_bytes()
    times = {i: (out / f"case_{i}.nii.gz").stat().st_mtime_ns for i in range(3)}
    content = (out / "case_1.nii.gz").read_bytes()
    (out / "case_1.nii.gz").write_bytes(content[: len(content) // 2])
    archive = (out / "case_2.npz").read_bytes()
    (out / "case_2.npz").write_bytes(archive[:-200])
    assert predictor.predict_from_files(str(images), str(out), save_probabilities=True, overwrite=False) == [None, None]
    assert (out / "case_0.nii.gz").stat().st_mtime_ns == times[0]
    assert gzip.decompress((out / "case_1.nii.gz").read_bytes())
    assert np.load(out / "case_2.npz")["probabilities"].shape == (3, 20, 22, 18)
    assert (out / "case_0.nii.gz").read_bytes() == complete
    assert predictor.predict_from_files(str(images), str(out), save_probabilities=True, overwrite=False) is None


def test_continuing_completes_missing_rows_of_the_table(joint_model, images, tmp_path, tasks) -> None:
    out = tmp_path / "out"
    predictor = predictor_of(joint_model)
    predictor.predict_from_files(str(images), str(out), save_classification=True)
    file = out / "classification.csv"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1], lines[3]]))
    assert predictor.predict_from_files(str(images), str(out), overwrite=False, save_classification=True) == [None]
    assert file.read_text() == whole


def test_parts_together_give_the_whole_table(joint_model, images, tmp_path) -> None:
    predictor = predictor_of(joint_model)
    predictor.predict_from_files(str(images), str(tmp_path / "whole"), save_classification=True)
    out = tmp_path / "parts"
    predictor.predict_from_files(str(images), str(out), save_classification=True, num_parts=2, part_id=1)
    assert not (out / "classification.csv").exists()
    assert len(list(out.glob("*.nii.gz"))) == 1
    predictor.predict_from_files(str(images), str(out), save_classification=True, num_parts=2, part_id=0)
    assert part_file(out / "classification.csv", 0).is_file()
    assert (out / "classification.csv").read_text() == (tmp_path / "whole" / "classification.csv").read_text()
    assert len(list(out.glob("*.nii.gz"))) == 3


def test_tables_of_an_earlier_run_do_not_pass_for_this_ones(joint_model, images, tmp_path) -> None:
    predictor, out = predictor_of(joint_model), tmp_path / "out"
    for part in (0, 1):
        predictor.predict_from_files(str(images), str(out), save_classification=True, num_parts=2, part_id=part)
    (out / "classification_part1.csv").unlink()
    predictor.predict_from_files(str(images), str(out), save_classification=True, num_parts=2, part_id=0)
    assert not (out / "classification.csv").exists()


def test_continuing_a_part_takes_its_own_rows_before_those_of_the_whole_table(joint_model, images, tmp_path, tasks) -> None:
    predictor, out = predictor_of(joint_model), tmp_path / "out"
    predictor.predict_from_files(str(images), str(out), save_classification=True, num_parts=2, part_id=1)
    own = (out / "classification_part1.csv").read_text()
    rows = read_classification_csv(out / "classification_part1.csv", tasks)
    older = {name: {task: np.full_like(values, 0.5) for task, values in row.items()} for name, row in rows.items()}
    write_classification_csv(out / "classification.csv", tasks, older)
    assert predictor.predict_from_files(str(images), str(out), overwrite=False, save_classification=True, num_parts=2, part_id=1) is None
    assert (out / "classification_part1.csv").read_text() == own


def test_a_users_own_lists_of_cases_are_used(model, images, tmp_path) -> None:
    class LastCaseOnly(nnUNetPredictor):
        def _manage_input_and_output_lists(self, *args, **kwargs):
            lists, outputs, previous = super()._manage_input_and_output_lists(*args, **kwargs)
            return lists[-1:], outputs[-1:], previous

    predictor = LastCaseOnly(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    predictor.predict_from_files(images, tmp_path / "out")  # paths are as good as text
    assert [file.name for file in (tmp_path / "out").glob("*.nii.gz")] == ["case_2.nii.gz"]


# --- classes ---------------------------------------------------------------------------------------------------------------------


def test_classes_come_with_the_segmentations_and_change_nothing_about_them(joint_model, images, tmp_path, tasks) -> None:
    predictor = predictor_of(joint_model, (0, 1))
    predictor.predict_from_files(str(images), str(tmp_path / "plain"))
    predictor.predict_from_files(str(images), str(tmp_path / "out"), save_probabilities=True, save_classification=True)
    assert not (tmp_path / "plain" / "classification.csv").exists()
    table = read_classification_csv(tmp_path / "out" / "classification.csv", tasks)
    assert list(table) == ["case_0", "case_1", "case_2"]
    assert list(tasks) == list(CLASSIFICATION)
    for index, (identifier, row) in enumerate(table.items()):
        np.testing.assert_array_equal(read(tmp_path / "plain" / f"{identifier}.nii.gz"), read(tmp_path / "out" / f"{identifier}.nii.gz"))
        assert row["subtype"].sum() == pytest.approx(1)
        assert row["grade"].sum() == pytest.approx(1)
        stored = np.load(tmp_path / "out" / f"{identifier}.npz")
        np.testing.assert_allclose(stored["classification_subtype"], row["subtype"], atol=1e-6)
        image, properties = SimpleITKIO().read_images([str(images / f"case_{index}_0000.nii.gz")])
        case = predictor.predict_case(image, properties)
        assert list(case.classification["grade"].probabilities.values()) == pytest.approx(row["grade"].tolist())
        assert case.classification["subtype"].label == "abc"[row["subtype"].argmax()]
        assert case.probabilities.shape == (3, *case.segmentation.shape)


def test_folds_vote_equally_for_the_class(joint_model, images, tmp_path, tasks) -> None:
    tables = []
    for folds in ((0,), (1,), (0, 1)):
        file = tmp_path / f"{len(tables)}.csv"
        predictor_of(joint_model, folds).predict_from_files(str(images), None, save_classification=file)
        tables.append(read_classification_csv(file, tasks))
    for identifier in tables[0]:
        for name in tasks:
            mean = (tables[0][identifier][name] + tables[1][identifier][name]) / 2
            np.testing.assert_allclose(tables[2][identifier][name], mean, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["evidence", "mean"])
def test_every_tile_and_mirrored_copy_votes_for_the_class(joint_model, tasks, aggregation) -> None:
    predictor = predictor_of(joint_model, (0,))
    data = torch.randn(1, 24, 16, 30, generator=torch.Generator().manual_seed(0))
    data[:, :12, :, 20:] *= 5
    data[:, 12:] += torch.linspace(0, 20, 30)
    _, classes = predictor.predict_logits_and_classes_from_preprocessed_data(data, ClassificationOptions(aggregation=aggregation))
    tile_weights = compute_gaussian((16, 16, 16), 1.0 / 8, 10, torch.float32, CPU)
    axes = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
    votes, masses = [], []
    for x, z in itertools.product((0, 8), (0, 7, 14)):
        tile = data[None, :, x : x + 16, :, z : z + 16]
        with torch.no_grad():
            outputs = [predictor.network(torch.flip(tile, flipped)) for flipped in axes]
        votes.append(torch.cat([output.classification["subtype"].softmax(1) for output in outputs]).mean(0).double().numpy())
        segmentation = sum(torch.flip(output.segmentation, flipped) for output, flipped in zip(outputs, axes)) / 8
        lesion = segmentation.softmax(1)[0, 2]
        masses.append(float((lesion * tile_weights).sum()) if aggregation == "evidence" else 1.0)
    assert np.ptp(votes, axis=0).max() > 0.01  # tiles disagree, so that leaving one out shows
    np.testing.assert_allclose(classes["subtype"], np.average(votes, axis=0, weights=masses), atol=1e-5)


def test_arrays_are_predicted_like_files_by_several_folds_with_heads(joint_model, images, tmp_path, tasks) -> None:
    predictor = predictor_of(joint_model, (0, 1), use_mirroring=False)
    files = [[str(images / f"case_{i}_0000.nii.gz")] for i in range(2)]
    arrays, properties = zip(*[SimpleITKIO().read_images(f) for f in files])
    expected = predictor.predict_from_files(files, None, save_classification=tmp_path / "table.csv")
    rows = list(read_classification_csv(tmp_path / "table.csv", tasks).values())
    several = predictor.predict_from_list_of_npy_arrays(list(arrays), None, list(properties), None)
    for index, (array, entry) in enumerate(zip(arrays, properties)):
        case = predictor.predict_case(array, entry, return_probabilities=False)
        for segmentation in (several[index], predictor.predict_single_npy_array(array, entry), case.segmentation):
            np.testing.assert_array_equal(segmentation, expected[index])
        for name, prediction in case.classification.items():
            np.testing.assert_allclose(list(prediction.probabilities.values()), rows[index][name], atol=1e-6)


def test_names_and_tables_beside_the_images_decide_no_class(joint_model, images, tmp_path, tasks) -> None:
    source = tmp_path / "images"
    source.mkdir()
    names = ["a", "subtype_b", "c_3", "x;y", "G1", "0"]
    for name in names:
        shutil.copy(images / "case_0_0000.nii.gz", source / f"{name}_0000.nii.gz")
    rows = "".join(f"{name},{'abc'[i % 3]},none,G{i % 3 + 1}\n" for i, name in enumerate(names))
    for folder in (source, tmp_path):
        (folder / "labels.csv").write_text("identifier,subtype,findings,grade\n" + rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table is passed over
        predictor_of(joint_model, use_mirroring=False).predict_from_files(str(source), str(tmp_path / "out"), save_classification=True)
    table = read_classification_csv(tmp_path / "out" / "classification.csv", tasks)
    assert set(table) == set(names)
    for row in table.values():
        for name in tasks:
            np.testing.assert_array_equal(row[name], table["a"][name])
            assert 0 < row[name].min() and row[name].max() < 1


def test_one_tile_without_mirroring_gives_the_heads_own_probabilities(joint_model) -> None:
    predictor = predictor_of(joint_model, (0,), use_mirroring=False)
    data = torch.randn(1, 16, 16, 16)
    logits, classes = predictor.predict_logits_and_classes_from_preprocessed_data(data)
    with torch.no_grad():
        output = predictor.network(data[None])
    torch.testing.assert_close(logits, output.segmentation[0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(classes["subtype"], output.classification["subtype"].softmax(1)[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(classes["findings"], output.classification["findings"].sigmoid()[0].numpy(), atol=1e-6)


def test_classes_alone_write_no_segmentations_and_agree_with_the_mean(joint_model, images, tmp_path, tasks) -> None:
    predictor = predictor_of(joint_model)
    predictor.predict_from_files(
        str(images), str(tmp_path / "both"), save_classification=True, classification_options=ClassificationOptions(aggregation="mean")
    )
    predictor.predict_from_files(
        str(images), str(tmp_path / "only"), save_classification=True, classification_options=ClassificationOptions(only=True)
    )
    assert not list((tmp_path / "only").glob("*.nii.gz"))
    both, only = (read_classification_csv(tmp_path / name / "classification.csv", tasks) for name in ("both", "only"))
    for identifier in both:
        np.testing.assert_allclose(both[identifier]["subtype"], only[identifier]["subtype"], atol=1e-6)


@pytest.mark.parametrize("level", ["patch", "case"])
@pytest.mark.parametrize("pooling", ["mean_max", "attention"])
def test_for_classes_alone_the_decoder_is_not_run(pooling, level, images, tmp_path) -> None:
    model = write_model(tmp_path / "model", classification=True, pooling=pooling, level=level)
    predictor, runs = predictor_of(model), {"encoder": 0, "decoder": 0}
    for part in runs:

        def count(*_: object, part: str = part) -> None:
            runs[part] += 1

        getattr(predictor.network, part).register_forward_pre_hook(count)
    predictor.predict_from_files_sequential(
        str(images), str(tmp_path / "out"), save_classification=True, classification_options=ClassificationOptions(only=True)
    )
    assert runs["decoder"] == 0 < runs["encoder"]
    written = {"classification.csv", "dataset.json", "plans.json", "predict_from_raw_data_args.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == written
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "both"), save_classification=True)
    assert runs["decoder"] > 0


@pytest.mark.parametrize(
    ("pooling", "level", "morphometry"), [("evidence", "patch", False), ("evidence", "case", False), ("mean_max", "case", True)]
)
def test_heads_that_look_at_the_segmentation_are_not_used_without_it(pooling, level, morphometry, images, tmp_path) -> None:
    model = write_model(tmp_path / "model", classification=True, pooling=pooling, level=level, morphometry=morphometry)
    predictor = predictor_of(model)
    with pytest.raises(ValueError, match="subtype, findings, grade look at the predicted segmentation.*--cls_only"):
        predictor.predict_from_files(
            str(images), str(tmp_path / "out"), save_classification=True, classification_options=ClassificationOptions(only=True)
        )
    assert not (tmp_path / "out").exists()
    predictor.predict_from_files_sequential(str(images), str(tmp_path / "out"), save_classification=True)
    assert (tmp_path / "out" / "classification.csv").is_file()


@pytest.fixture
def calibrated_model(joint_model, tasks, tmp_path) -> Path:
    """A copy of the model whose probabilities become flatter."""
    folder = shutil.copytree(joint_model, tmp_path / "calibrated")
    flatter = {
        name: TaskCalibration(task_type=t.type, classes=t.classes, temperatures=(2.0,) * t.num_logits, offsets=(0.0,) * t.num_logits)
        for name, t in tasks.items()
    }
    calibration = ClassCalibration(method="temperature", heads="joint", aggregation="evidence", tasks=flatter)
    calibration.save(folder / "classification_calibration.json")
    return folder


def test_a_calibration_in_the_model_folder_is_applied(joint_model, calibrated_model, images, tmp_path, tasks) -> None:
    predictor_of(joint_model).predict_from_files(str(images), str(tmp_path / "raw"), save_classification=True)
    predictor = predictor_of(calibrated_model)
    predictor.predict_from_files(str(images), str(tmp_path / "out"), save_classification=True, save_probabilities=True)
    file = tmp_path / "out" / "classification.csv"
    plain = read_classification_csv(tmp_path / "raw" / "classification.csv", tasks)
    raw, calibrated = read_classification_csv(file, tasks, raw=True), read_classification_csv(file, tasks)
    array, properties = SimpleITKIO().read_images([str(images / "case_1_0000.nii.gz")])
    single = predictor.predict_case(array, properties).classification
    for name in tasks:
        np.testing.assert_array_equal(raw["case_1"][name], plain["case_1"][name])
        np.testing.assert_array_equal(calibrated["case_1"][name], predictor.calibration.tasks[name].apply(plain["case_1"][name]))
        assert np.abs(calibrated["case_1"][name] - plain["case_1"][name]).max() > 1e-3
        stored = np.load(tmp_path / "out" / "case_1.npz")[f"classification_{name}"]
        np.testing.assert_allclose(stored, calibrated["case_1"][name], atol=1e-6)
        np.testing.assert_allclose(list(single[name].probabilities.values()), calibrated["case_1"][name], atol=1e-6)

    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    (tmp_path / "out" / "case_2.nii.gz").unlink()
    predictor.predict_from_files(
        str(images), str(tmp_path / "out"), save_classification=True, save_probabilities=True, overwrite=False
    )
    assert file.read_text() == whole  # rows of before are not calibrated a second time


def test_the_calibration_is_left_out_on_demand_and_for_other_ways_of_predicting(calibrated_model, images, tmp_path, tasks, capsys) -> None:
    predictor = predictor_of(calibrated_model)
    for index, options in enumerate((ClassificationOptions(calibrated=False), ClassificationOptions(aggregation="max"))):
        out = tmp_path / str(index)
        predictor.predict_from_files(str(images), str(out), save_classification=True, classification_options=options)
        assert "raw_probability" not in (out / "classification.csv").read_text()
        printed = capsys.readouterr().out
        assert ("it is not applied to 'joint' and 'max'" in printed) == (index == 1)


def test_the_calibration_of_another_checkpoint_is_not_applied(calibrated_model, images, tmp_path, tasks, capsys) -> None:
    for fold in calibrated_model.glob("fold_*"):
        shutil.copy(fold / "checkpoint_final.pth", fold / "checkpoint_best.pth")
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(calibrated_model), (0,), "checkpoint_best.pth")
    predictor.predict_from_files(str(images), str(tmp_path / "out"), save_classification=True)
    assert "raw_probability" not in (tmp_path / "out" / "classification.csv").read_text()
    assert "fitted on predictions of checkpoint_final.pth; it is not applied to those of checkpoint_best.pth" in capsys.readouterr().out


def test_a_calibration_for_other_classes_is_refused(calibrated_model) -> None:
    file = calibrated_model / "classification_calibration.json"
    file.write_text(file.read_text().replace('"G1"', '"G0"'))
    with pytest.raises(ValueError, match="other classes than the model's: grade"):
        predictor_of(calibrated_model)


def test_without_save_cls_the_heads_are_not_run(joint_model) -> None:
    predictor = predictor_of(joint_model)

    def fail(*_: object) -> None:
        raise AssertionError("a head was run")

    for head in predictor.network.heads.values():
        head.register_forward_pre_hook(fail)
    predictor.predict_sliding_window_return_logits(torch.randn(1, 16, 16, 16))
    with pytest.raises(AssertionError, match="a head was run"):
        predictor.predict_logits_and_classes_from_preprocessed_data(torch.randn(1, 16, 16, 16))


def test_a_model_without_heads_refuses_before_anything_is_predicted(model, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="no classification heads"):
        predictor_of(model).predict_from_files(str(images), str(tmp_path / "out"), save_classification=True)
    assert not (tmp_path / "out").exists()


def test_a_network_initialized_by_hand_describes_its_own_heads() -> None:
    content, dataset = plans(), dataset_json()
    network = random_network(content, dataset, seed=0, classification=True)
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.manual_initialization(network, manager, manager.get_configuration("3d_fullres"), None, dataset, "any", None)
    assert list(predictor.classification_tasks) == list(CLASSIFICATION)
    network.train()
    predictor.predict_logits_and_classes_from_preprocessed_data(torch.randn(1, 16, 16, 16))
    assert not any(parameter.is_inference() for parameter in network.parameters())


def test_arguments_are_written_beside_the_predictions(model, images, tmp_path) -> None:
    predictor_of(model).predict_from_files(str(images), str(tmp_path / "out"), num_parts=2, part_id=1)
    arguments = json.loads((tmp_path / "out" / "predict_from_raw_data_args.json").read_text())
    assert list(arguments) == sorted(arguments)
    assert (arguments["num_parts"], arguments["part_id"], arguments["overwrite"]) == (2, 1, True)
    assert json.loads((tmp_path / "out" / "plans.json").read_text()) == json.loads((model / "plans.json").read_text())


def test_workers_do_without_torch(model, images, tmp_path) -> None:
    """What a worker gets and does, in a process of its own."""
    predictor = predictor_of(model)
    case = data_iterators.cases_from_files([[str(images / "case_0_0000.nii.gz")]], None, None, ".nii.gz")[0]
    (tmp_path / "task.pkl").write_bytes(pickle.dumps((case, predictor._preprocessing_settings())))
    code = (
        "import pickle\nfrom nnunetv2.inference.data_iterators import preprocess_input_case\n"
        f"data, _ = preprocess_input_case(*pickle.load(open({str(tmp_path / 'task.pkl')!r}, 'rb')))\n"
        "assert data.shape == (1, 20, 22, 18)"
    )
    assert loaded_by(code, ["torch"]) == []


def test_the_second_stage_of_a_cascade_sees_the_first(tmp_path, images) -> None:
    content = plans()
    content["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.clone()

    predictor.manual_initialization(Recorder(), manager, manager.get_configuration("3d_fullres"), None, dataset_json(), "any", None)
    previous = np.zeros((16, 16, 16), np.uint8)
    previous[:4], previous[4:8] = 1, 2
    image = np.random.default_rng(0).random((1, 16, 16, 16), dtype=np.float32) + 1
    predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, segmentation_previous_stage=previous)
    assert seen[0].shape == (1, 3, 16, 16, 16)
    np.testing.assert_array_equal(seen[0][0, 1:].numpy(), np.stack([previous == 1, previous == 2]))
    with pytest.raises(ValueError, match="second stage of a cascade"):
        predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]})
    with pytest.raises(FileNotFoundError, match="previous stage"):
        predictor.predict_from_files(str(images), None, folder_with_segs_from_prev_stage=str(tmp_path))
