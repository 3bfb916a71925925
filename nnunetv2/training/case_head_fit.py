"""Heads of whole cases, fitted to what prediction will see of each.

A linear layer looks at everything, decision trees at the morphometry; inner folds decide how much each of them has to say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nnunetv2.network_architecture.classification_heads import CaseHead, class_probabilities, class_shares, tree_targets
from nnunetv2.network_architecture.tree_ensemble import TreeEnsemble
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.utilities.crossval_split import NUM_FOLDS, generate_stratified_split
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask, Target

# Structures are predicted better in cases that the network was trained on than in new ones; their measures differ by a third to a half of
# the deviation between cases (documentation/classification-evidence.md). Trees that see every case several times, so much changed, do not
# rely on less.
NOISE_OF_MEASURES = 0.3
NOISY_COPIES = 8
COPIES_OF_A_LEAF = 8
SMALLEST_DEVIATION = 1e-6  # a feature that varies less than this among the training cases says nothing

SMALLEST_PROBABILITY = 1e-6  # below, one case would decide on its own


def fit_case_head(head: CaseHead, vectors: np.ndarray, targets: Sequence[Target], weights: np.ndarray, penalty: float) -> float:
    """Fit standardization and linear layer of a head; a convex problem, solved to the end and the same every time.

    Every block of features (means, maxima, measures) gets the same total variance, so that hundreds of channels do not drown a dozen
    measures.

    Args:
        head: Changed in place.
        vectors: ``(n, F)``; NaN where a measure does not exist.
        targets: What is true of each; all known.
        weights: ``(n,)``, mean 1.
        penalty: Factor of half the squared weights of the layer, beside the mean loss.

    Returns:
        The final mean loss without the penalty.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    known = np.isfinite(vectors)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, vectors, 0).sum(axis=0) / counts
    deviation = np.sqrt(np.where(known, (vectors - mean) ** 2, 0).sum(axis=0) / counts)
    block_size = np.concatenate([np.full(size, size) for size in head.blocks])
    scale = np.where(deviation > SMALLEST_DEVIATION, 1 / np.maximum(deviation, SMALLEST_DEVIATION) / np.sqrt(block_size), 0.0)
    device = head.feature_mean.device
    head.output.requires_grad_(True)  # a head may be fitted again
    head.to("cpu").double()  # in two steps, both ways: not every device knows float64
    head.feature_mean.copy_(torch.from_numpy(mean))
    head.feature_scale.copy_(torch.from_numpy(scale))
    inputs = head.standardize(torch.from_numpy(vectors))
    target, sample_weights = _target_tensor(head.description.task, targets), torch.from_numpy(np.asarray(weights, dtype=np.float64))
    loss_of = ClassificationLoss({"task": head.description.task}, label_smoothing=0.0)

    def mean_loss() -> Tensor:
        # by sample, since the loss as a whole works in float32
        losses, _ = loss_of.sample_losses("task", head.output(inputs), target)
        return (losses * sample_weights).mean()

    layer = head.output.score if head.description.task.is_ordinal else head.output
    with torch.no_grad():
        # Thresholds of ordinal classes keep their start, equal shares. Everything else starts at 0, not at what was drawn: a constant that
        # all biases share would stay in them.
        for parameter in layer.parameters():
            parameter.zero_()
    optimizer = torch.optim.LBFGS(
        head.output.parameters(), lr=1, max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = mean_loss() + penalty / 2 * (layer.weight**2).sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        loss = float(mean_loss())
    head.float().to(device)
    head.requires_grad_(False)
    return loss


def grow_trees(head: CaseHead, vectors: np.ndarray, targets: Sequence[Target], weights: np.ndarray, number: int, seed: int) -> None:
    """Give a fitted head decision trees on the measures: randomized ones, whose mean is what a small number of cases can carry.

    They are grown on noisy copies of the measures, see :func:`noisy_copies`.

    Args:
        head: Changed in place; its feature means are set.
        vectors: ``(n, F)``; NaN where a measure does not exist.
        targets: What is true of each; all known.
        weights: ``(n,)``.
        number: Of trees.
        seed: Of the random splits.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    measures = head.measures_of(torch.from_numpy(np.asarray(vectors, dtype=np.float64))).cpu().numpy()
    truth = tree_targets(head.description.task, _target_tensor(head.description.task, targets)).numpy()
    # Squared error on indicators of the classes is the Gini impurity, and serves every type of task.
    forest = ExtraTreesRegressor(number, min_samples_leaf=COPIES_OF_A_LEAF, random_state=seed)
    forest.fit(noisy_copies(measures, seed), np.tile(truth, (NOISY_COPIES, 1)), sample_weight=np.tile(weights, NOISY_COPIES))
    head.set_trees(TreeEnsemble.from_scikit_learn(forest).to(head.feature_mean.device))


def noisy_copies(measures: np.ndarray, seed: int) -> np.ndarray:
    """``(NOISY_COPIES * n, F)``: all cases, again and again, with Gaussian noise in proportion to the deviation of each measure."""
    noise = np.random.default_rng(seed).standard_normal((NOISY_COPIES, *measures.shape))
    return (measures + NOISE_OF_MEASURES * measures.std(axis=0) * noise).reshape(-1, measures.shape[1])


def _target_tensor(task: ClassificationTask, targets: Sequence[Target]) -> Tensor:
    if task.is_multilabel:
        return torch.from_numpy(np.stack([np.asarray(target, dtype=np.float32) for target in targets]))
    return torch.tensor([int(target) for target in targets])


# --- shares of the vote


Fold = tuple[list[int], list[int]]  # rows that a head is fitted to, and rows that it answers


def add_trees(
    head: CaseHead,
    vectors: np.ndarray,
    targets: Sequence[Target],
    weights: np.ndarray,
    *,
    penalty: float,
    number: int,
    seed: int,
    folds: Sequence[Fold],
) -> float:
    """Grow the trees of a fitted head and give them that share of the vote which answers the cases of inner folds best.

    Args:
        head: Fitted by :func:`fit_case_head` to the same vectors, targets, weights and penalty; changed in place.
        vectors: ``(n, F)``; NaN where a measure does not exist.
        targets: What is true of each; all known.
        weights: ``(n,)``, mean 1.
        penalty: Of the linear layer.
        number: Of trees.
        seed: Of the random splits.
        folds: Made by :func:`inner_folds`; without any, trees and linear layer have half of the vote each.

    Returns:
        The share of the trees, 0 to 1.
    """
    linear, trees = np.zeros((2, len(targets), head.description.task.num_classes))
    answered = np.zeros(len(targets), dtype=bool)
    for training, held_out in folds:
        inner = copy.deepcopy(head)
        known = [targets[i] for i in training]
        fit_case_head(inner, vectors[training], known, weights[training], penalty)
        grow_trees(inner, vectors[training], known, weights[training], number, seed)
        linear[held_out], trees[held_out] = _votes(inner, vectors[held_out])
        answered[held_out] = True
    head.tree_share.fill_(_best_share(head.description.task, targets, weights, linear, trees, answered))
    grow_trees(head, vectors, targets, weights, number, seed)
    return float(head.tree_share)


def inner_folds(identifiers: Sequence[str], task: str, case_labels: CaseLabels, groups: Mapping[str, str] | None) -> list[Fold]:
    """Row numbers of folds of the training cases, stratified by the task's classes, cases of a group and views of a case together.

    None, if there are fewer than two groups, or a class is in one alone: then there is nothing to choose by.

    Args:
        identifiers: Case of each row.
        task: Whose classes.
        case_labels: The classes; known for all rows.
        groups: Group of each case; a case without one is its own.
    """
    cases = sorted({str(identifier) for identifier in identifiers})
    group_of = {case: (groups or {}).get(case, case) for case in cases}
    of_task = CaseLabels({task: case_labels.tasks[task]}, {case: {task: case_labels.target(case, task)} for case in cases})
    smallest = min((len(found) for found in _groups_by_class(of_task, task, group_of).values()), default=0)
    if min(smallest, len(set(group_of.values()))) < 2:
        return []
    splits, _ = generate_stratified_split(cases, of_task, group_of, n_splits=min(NUM_FOLDS, smallest))
    folds = []
    for split in splits:
        held_out = set(split["val"])
        rows = [index for index, identifier in enumerate(identifiers) if str(identifier) in held_out]
        folds.append((sorted(set(range(len(identifiers))) - set(rows)), rows))
    return folds


def _groups_by_class(case_labels: CaseLabels, task: str, group_of: Mapping[str, str]) -> dict[str, set[str]]:
    """Groups that have a case of the class, by class; absent ones are left out."""
    found: dict[str, set[str]] = {}
    for case, group in group_of.items():
        target = case_labels.target(case, task)
        present = np.flatnonzero(target) if case_labels.tasks[task].is_multilabel else [target]
        for index in present:
            found.setdefault(case_labels.tasks[task].classes[int(index)], set()).add(group)
    return found


def _votes(head: CaseHead, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What linear layer and trees say of cases, ``(n, number of classes)`` each."""
    task, inputs = head.description.task, torch.from_numpy(np.asarray(vectors))
    with torch.no_grad():
        linear = class_probabilities(task, head.classify_case(inputs))
        trees = class_shares(task, head.trees(head.measures_of(inputs)))
    return linear.cpu().double().numpy(), trees.cpu().double().numpy()


def _best_share(
    task: ClassificationTask, targets: Sequence[Target], weights: np.ndarray, linear: np.ndarray, trees: np.ndarray, answered: np.ndarray
) -> float:
    """Share of the trees with the smallest weighted log loss; a Beta(2, 2) prior draws it to one half where cases are few."""
    shares = np.linspace(0, 1, 101)[1:-1]
    losses = [(_log_losses(task, targets, share * trees + (1 - share) * linear) * weights)[answered].sum() for share in shares]
    return float(shares[np.argmin(np.asarray(losses) - np.log(shares * (1 - shares)))])


def _log_losses(task: ClassificationTask, targets: Sequence[Target], probabilities: np.ndarray) -> np.ndarray:
    """Log loss of each case ``(n,)``; of several labels at once their mean."""
    bounded = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if task.is_multilabel:
        true = np.stack([np.asarray(target, dtype=bool) for target in targets])
        return -np.log(np.where(true, bounded, 1 - bounded)).mean(axis=1)
    return -np.log(bounded[np.arange(len(targets)), np.asarray(targets, dtype=int)])
