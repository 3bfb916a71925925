"""The segmentation losses against values recorded from nnU-Net 2.8.1, see ``reference_cases.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor
from training.loss.reference_cases import cases, loss_and_gradient

RECORDED = json.loads((Path(__file__).parent / "reference_losses.json").read_text())


@pytest.mark.parametrize(("name", "loss"), list(cases()), ids=lambda value: value if isinstance(value, str) else "")
def test_loss_and_gradient_equal_the_reference(name: str, loss: Callable[[Tensor], Tensor]) -> None:
    assert loss_and_gradient(loss) == pytest.approx(RECORDED[name], rel=2e-5, abs=2e-5)


def test_every_recorded_case_is_checked() -> None:
    assert {name for name, _ in cases()} == set(RECORDED)
