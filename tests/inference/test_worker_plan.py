"""Cases that are read ahead and written beside the network fit into memory; the user's own numbers are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import dataset_json, plans, random_network, write_images

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.slab_prediction import slab_labels
from nnunetv2.inference.worker_plan import PredictionNeed, largest_need, plan_prediction_workers
from nnunetv2.utilities.machine import UsableMemory
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.worker_numbers import USABLE_SHARE

GB = 1000**3
NEED = PredictionNeed("case_large", reading=GB, result=GB, writing=2 * GB)


def memory_for(reading: int, writing: int) -> UsableMemory:
    return UsableMemory(int(NEED.total(reading, writing) / USABLE_SHARE) + 1, "this machine")


def numbers(memory: UsableMemory, reading: int | None = None, writing: int | None = None, cases: int = 10, cpus: int = 16):
    workers = plan_prediction_workers(NEED, cases, reading, writing, cpus=cpus, memory=memory)
    return workers.reading, workers.writing


@pytest.mark.parametrize("fitting", [(3, 3), (3, 2), (2, 1), (1, 1)])
def test_as_many_as_fit_up_to_three_each(fitting) -> None:
    assert numbers(memory_for(*fitting)) == fitting


def test_cpus_and_cases_limit_the_numbers() -> None:
    assert numbers(memory_for(9, 9), cpus=2) == (2, 2)
    assert numbers(memory_for(9, 9), cases=1) == (1, 1)


def test_numbers_that_were_given_are_kept_with_a_warning() -> None:
    assert numbers(memory_for(1, 1), reading=5, writing=4) == (5, 4)
    assert numbers(memory_for(0, 1), reading=0) == (0, 1)
    assert "WARNING" in plan_prediction_workers(NEED, 10, 5, 4, cpus=16, memory=memory_for(1, 1)).message
    assert plan_prediction_workers(NEED, 10, 5, 4, cpus=16, memory=memory_for(5, 4)).message == ""
    said = plan_prediction_workers(NEED, 10, None, None, cpus=16, memory=memory_for(3, 2)).message
    assert "3 cases at most are read ahead and 2 written" in said and "case_large" in said


def test_need_grows_with_classes_finer_spacing_and_probabilities(tmp_path: Path) -> None:
    write_images(tmp_path, number=1)
    images = {"case_0": [str(tmp_path / "case_0_0000.nii.gz")]}

    def need(heads: int, spacing=(1.0, 1.0, 1.0), with_probabilities: bool = False, order: int = 1, folds: int = 1) -> PredictionNeed:
        content = plans(spacing=spacing)
        content["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"]["order"] = order
        manager = PlansManager(content)
        return largest_need(images, manager, manager.get_configuration("3d_fullres"), heads, with_probabilities, folds=folds)

    voxels = 20 * 22 * 18
    logits = 4 * 3 * voxels
    assert need(3).result == logits
    assert need(3, (0.5, 0.5, 0.5)).result == 8 * logits
    assert need(3, folds=2).result == need(3, folds=5).result == 2 * logits  # of one fold, and the sum
    assert need(30, with_probabilities=True).writing > need(30).writing > need(3).writing

    def export(heads: int, **options) -> int:
        return need(heads, **options).writing - need(heads, **options).result

    # block by block the number of classes does not count; cubic splines take whole channels, and for probabilities all of them
    assert export(30) == export(3) < export(30, with_probabilities=True) == export(3, with_probabilities=True)
    assert export(30, order=3) == export(3, order=3) > 4 * export(3)
    assert export(30, order=3, with_probabilities=True) > 30 * 8 * voxels


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.8, 1.5)])
@pytest.mark.parametrize("dimensions", [3, 2])
@pytest.mark.parametrize("folds", [1, 2, 3])
def test_logits_of_slabs_are_counted_as_they_are_held(tmp_path: Path, spacing, dimensions: int, folds: int) -> None:
    write_images(tmp_path, number=1, size=(90, 20, 24))
    images = {"case_0": [str(tmp_path / "case_0_0000.nii.gz")]}
    content = plans(dimensions, spacing)
    manager = PlansManager(content)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    dataset, configuration = dataset_json(), manager.get_configuration("2d" if dimensions == 2 else "3d_fullres")
    networks = [random_network(content, dataset, seed=fold) for fold in range(folds)]
    parameters = [network.state_dict() for network in networks]
    predictor.manual_initialization(networks[0], manager, configuration, parameters, dataset, "any", None)
    data, properties = predictor._preprocess_array(*SimpleITKIO().read_images(images["case_0"]), None)

    labels = slab_labels(predictor, data, data, tuple(slice(0, n) for n in data.shape), properties)
    held = sum(sums._sums.logits.nbytes + sums._sums.weights.nbytes for sums in labels.accumulators) + 5 * 90 * 20 * 24
    need = largest_need(images, manager, configuration, 3, folds=folds, in_slabs=True)
    assert held <= need.result <= 1.4 * held + 20000
    assert need.writing == 5 * 90 * 20 * 24  # labels
    with_maps = largest_need(images, manager, configuration, 3, folds=folds, in_slabs=True, with_maps=True)
    assert with_maps.result - need.result == pytest.approx(2 * folds * data[0].numel(), rel=0.1)
    whole = largest_need(images, manager, configuration, 3, folds=folds)
    assert need.total(1, 1) < whole.total(1, 1)


def test_slabs_count_only_where_they_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path, number=1, size=(34, 20, 24))
    images = {"case_0": [str(tmp_path / "case_0_0000.nii.gz")]}

    def saves(patch_size: int = 16, order: int = 1, folds: int = 1, **entries) -> bool:
        content = plans(patch_size=patch_size) | entries
        content["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"]["order"] = order
        manager = PlansManager(content)
        arguments = (images, manager, manager.get_configuration("3d_fullres"), 3)
        return largest_need(*arguments, folds=folds, in_slabs=True).total(1, 1) < largest_need(*arguments, folds=folds).total(1, 1)

    assert saves()
    assert not saves(patch_size=32)  # hardly less than the image
    assert not saves(folds=4)
    assert not saves(order=3)  # cubic splines need whole channels
    assert not saves(transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2])  # along an axis of 20 rows
