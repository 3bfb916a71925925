"""What each process of ``test_training_in_two_processes.py`` does, and one process alone; here, because started processes import it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainings import CPU, make_trainer, weights

from nnunetv2.network_architecture import classification_heads
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.run.processes import process_group
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.scheduling import CaseErrors
from nnunetv2.training.distributed import outputs_of_all_processes, process_rank
from nnunetv2.training.head_refit import case_vectors, unfitted_case_heads
from nnunetv2.training.nnUNetTrainer.case_validation import predictor_of
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask

STEPS, VALIDATION_STEPS = 3, 4
STEP_WITH_AN_UNKNOWN_HALF = 1


class ClassesCount(nnUNetTrainerMultitask):
    """From the second step on as much as the segmentation."""

    maximum_classification_loss_weight = 1.0
    classification_warmup_share = 0.0
    head_refit = "patches"

    def configure_head_optimizer(self) -> torch.optim.Optimizer:
        # AdamW takes full steps also where the gradient is nothing but rounding errors.
        return torch.optim.SGD(self.head_parameters(), lr=0.1)


class WithNoise(nnUNetTrainerMultitask):
    """Draws from every random generator in every step, as dropout and users' trainers may; writes a checkpoint after every epoch."""

    save_every = 1
    stop_in_epoch: int | None = None
    head_refit = "none"

    def train_step(self, batch: dict) -> dict:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(1))
        return super().train_step({**batch, "data": batch["data"] + noise})

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.current_epoch == self.stop_in_epoch:
            raise InterruptedError


def train_without_dropout(preprocessed: Path) -> dict[str, Any]:
    """:func:`train_some_steps` with heads that differ between one process and two by nothing but rounding errors."""
    with pytest.MonkeyPatch.context() as constants:
        constants.setattr(classification_heads, "DROPOUT", 0.0)
        return train_some_steps(preprocessed)


def train_some_steps(preprocessed: Path) -> dict[str, Any]:
    """One epoch, in which one half of a batch has neither labels nor evidence."""
    trainer = make_trainer(
        ClassesCount, preprocessed, num_epochs=1, num_iterations_per_epoch=STEPS, num_val_iterations_per_epoch=VALIDATION_STEPS
    )
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs, keys = [], []
    for step in range(STEPS):
        batch = next(trainer.dataloader_train)
        keys.append(batch["keys"].tolist())
        if step == STEP_WITH_AN_UNKNOWN_HALF:
            forget_second_half(trainer, batch)
        outputs.append(trainer.train_step(batch))
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        validation = [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(VALIDATION_STEPS)]
        trainer.on_validation_epoch_end(validation)
    records = [output["class_records"] for output in validation]
    scores = trainer.class_scores.scores([record for output in outputs_of_all_processes(validation) for record in output["class_records"]])
    result = {
        "keys": keys,
        "curves": {name: values for name, values in trainer.logger.get_checkpoint().items() if "timestamps" not in name},
        "weights": {name.removeprefix("module."): value for name, value in weights(trainer).items()},
        "records": records,
        "scores": scores,
    }
    trainer.stop_dataloaders()
    trainer.refit_heads()
    result["weights of refitted heads"] = trainer.refitted_heads_entry()["weights"]
    heads = unfitted_case_heads(trainer, with_morphometry=True)
    predictor = predictor_of(trainer, JointNetwork(trainer.segmentation_network(), heads))
    predictor.classification_tasks = dict(trainer.classification_tasks)
    predictor.allowed_mirroring_axes = None  # faster
    result["identifiers of the refit"], result["vectors of the refit"] = case_vectors(trainer, predictor, augmented_copies=0)
    return result


def forget_second_half(trainer: Any, batch: dict) -> None:
    """The second sample of the global batch loses labels and evidence."""
    first = process_rank() * len(batch["keys"])
    for index in range(len(batch["keys"])):
        if first + index >= 1:
            for task in batch["class"].values():
                task["target"][index] = float("nan") if task["target"].is_floating_point() else -1
                task["weight"][index] = 0.0


def train_and_resume(preprocessed: Path, folder: Path) -> dict[str, Any]:
    """A training of two epochs at once, and one that was interrupted in the second one."""
    whole = make_trainer(WithNoise, preprocessed, num_epochs=2, num_iterations_per_epoch=1)
    whole.run_training()
    noise = [float(np.random.rand()), float(torch.rand(1))]
    if process_rank() == 0:
        Path(whole.output_folder, "checkpoint_final.pth").rename(folder / "whole.pth")
        for path in Path(whole.output_folder).glob("*.pth"):
            path.unlink()
    first = make_trainer(WithNoise, preprocessed, num_epochs=2, num_iterations_per_epoch=1)
    first.stop_in_epoch = 1
    try:
        first.run_training()
    except InterruptedError:
        first.stop_dataloaders()
    second = make_trainer(WithNoise, preprocessed, seed=None)
    second.run_options = {}
    maybe_load_checkpoint(second, continue_training=True, validation_only=False)
    start = second.current_epoch
    second.run_training()
    if process_rank() == 0:
        Path(second.output_folder, "checkpoint_final.pth").rename(folder / "resumed.pth")
    return {"start": start, "noise": noise}


class NoDeepSupervision(nnUNetTrainer):
    enable_deep_supervision = False  # leaves layers of the decoder without a gradient


def train_with_a_loss_that_is_not_finite(preprocessed: Path) -> dict[str, Any]:
    """Three steps, in the second of which the second process has a broken image."""
    trainer = make_trainer(NoDeepSupervision, preprocessed)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    states = []
    for step in range(3):
        batch = next(trainer.dataloader_train)
        if step == 1 and process_rank() == 1:
            batch["data"][:] = float("nan")
        trainer.train_step(batch)
        states.append(weights(trainer))
    trainer.stop_dataloaders()
    trainer.current_epoch = process_rank()  # as if each had a results folder of its own
    try:
        trainer._check_processes_agree()
        difference = ""
    except RuntimeError as error:
        difference = str(error)
    return {"weights": states, "difference": difference}


def draw_a_seed(preprocessed: Path) -> int | None:
    """The seed of a training that was given none, where the processes would draw different ones."""
    torch.manual_seed(process_rank())
    trainer = make_trainer(nnUNetTrainer, preprocessed, seed=None)
    trainer.settle_seed()
    return trainer.seed


class WithABrokenCase(nnUNetTrainer):
    """The last case of the validation cannot be read."""

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        load_case = validation.load_case

        def load(identifier: str) -> Any:
            if identifier == validation.identifiers[-1]:
                raise OSError("disk is broken")
            return load_case(identifier)

        validation.load_case = load
        return training, validation


def validate_with_a_broken_case(preprocessed: Path) -> str:
    """What the validation says in each process, of which only one predicts the broken case."""
    trainer = make_trainer(WithABrokenCase, preprocessed)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = None  # faster
    try:
        trainer.perform_actual_validation()
    except CaseErrors as error:
        return str(error)
    return ""


def heads_of_cases(preprocessed: Path) -> dict[str, Any]:
    """Weights of heads on whole cases, which the first process fits, in each process."""
    trainer = make_trainer(nnUNetTrainerMultitask, preprocessed)
    trainer.initialize()
    trainer.head_refit, trainer.refit_augmented_copies = "cases", 0
    trainer.inference_allowed_mirroring_axes = None  # faster
    trainer.refit_heads()
    return trainer.refitted_heads_entry()["weights"]


def run_process(preprocessed: str, folder: str) -> None:
    """All of the above in one of two processes."""
    torch.set_num_threads(1)
    with process_group(CPU):
        result = {
            "steps": train_without_dropout(Path(preprocessed)),
            "not finite": train_with_a_loss_that_is_not_finite(Path(preprocessed)),
            "seed": draw_a_seed(Path(preprocessed)),
            "broken case": validate_with_a_broken_case(Path(preprocessed)),
            "heads of cases": heads_of_cases(Path(preprocessed)),
            "resumed": train_and_resume(Path(preprocessed), Path(folder)),
        }
        torch.save(result, f"{folder}/{process_rank()}.pt")
