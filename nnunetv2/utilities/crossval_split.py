"""Folds: nnU-Net's, and stratified and grouped ones where a dataset has classes or groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from nnunetv2.utilities.label_handling.classification_labels import CaseLabels

SEED = 12345  # nnU-Net's
NUM_FOLDS = 5
TRAINING_SHARE = 0.8  # of a random split beyond the file

Split = dict[str, list[str]]


def generate_crossval_split(train_identifiers: Sequence[str], seed: int = SEED, n_splits: int = NUM_FOLDS) -> list[Split]:
    """nnU-Net's folds: shuffled, neither stratified nor grouped.

    Raises:
        ValueError: If there are fewer cases than folds.
    """
    from sklearn.model_selection import KFold

    identifiers = np.asarray(train_identifiers)
    if len(identifiers) < n_splits:
        raise ValueError(
            f"There are {len(identifiers)} training cases ({', '.join(map(str, identifiers))}), too few for {n_splits} folds. Add cases, "
            "write a splits_final.json of your own into the preprocessed dataset folder, or train with fold 'all'."
        )
    folds = KFold(n_splits=n_splits, shuffle=True, random_state=seed).split(identifiers)
    return [_split(identifiers, training, validation) for training, validation in folds]


def generate_stratified_split(
    identifiers: Sequence[str],
    case_labels: CaseLabels,
    groups: Mapping[str, str] | None = None,
    n_splits: int = NUM_FOLDS,
    seed: int = SEED,
) -> tuple[list[Split], list[str]]:
    """Folds in which groups stay together and the classes of all tasks are spread evenly.

    Args:
        identifiers: Cases.
        case_labels: Their classes; a case's stratum is its joint label over all tasks, unknown being a value of its own.
        groups: Group of each case; None: every case is its own.
        n_splits: Number of folds; fewer if there are fewer groups.
        seed: Of the shuffle.

    Returns:
        The folds, and warnings about classes that are not in every fold.

    Raises:
        ValueError: If a case has no group, or there are fewer than two groups.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    cases = np.asarray(sorted(str(i) for i in identifiers))
    missing = [c for c in cases if groups is not None and c not in groups]
    if missing:
        raise ValueError(f"{len(missing)} cases have no group: {', '.join(missing[:10])}. Add them to groups.csv.")
    group_of = np.asarray([groups[c] if groups is not None else c for c in cases])
    n_groups = len(np.unique(group_of))
    if n_groups < 2:
        raise ValueError(f"The {len(cases)} cases form {n_groups} group(s), expected two or more so that some can be held out.")
    warnings = []
    if n_groups < n_splits:
        warnings.append(f"There are only {n_groups} groups of cases, so there are {n_groups} folds instead of {n_splits}.")
        n_splits = n_groups
    strata = _merged_strata(cases, case_labels, group_of, n_splits)
    try:
        with catch_warnings():
            simplefilter("ignore", UserWarning)  # of strata with few members; the classes that suffer are named below
            folds = list(StratifiedGroupKFold(n_splits).split(cases, strata, _shuffled_numbers(group_of, seed)))
        if any(len(validation) == 0 or len(training) == 0 for training, validation in folds):
            raise ValueError("a fold is empty")
    except ValueError as error:
        warnings.append(f"The folds could not be stratified by class ({error}); they are grouped only.")
        folds = list(GroupKFold(n_splits).split(cases, groups=group_of))
    splits = [_split(cases, training, validation) for training, validation in folds]
    return splits, warnings + _absent_classes(splits, case_labels)


def check_splits(splits: Any, file: str) -> None:
    """Raise ValueError unless the content of ``splits_final.json`` is a list of folds."""
    parts = ("train", "val")
    is_list = isinstance(splits, list) and len(splits) > 0
    if is_list and all(isinstance(fold, Mapping) and all(isinstance(fold.get(part), list) for part in parts) for fold in splits):
        return
    raise ValueError(
        f"{file} does not hold folds. Expected a list with one entry for each fold, "
        '[{"train": ["case_001", ...], "val": ["case_002", ...]}, ...]. Correct it, or remove it so that it is made anew.'
    )


def split_beyond_file(keys: Sequence[str], fold: int, groups: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
    """nnU-Net's random 80:20 split for a fold that ``splits_final.json`` does not have; by group where there are groups."""
    random = np.random.RandomState(seed=SEED + fold)
    keys = sorted(str(k) for k in keys)
    units = keys if groups is None else sorted({groups[k] for k in keys})
    drawn = random.choice(len(units), int(len(units) * TRAINING_SHARE), replace=False)
    if groups is None:
        training = [keys[i] for i in drawn]
        return training, [keys[i] for i in range(len(keys)) if i not in set(drawn.tolist())]
    training_groups = {units[i] for i in drawn}
    return [k for k in keys if groups[k] in training_groups], [k for k in keys if groups[k] not in training_groups]


def _merged_strata(cases: np.ndarray, case_labels: CaseLabels, group_of: np.ndarray, n_splits: int) -> np.ndarray:
    """Stratum of each case as a number; those present in fewer groups than there are folds become one."""
    names = ["|".join(task.format_target(case_labels.target(c, name)) for name, task in case_labels.tasks.items()) for c in cases]
    groups_by_stratum: dict[str, set[str]] = {}
    for name, group in zip(names, group_of, strict=True):
        groups_by_stratum.setdefault(name, set()).add(group)
    merged = ["(rare)" if len(groups_by_stratum[name]) < n_splits else name for name in names]
    return np.unique(merged, return_inverse=True)[1]


def _shuffled_numbers(group_of: np.ndarray, seed: int) -> np.ndarray:
    """Number of each case's group in a shuffled order of the groups.

    ``StratifiedGroupKFold(shuffle=True)`` of scikit-learn up to 1.7 mixes up which group holds which classes, so that its folds
    are not stratified. With groups numbered in this order every release gives, without shuffling, the folds that later ones
    give with it.
    """
    groups, group_index = np.unique(group_of, return_inverse=True)
    order = np.arange(len(groups))
    np.random.RandomState(seed).shuffle(order)
    return np.argsort(order)[group_index]


def _absent_classes(splits: Sequence[Split], case_labels: CaseLabels) -> list[str]:
    """A warning for every class that some fold does not hold out."""
    warnings = []
    counts_by_fold = [case_labels.class_counts(split["val"]) for split in splits]
    for name, task in case_labels.tasks.items():
        for label in task.classes:
            counts = [counts[name][label] for counts in counts_by_fold]
            if 0 in counts:
                warnings.append(f"Task {name}: the class {label} is not in every fold; cases by fold: {', '.join(map(str, counts))}.")
    return warnings


def _split(identifiers: np.ndarray, training: np.ndarray, validation: np.ndarray) -> Split:
    """One entry of ``splits_final.json``."""
    return {"train": [str(i) for i in identifiers[training]], "val": [str(i) for i in identifiers[validation]]}
