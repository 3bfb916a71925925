"""Two processes train what one process trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainings import same
from training.nnUNetTrainer.two_trainers import VALIDATION_STEPS, run_process, train_without_dropout

from nnunetv2.run.processes import run_on_this_machine
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

Result = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes, ``0.pt`` and ``1.pt``, and their checkpoints."""
    folder = tmp_path_factory.mktemp("two_processes")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
        environment.setenv("nnUNet_results", str(folder / "results"))
        environment.setenv("nnUNet_n_proc_DA", "0")
        run_on_this_machine(2, run_process, {"preprocessed": str(tiny_preprocessed), "folder": str(folder)})
    return folder


@pytest.fixture(scope="module")
def ranks(folders: Path) -> list[Result]:
    return [torch.load(folders / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def two(ranks: list[Result]) -> list[Result]:
    return [result["steps"] for result in ranks]


@pytest.fixture(scope="module")
def one(tiny_preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("nnUNet_preprocessed", str(tiny_preprocessed))
        environment.setenv("nnUNet_results", str(tmp_path_factory.mktemp("one_process")))
        environment.setenv("nnUNet_n_proc_DA", "0")
        return train_without_dropout(tiny_preprocessed)


def test_the_processes_share_the_batches_of_one(one: Result, two: list[Result]) -> None:
    assert [first + second for first, second in zip(two[0]["keys"], two[1]["keys"])] == one["keys"]


def test_losses_and_dice_are_those_of_one_process(one: Result, two: list[Result]) -> None:
    assert same(two[0]["curves"], two[1]["curves"])
    assert list(one["curves"]) == list(two[0]["curves"])
    for name, values in one["curves"].items():
        # A voxel that rounding errors move over a threshold counts in the Dice as a whole.
        tolerance = 5e-3 if "dice" in name else 1e-4
        np.testing.assert_allclose(two[0]["curves"][name], values, rtol=tolerance, atol=1e-5, err_msg=name)


def test_weights_after_some_steps_are_those_of_one_process(one: Result, two: list[Result]) -> None:
    """Also of the heads, after a batch whose one half had neither labels nor evidence."""
    assert same(two[0]["weights"], two[1]["weights"])
    for name, value in one["weights"].items():
        torch.testing.assert_close(two[0]["weights"][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_class_scores_are_those_of_one_process_on_the_same_records(one: Result, two: list[Result]) -> None:
    merged = [record for step in range(VALIDATION_STEPS) for of_rank in two for record in of_rank["records"][step]]
    assert [record.identifier for record in merged] == [record.identifier for step in one["records"] for record in step]
    for of_rank in two:
        assert same(of_rank["scores"].by_task, one["scores"].by_task)
        assert of_rank["scores"].case_score == one["scores"].case_score
        for case, tasks in one["scores"].probabilities.items():
            for task, probabilities in tasks.items():
                np.testing.assert_allclose(of_rank["scores"].probabilities[case][task], probabilities, rtol=1e-3, atol=1e-4)


def test_cases_of_a_refit_are_shared_and_joined_in_their_order(one: Result, two: list[Result]) -> None:
    for of_rank in two:
        assert of_rank["identifiers of the refit"] == one["identifiers of the refit"]
        for task, vectors in of_rank["vectors of the refit"].items():
            np.testing.assert_array_equal(vectors, two[0]["vectors of the refit"][task])
            assert vectors.shape == one["vectors of the refit"][task].shape


def test_heads_refitted_on_patches_are_those_of_one_process(one: Result, two: list[Result]) -> None:
    first, second = (result["weights of refitted heads"] for result in two)
    assert first and same(first, second)
    different = [(first[name] - value).abs().flatten() > 1e-4 for name, value in one["weights of refitted heads"].items()]
    # AdamW takes full steps also where the gradient is nothing but rounding errors.
    assert torch.cat(different).float().mean() < 0.02


def test_heads_that_the_first_process_fits_on_cases_come_to_all(ranks: list[Result]) -> None:
    assert ranks[0]["heads of cases"]
    assert same(ranks[0]["heads of cases"], ranks[1]["heads of cases"])


def test_a_step_is_left_out_by_all_or_none(ranks: list[Result]) -> None:
    """And without deep supervision, layers that never get a gradient stop nothing."""
    start, left_out, end = ranks[0]["not finite"]["weights"]
    assert same(start, left_out)
    assert not same(left_out, end)
    assert same(ranks[0]["not finite"]["weights"], ranks[1]["not finite"]["weights"])


def test_processes_that_would_train_different_epochs_are_refused(ranks: list[Result]) -> None:
    assert ranks[0]["not finite"]["difference"] == ""
    assert "the first process differ in epoch: 0 and 1. All machines need" in ranks[1]["not finite"]["difference"]


def test_processes_agree_on_a_seed_that_is_drawn(ranks: list[Result]) -> None:
    assert ranks[0]["seed"] is not None
    assert ranks[0]["seed"] == ranks[1]["seed"]


def test_all_processes_hear_of_a_case_that_one_could_not_validate(ranks: list[Result]) -> None:
    assert "disk is broken" in ranks[0]["broken case"]
    assert ranks[0]["broken case"] == ranks[1]["broken case"]


def test_processes_draw_different_random_numbers(ranks: list[Result]) -> None:
    for of_first, of_second in zip(ranks[0]["resumed"]["noise"], ranks[1]["resumed"]["noise"]):
        assert of_first != of_second


def test_a_continued_training_ends_with_the_same_checkpoint(folders: Path, ranks: list[Result]) -> None:
    assert [result["resumed"]["start"] for result in ranks] == [1, 1]
    whole, resumed = (load_checkpoint_file(folders / f"{name}.pth") for name in ("whole", "resumed"))
    for content in (whole, resumed):
        for name in ("epoch_start_timestamps", "epoch_end_timestamps"):
            content["logging"].pop(name)
    assert len(whole["training_state"]["random_states_of_ranks"]) == 2
    assert not [key for key in whole if not same(whole[key], resumed[key])]
