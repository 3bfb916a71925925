"""What the losses of the classes do to heads and encoder: every pooling, type of task and precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2.network_architecture.classification_heads import CaseHead, HeadDescription, build_heads
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

CHANNELS = (4, 6)
LABELS = {"background": 0, "lesion": 1}
POOLINGS = ("mean_max", "attention", "evidence")
TASKS = {
    "multiclass": ClassificationTask(name="multiclass", classes=("a", "b", "c"), evidence=("lesion",)),
    "multilabel": ClassificationTask(name="multilabel", classes=("x", "y"), type="multilabel", evidence=("lesion",)),
    "ordinal": ClassificationTask(name="ordinal", classes=("g1", "g2", "g3"), type="ordinal", evidence=("lesion",)),
}
KNOWN = {"multiclass": 2, "multilabel": [1.0, 0.0], "ordinal": 2}
UNKNOWN = {"multiclass": -1, "multilabel": [math.nan, math.nan], "ordinal": -1}
HUGE = 60000.0  # float16 ends at 65504


def head_of(pooling: str, task: str) -> nn.Module:
    """Without dropout and new running statistics, so that runs can be compared."""
    head = build_heads({task: TASKS[task]}, CHANNELS, pooling=pooling, labels=LABELS, seed=1)[task]
    head.dropout.probability = 0.0
    head.standardization.eval()
    return head


def case_head_of(pooling: str, task: str) -> CaseHead:
    evidence = PredictedEvidence.from_labels(("lesion",), LABELS)
    return CaseHead(HeadDescription(task=TASKS[task], pooling=pooling, stages=(0, 1), level="case", evidence=evidence), CHANNELS)


def features(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of two samples, both stages, between -scale and scale."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, channels, *(8 // 2**i,) * 3, generator=generator) * 2 - 1 for i, channels in enumerate(CHANNELS)]
    return [(scale * each).to(dtype).requires_grad_() for each in maps]


def segmentation(dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits that are sure of a lesion in a corner of the first sample and of none in the second."""
    logits = torch.zeros(2, 2, 8, 8, 8)
    logits[:, 0] = 10
    logits[0, 1, :3, :3, :3] = 20
    return logits.to(dtype)


def loss_of(head: nn.Module, maps: list[Tensor], logits: Tensor, targets: list[Any]) -> Tensor:
    task = head.description.task.name
    classes = {task: {"target": torch.tensor(targets), "weight": torch.ones(len(targets))}}
    return ClassificationLoss({task: TASKS[task]})({task: head(maps, logits)}, classes)[task]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_huge_half_precision_features_give_finite_losses_and_gradients(pooling: str, task: str, dtype: torch.dtype) -> None:
    head, maps = head_of(pooling, task), features(HUGE, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(maps, segmentation(dtype))
        loss = loss_of(head, maps, segmentation(dtype), [KNOWN[task], UNKNOWN[task]])
    loss.backward()
    assert logits.dtype == loss.dtype == torch.float32
    assert torch.isfinite(logits).all() and torch.isfinite(loss)
    for name, parameter in head.named_parameters():
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(each.grad).all() for each in maps)
    plain = loss_of(head, [each.detach().float() for each in maps], segmentation(), [KNOWN[task], UNKNOWN[task]])
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_heads_of_whole_cases_compute_in_float32_under_autocast(pooling: str, task: str) -> None:
    head, maps = case_head_of(pooling, task), features(HUGE, torch.float16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = head(maps, segmentation(torch.float16))
        logits = head.classify_case(vectors)
    with torch.no_grad():
        expected = head([each.float() for each in maps], segmentation())
        torch.testing.assert_close(logits, head.classify_case(expected), rtol=1e-5, atol=1e-3)
    assert vectors.dtype == logits.dtype == torch.float32
    assert torch.isfinite(vectors).all() and torch.isfinite(logits).all()
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=0.05)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_known_is_a_zero_that_reaches_every_weight(pooling: str, task: str) -> None:
    head, maps = head_of(pooling, task), features()
    loss = loss_of(head, maps, segmentation(), [UNKNOWN[task]] * 2)
    loss.backward()
    assert loss.item() == 0
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert all(each.grad is not None and not each.grad.any() for each in maps)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sample_of_unknown_class_teaches_nothing(pooling: str, task: str) -> None:
    """As if it were not in the batch; neither as class 0, nor by a share of the mean."""
    head, maps = head_of(pooling, task), features()
    loss_of(head, maps, segmentation(), [KNOWN[task], UNKNOWN[task]]).backward()
    learned = {name: parameter.grad.clone() for name, parameter in head.named_parameters()}
    assert all(not each.grad[1].any() and each.grad[0].any() for each in maps)
    head.zero_grad()
    loss_of(head, [each.detach()[:1] for each in maps], segmentation()[:1], [KNOWN[task]]).backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(learned[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
    assert any(gradient.any() for gradient in learned.values())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_unknown_class_of_a_multilabel_sample_leaves_the_known_ones(pooling: str) -> None:
    head, maps = head_of(pooling, "multilabel"), features()
    loss = loss_of(head, maps, segmentation(), [[1.0, math.nan], [math.nan, math.nan]])
    loss.backward()
    assert torch.isfinite(loss) and loss.item() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert head.output.weight.grad[0].any() and not head.output.weight.grad[1].any()


@pytest.mark.parametrize("level", ["patch", "case"])
@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_sample_depends_on_the_others_of_its_batch(pooling: str, task: str, level: str) -> None:
    """As it would with a BatchNorm."""
    head, maps = (head_of if level == "patch" else case_head_of)(pooling, task), features()
    head.train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in head.modules())
    for sample in (slice(0, 1), slice(1, 2)):
        # Copies: in training a batch changes the running statistics, for those after it.
        alone = copy.deepcopy(head)([each[sample] for each in maps], segmentation()[sample])
        torch.testing.assert_close(copy.deepcopy(head)(maps, segmentation())[sample], alone)
    if level == "case":
        vectors = head(maps, segmentation())
        torch.testing.assert_close(head.classify_case(vectors)[:1], head.classify_case(vectors[:1]))
