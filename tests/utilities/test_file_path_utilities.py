"""Names of result folders; expected values recorded from nnU-Net 2.8.1."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2.utilities import file_path_utilities as paths

MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def test_output_folders(nnunet_folders: dict[str, Path]) -> None:
    root = nnunet_folders["results"]
    assert paths.get_output_folder("Dataset001_A") == str(root / "Dataset001_A" / MODEL)
    assert paths.get_output_folder("Dataset001_A", "T", "P", "2d", fold="all") == str(root / "Dataset001_A" / "T__P__2d" / "fold_all")
    assert paths.get_output_folder("Dataset001_A", fold=0).endswith("fold_0")


@pytest.mark.parametrize("tail", ["", "/fold_0", "/fold_all/validation", "/"])
def test_a_path_below_a_model_folder_is_parsed(tail: str) -> None:
    expected = ("Dataset001_A", "nnUNetTrainer", "nnUNetPlans", "3d_fullres")
    assert paths.parse_dataset_trainer_plans_configuration_from_path(f"/results/Dataset001_A/{MODEL}{tail}") == expected


def test_a_path_without_model_folder_says_nothing() -> None:
    assert paths.parse_dataset_trainer_plans_configuration_from_path("/tmp/Dataset001_A/foo") is None


def test_ensemble_names_and_back() -> None:
    name = paths.get_ensemble_name(f"/a/{MODEL}", "/a/nnUNetTrainer__nnUNetPlans__2d/", (0, "all"))
    assert name == f"ensemble___{MODEL}___nnUNetTrainer__nnUNetPlans__2d___0_all"
    models, folds = paths.convert_ensemble_folder_to_model_identifiers_and_folds(f"/x/{name}")
    assert (models, folds) == ([MODEL, "nnUNetTrainer__nnUNetPlans__2d"], "0_all")
    assert paths.folds_string_to_tuple(folds) == [0, "all"]


def test_identifiers_must_have_three_parts() -> None:
    assert paths.convert_identifier_to_trainer_plans_config("a__b__c") == ["a", "b", "c"]
    assert paths.convert_trainer_plans_config_to_identifier("a", "b", "c") == "a__b__c"
    with pytest.raises(ValueError, match="a__b"):
        paths.convert_identifier_to_trainer_plans_config("a__b")


class Worker:
    """What a pool shows of a process."""

    name = "worker-1"

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode

    def is_alive(self) -> bool:
        return self.exitcode is None


class Result:
    def __init__(self, is_ready: bool) -> None:
        self.is_ready = is_ready

    def ready(self) -> bool:
        return self.is_ready


@pytest.mark.parametrize(("unfinished", "queue", "busy"), [(1, 0, False), (2, 0, True), (3, 2, False), (4, 2, True)])
def test_a_pool_is_busy_with_one_task_per_worker_and_a_full_queue(unfinished: int, queue: int, busy: bool) -> None:
    results = [Result(False)] * unfinished + [Result(True)] * 5
    assert paths.check_workers_alive_and_busy(None, [Worker(None), Worker(None)], results, queue) is busy


def test_a_dead_worker_is_an_error_with_its_exit_code() -> None:
    with pytest.raises(RuntimeError, match="-9"):
        paths.check_workers_alive_and_busy(None, [Worker(None), Worker(-9)], [])
