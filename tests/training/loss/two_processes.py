"""What each of two processes computes in ``test_losses_of_several_processes.py``; here, because they import it."""

from __future__ import annotations

import os

import torch

from nnunetv2.run.processes import cleanup_ddp, setup_ddp
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

TASK = ClassificationTask(name="subtype", classes=("a", "b", "c"))
CLASS_TARGETS = torch.tensor([0, -1, 2, 1])  # process 0 knows one label, process 1 two


def gradients(probabilities: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    probabilities, logits = probabilities.clone().requires_grad_(), logits.clone().requires_grad_()
    dice = MemoryEfficientSoftDiceLoss(batch_dice=True, smooth=1e-5, ddp=True)(probabilities, labels)
    classes = {"subtype": {"target": targets, "weight": torch.ones(len(targets))}}
    classification = ClassificationLoss({"subtype": TASK})({"subtype": logits}, classes)["subtype"]
    (dice + classification).backward()
    return {
        "dice": dice.detach(),
        "classification": classification.detach(),
        "dice gradient": probabilities.grad,
        "classification gradient": logits.grad,
    }


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(4, 3, 5, 5, generator=generator), 1)
    labels = torch.randint(0, 3, (4, 1, 5, 5), generator=generator)
    return probabilities, labels, torch.randn(4, 3, generator=generator), CLASS_TARGETS


def run_process(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    setup_ddp(rank, 2)
    half = slice(2 * rank, 2 * rank + 2)
    torch.save(gradients(*(values[half] for values in data())), f"{folder}/{rank}.pt")
    cleanup_ddp()
