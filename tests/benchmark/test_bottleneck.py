"""The verdict follows from the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nnunetv2.benchmark.bottleneck import find_bottleneck, report_lines, workers_needed
from nnunetv2.benchmark.training_speed import TrainingSpeed

GB = 1000**3
# A network that is kept busy, on a GPU.
BUSY = TrainingSpeed(
    dataset="Dataset001_A",
    configuration="3d_fullres",
    plans="nnUNetPlans",
    trainer="nnUNetTrainer",
    device="A100",
    patch_size=(128, 128, 128),
    batch_size=2,
    iterations_per_epoch=250,
    validation_iterations_per_epoch=50,
    augmentation_may_move=True,
    cpus=16,
    workers=12,
    read_seconds=0.02,
    read_from_disk_seconds=0.05,
    augment_seconds=0.5,
    load_seconds=0.05,
    step_seconds=0.13,
    iteration_seconds=0.131,
    wait_seconds=0.0005,
    memory_bytes=8 * GB,
    free_memory_bytes=50 * GB,
    device_memory_bytes=8 * GB,
    device_memory_total_bytes=40 * GB,
)
STARVED = replace(BUSY, cpus=4, workers=4, load_seconds=0.2, iteration_seconds=0.2, wait_seconds=0.07)


def test_a_network_that_never_waits_is_the_bottleneck() -> None:
    found = find_bottleneck(BUSY)
    assert found.kind == "network"
    assert any("half empty" in text for text in found.advice)
    assert any("nnUNet_n_proc_DA=5" in text for text in found.advice)  # 12 * 0.05 / 0.13


def test_on_the_cpu_a_gpu_is_the_first_advice() -> None:
    found = find_bottleneck(replace(BUSY, device="cpu", device_memory_bytes=None, device_memory_total_bytes=None))
    assert found.kind == "network" and "GPU" in found.advice[0]


def test_too_few_cpus_are_named_with_the_number_that_it_takes() -> None:
    found = find_bottleneck(STARVED)
    assert found.kind == "augmentation" and "about 7 loading processes" in found.explanation
    assert "nnUNet_augmentation_device=cuda" in found.advice[0]
    stays = find_bottleneck(replace(STARVED, augmentation_may_move=False))
    assert stays.advice == found.advice[1:]
    assert any("more CPUs" in text for text in found.advice) and not any("nnUNet_n_proc_DA" in text for text in found.advice)


def test_idle_cpus_are_offered_to_loading_processes() -> None:
    found = find_bottleneck(replace(STARVED, cpus=16))
    assert found.advice == ("more loading processes: nnUNet_n_proc_DA=7",)


def test_a_disk_that_takes_most_of_the_time_is_named() -> None:
    found = find_bottleneck(replace(STARVED, read_from_disk_seconds=1.0))
    assert found.kind == "disk" and "SSD" in found.advice[0]
    assert find_bottleneck(replace(STARVED, read_from_disk_seconds=None)).kind == "augmentation"


def test_memory_that_is_nearly_used_up_comes_first() -> None:
    found = find_bottleneck(replace(STARVED, free_memory_bytes=GB))
    assert found.kind == "memory" and "nnUNet_n_proc_DA=2" in found.advice[0]


def test_loading_in_the_training_process_counts_as_one_worker() -> None:
    assert workers_needed(replace(STARVED, workers=0, load_seconds=0.26, step_seconds=0.13)) == 2


@pytest.mark.parametrize("speed", [BUSY, STARVED, replace(BUSY, read_seconds=None, read_from_disk_seconds=None, augment_seconds=None)])
def test_the_table_shows_what_was_measured(speed: TrainingSpeed) -> None:
    text = "\n".join(report_lines(speed, find_bottleneck(speed)))
    assert "130.0           7.69" in text and "128 x 128 x 128" in text
    assert ("files from disk" in text) == (speed.read_from_disk_seconds is not None)
    assert f"Bottleneck: {find_bottleneck(speed).kind}." in text


def test_the_epoch_is_estimated_from_iterations_and_validation() -> None:
    assert BUSY.epoch_seconds == pytest.approx(250 * 0.131 + 50 * 0.05)
