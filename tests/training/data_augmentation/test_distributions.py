"""Our augmentation and stock nnU-Net's draw from the same distributions."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from stock_nnunet import reference_commands

SCRIPT = Path(__file__).parents[2] / "reference" / "augmentation_distributions.py"
specification = importlib.util.spec_from_file_location("augmentation_distributions", SCRIPT)
distributions = importlib.util.module_from_spec(specification)
specification.loader.exec_module(distributions)

MORE_SCALING = """
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
initialise = SpatialTransform.__init__
SpatialTransform.__init__ = lambda self, *args, **options: initialise(self, *args, **{**options, 'p_scaling': 0.5})
"""


def test_a_difference_is_found_and_equality_is_not_one() -> None:
    rng = np.random.default_rng(0)
    ours = {f"figure {i}": rng.normal(size=400).tolist() for i in range(50)}
    theirs = {f"figure {i}": rng.normal(0.6 * (i == 7), size=400).tolist() for i in range(50)}
    found, tests = distributions.differences(ours, theirs)
    assert tests == 50 and [line.split(":")[0] for line in found] == ["figure 7"]
    assert distributions.differences({"constant": [2.0] * 300}, {"constant": [2.0 + 1e-7] * 300}) == ([], 1)
    with pytest.raises(ValueError, match="figure 49"):
        distributions.differences(ours, dict(list(theirs.items())[:-1]))


@pytest.mark.slow
def test_the_same_distributions_as_stock_nnunet(tmp_path: Path) -> None:
    theirs = distributions.sampled(reference_commands() / "python", 400, 2, tmp_path)
    found, tests = distributions.differences(distributions.sampled(sys.executable, 400, 1, tmp_path), theirs)
    assert tests > 500 and not found
    found, _ = distributions.differences(distributions.sampled(sys.executable, 400, 3, tmp_path, before=MORE_SCALING), theirs)
    assert any("rotation and scaling" in line for line in found)
