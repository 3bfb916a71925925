"""Cases that are read ahead and written beside the network fit into memory; the user's own numbers are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import plans, write_images

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

    def need(heads: int, spacing=(1.0, 1.0, 1.0), with_probabilities: bool = False, order: int = 1) -> PredictionNeed:
        content = plans(spacing=spacing)
        content["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"]["order"] = order
        manager = PlansManager(content)
        return largest_need(images, manager, manager.get_configuration("3d_fullres"), heads, with_probabilities)

    voxels = 20 * 22 * 18
    assert need(3).result == 4 * 3 * voxels
    assert need(3, (0.5, 0.5, 0.5)).result == 4 * 3 * 8 * voxels
    assert need(30, with_probabilities=True).writing > need(30).writing > need(3).writing

    def export(heads: int, **options) -> int:
        return need(heads, **options).writing - need(heads, **options).result

    # block by block the number of classes does not count; cubic splines take whole channels, and for probabilities all of them
    assert export(30) == export(3) < export(30, with_probabilities=True) == export(3, with_probabilities=True)
    assert export(30, order=3) == export(3, order=3) > 4 * export(3)
    assert export(30, order=3, with_probabilities=True) > 30 * 8 * voxels
