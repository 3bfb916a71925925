"""An ensemble of decision trees as tensors: part of a network's weights, with nothing to unpickle.

scikit-learn grows the trees; what they look at and say is copied into buffers, which answer like the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

LEAF = -1  # in the place of a feature


class TreeEnsemble(nn.Module):
    """Mean answer of several trees.

    Args:
        trees: Number of trees.
        outputs: Numbers that a leaf holds.
        nodes: Of the largest tree. Weights with another number of nodes can be loaded: the trees of every fold are of another size.
    """

    def __init__(self, trees: int, outputs: int, nodes: int = 1) -> None:
        super().__init__()
        self.register_buffer("feature", torch.full((trees, nodes), LEAF, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, nodes))
        self.register_buffer("next_node", torch.zeros(trees, nodes, 2, dtype=torch.int32))  # where feature <= threshold, and where not
        self.register_buffer("value", torch.zeros(trees, nodes, outputs))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int32))

    @classmethod
    def from_scikit_learn(cls, forest: ExtraTreesRegressor) -> TreeEnsemble:
        """A copy of a fitted ensemble of regression trees."""
        grown = [estimator.tree_ for estimator in forest.estimators_]
        ensemble = cls(len(grown), grown[0].value.shape[1], max(tree.node_count for tree in grown))
        for index, tree in enumerate(grown):
            inner = tree.children_left >= 0
            nodes = slice(0, tree.node_count)
            ensemble.feature[index, nodes] = torch.from_numpy(np.where(inner, tree.feature, LEAF).astype(np.int32))
            ensemble.threshold[index, nodes] = torch.from_numpy(_rounded_down(tree.threshold))
            children = np.stack([tree.children_left, tree.children_right], axis=1)
            ensemble.next_node[index, nodes] = torch.from_numpy(np.where(inner[:, None], children, 0).astype(np.int32))
            ensemble.value[index, nodes] = torch.from_numpy(tree.value[:, :, 0].astype(np.float32))
        ensemble.depth.fill_(max(tree.max_depth for tree in grown))
        return ensemble

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}feature")
        if stored is not None and stored.ndim == 2 and stored.shape[1] != self.feature.shape[1]:
            for name in ("feature", "threshold", "next_node", "value"):
                old = getattr(self, name)
                setattr(self, name, old.new_empty(len(old), stored.shape[1], *old.shape[2:]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, inputs: Tensor) -> Tensor:
        """Mean of the trees' answers ``(B, outputs)``.

        Args:
            inputs: ``(B, F)`` without NaN.
        """
        inputs = inputs.float()
        trees = torch.arange(len(self.feature), device=inputs.device)
        node = torch.zeros(len(inputs), len(trees), dtype=torch.long, device=inputs.device)
        for _ in range(int(self.depth)):
            feature = self.feature[trees, node].long()  # (B, trees)
            right = inputs.gather(1, feature.clamp(min=0)) > self.threshold[trees, node]
            node = torch.where(feature == LEAF, node, self.next_node[trees, node, right.long()].long())
        return self.value[trees, node].mean(dim=1)


def _rounded_down(thresholds: np.ndarray) -> np.ndarray:
    """float32 that no float32 number can tell from the float64 ``thresholds``: it is below or equal to both or to none."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
