"""Trees in tensors answer as scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor

from nnunetv2.network_architecture.tree_ensemble import TreeEnsemble
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file, save_checkpoint_file


@pytest.fixture(scope="module")
def forest() -> ExtraTreesRegressor:
    random = np.random.default_rng(0)
    inputs = np.round(random.normal(size=(80, 5)), 1)  # with ties
    targets = np.eye(3)[(inputs[:, 0] > 0).astype(int) + (inputs[:, 1] * inputs[:, 2] > 0)]
    return ExtraTreesRegressor(20, min_samples_leaf=2, random_state=0).fit(inputs, targets, sample_weight=random.uniform(0.5, 2, 80))


def test_answers_equal_scikit_learns(forest: ExtraTreesRegressor) -> None:
    inputs = np.round(np.random.default_rng(1).normal(size=(200, 5)), 1)
    np.testing.assert_allclose(TreeEnsemble.from_scikit_learn(forest)(torch.from_numpy(inputs)), forest.predict(inputs), atol=1e-6)


def test_inputs_on_a_threshold_go_left(forest: ExtraTreesRegressor) -> None:
    """Also where a float64 value lies beyond the threshold by less than float32 can tell."""
    tree = forest.estimators_[0].tree_
    inputs = np.zeros((2, 5))
    inputs[:, tree.feature[0]] = np.float32(tree.threshold[0]), np.float64(np.float32(tree.threshold[0])) * (1 + 1e-9)
    np.testing.assert_allclose(TreeEnsemble.from_scikit_learn(forest)(torch.from_numpy(inputs)), forest.predict(inputs), atol=1e-6)


def test_weights_survive_a_checkpoint(forest: ExtraTreesRegressor, tmp_path: Path) -> None:
    ensemble = TreeEnsemble.from_scikit_learn(forest)
    save_checkpoint_file({"weights": ensemble.state_dict()}, tmp_path / "c.pth")
    copy = TreeEnsemble(20, outputs=3)  # of as many nodes as are loaded
    copy.load_state_dict(load_checkpoint_file(tmp_path / "c.pth")["weights"])
    inputs = torch.randn(10, 5)
    assert torch.equal(copy(inputs), ensemble(inputs))


def test_a_single_leaf_says_the_mean() -> None:
    constant = ExtraTreesRegressor(2, random_state=0).fit(np.zeros((4, 1)), np.array([[0.0, 1], [1, 0], [1, 0], [1, 0]]))
    assert TreeEnsemble.from_scikit_learn(constant)(torch.zeros(1, 1)).tolist() == [[0.75, 0.25]]
