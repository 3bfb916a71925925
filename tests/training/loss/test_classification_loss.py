from __future__ import annotations

import math

import pytest
import torch

from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

SUBTYPE = ClassificationTask(name="subtype", classes=("a", "b", "c"))
FINDINGS = ClassificationTask(name="findings", classes=("x", "y"), type="multilabel")
GRADE = ClassificationTask(name="grade", classes=("g1", "g2", "g3"), type="ordinal")


def batch(target: list, weight: list[float] | None = None) -> dict[str, torch.Tensor]:
    return {"target": torch.tensor(target), "weight": torch.tensor(weight or [1.0] * len(target))}


def test_weighted_cross_entropy_is_divided_by_the_number_of_known_labels() -> None:
    loss = ClassificationLoss({"subtype": SUBTYPE}, label_smoothing=0)
    value = loss({"subtype": torch.zeros(4, 3)}, {"subtype": batch([0, 1, -1, 2], [1.0, 0.3, 1.0, 0.0])})
    assert value["subtype"].item() == pytest.approx(1.3 * math.log(3) / 3)


def test_unknown_labels_get_no_gradient_and_nan_does_not_spread() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    nan = math.nan
    value = ClassificationLoss({"findings": FINDINGS})({"findings": logits}, {"findings": batch([[1.0, 0.0], [nan, nan], [0.0, nan]])})
    value["findings"].backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1].any() and not logits.grad[2, 1]
    assert logits.grad[0].all() and logits.grad[2, 0]


@pytest.mark.parametrize(
    ("task", "n_logits", "target"), [(SUBTYPE, 3, [-1, -1]), (GRADE, 2, [-1, -1]), (FINDINGS, 2, [[math.nan] * 2] * 2)]
)
def test_nothing_known_is_zero_but_connected(task: ClassificationTask, n_logits: int, target: list) -> None:
    logits = torch.randn(2, n_logits, requires_grad=True)
    loss = ClassificationLoss({task.name: task})({task.name: logits}, {task.name: batch(target)})[task.name]
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_a_batch_without_classes_is_zero_but_connected() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    ClassificationLoss({"subtype": SUBTYPE})({"subtype": logits}, {})["subtype"].backward()
    assert not logits.grad.any()


def test_no_heads_no_losses() -> None:
    assert ClassificationLoss({})({}, {}) == {}


def test_ordinal_loss_grows_with_the_distance_of_the_class() -> None:
    certain_of_first = torch.tensor([[-6.0, -9.0]])
    loss = ClassificationLoss({"grade": GRADE})
    values = [loss({"grade": certain_of_first}, {"grade": batch([target])})["grade"].item() for target in range(3)]
    assert values[0] < 0.01 < values[1] < values[2]


def test_class_weights_multiply_the_samples_of_their_class() -> None:
    loss = ClassificationLoss({"subtype": SUBTYPE}, label_smoothing=0, class_weights={"subtype": [2.0, 1.0, 0.5]})
    value = loss({"subtype": torch.zeros(2, 3)}, {"subtype": batch([0, 2])})["subtype"]
    assert value.item() == pytest.approx(2.5 * math.log(3) / 2)


def test_class_weights_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(ValueError, match="subtype"):
        ClassificationLoss({"subtype": SUBTYPE}, class_weights={"subtype": [1.0, 2.0]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("task", "values", "target"),
    [(SUBTYPE, [40000.0, -40000.0, 0.5], [1]), (FINDINGS, [40000.0, 0.3], [[0.0, 1.0]]), (GRADE, [-30000.0, -40000.0], [2])],
)
def test_half_precision_logits_give_the_loss_of_float32(task: ClassificationTask, values: list, target: list, dtype: torch.dtype) -> None:
    logits = torch.tensor([values], dtype=dtype, requires_grad=True)
    loss_of = ClassificationLoss({task.name: task})
    loss, expected = (loss_of({task.name: value}, {task.name: batch(target)})[task.name] for value in (logits, logits.detach().float()))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # float16 ends at 65504, the first loss is more
