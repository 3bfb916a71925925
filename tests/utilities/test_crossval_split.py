"""Folds: nnU-Net's own, recorded from version 2.8.1, and stratified and grouped ones."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.model_selection

from nnunetv2.utilities.crossval_split import check_splits, generate_crossval_split, generate_stratified_split, split_beyond_file
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask, find_label_problems, load_case_groups

IDS = [f"{i:02d}" for i in range(12)]


def case_labels(**cells_by_case: str) -> CaseLabels:
    task = ClassificationTask(name="kind", classes=("a", "b", "c"))
    return CaseLabels({"kind": task}, {case: {"kind": task.parse_cell(cell)} for case, cell in cells_by_case.items()})


def many(**count_by_class: int) -> CaseLabels:
    """Cases ``a0, a1, ... b0, ...`` of each class; ``u`` for unknown."""
    return case_labels(**{f"{label}{i}": label if label != "u" else "" for label, count in count_by_class.items() for i in range(count)})


def test_plain_folds_equal_the_recorded_ones() -> None:
    splits = generate_crossval_split(IDS)
    assert [split["val"] for split in splits] == [["00", "03", "08"], ["07", "10", "11"], ["06", "09"], ["01", "04"], ["02", "05"]]
    assert all(sorted(split["train"] + split["val"]) == IDS for split in splits)
    assert all(type(case) is str for split in splits for case in split["train"])


def test_too_few_cases_for_the_folds_are_an_error_with_ways_out() -> None:
    with pytest.raises(ValueError, match="3 training cases.*5 folds.*fold 'all'"):
        generate_crossval_split(IDS[:3])


def test_a_fold_beyond_the_file_equals_the_recorded_one() -> None:
    training, validation = split_beyond_file(IDS[::-1], 7)
    assert [IDS.index(case) for case in training] == [4, 7, 2, 0, 8, 11, 1, 6, 9]
    assert validation == ["03", "05", "10"]


def test_a_fold_beyond_the_file_keeps_groups_together() -> None:
    groups = {case: str(int(case) // 3) for case in IDS}
    training, validation = split_beyond_file(IDS, 6, groups)
    assert sorted(training + validation) == IDS
    assert validation
    assert not {groups[case] for case in training} & {groups[case] for case in validation}


def test_classes_are_spread_evenly_over_the_folds() -> None:
    labels = many(a=20, b=10, c=5, u=5)
    splits, messages = generate_stratified_split(list(labels.rows), labels)
    assert messages == []
    assert len(splits) == 5
    for split in splits:
        assert Counter(case[0] for case in split["val"]) == {"a": 4, "b": 2, "c": 1, "u": 1}
        assert sorted(split["train"] + split["val"]) == sorted(labels.rows)
    assert sorted(case for split in splits for case in split["val"]) == sorted(labels.rows)


def test_folds_are_stratified_with_older_scikit_learn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = many(a=20, b=10, c=5, u=5)
    expected = generate_stratified_split(list(labels.rows), labels)
    # recorded from StratifiedGroupKFold(5, shuffle=True, random_state=12345) of scikit-learn 1.9
    assert expected[0][0]["val"] == ["a0", "a16", "a17", "a19", "b5", "b6", "c2", "u3"]

    class WithoutShuffling(sklearn.model_selection.StratifiedGroupKFold):
        """Up to 1.7 shuffling separates the groups from their classes."""

        def __init__(self, n_splits: int = 5, shuffle: bool = False, random_state: int | None = None) -> None:
            assert not shuffle
            super().__init__(n_splits)

    monkeypatch.setattr(sklearn.model_selection, "StratifiedGroupKFold", WithoutShuffling)
    assert generate_stratified_split(list(labels.rows), labels) == expected


def test_the_same_cases_in_another_order_give_the_same_folds() -> None:
    labels = many(a=12, b=9)
    first = generate_stratified_split(list(labels.rows), labels)
    assert generate_stratified_split(list(labels.rows)[::-1], labels) == first
    assert generate_stratified_split(list(labels.rows), labels, seed=1) != first


def test_several_tasks_are_stratified_by_their_joint_label() -> None:
    tasks = {
        "kind": ClassificationTask(name="kind", classes=("a", "b")),
        "side": ClassificationTask(name="side", classes=("left", "right")),
        "signs": ClassificationTask(name="signs", classes=("x", "y"), type="multilabel"),
    }
    rows = {f"c{i:02d}": {"kind": i % 2, "side": i // 2 % 2, "signs": np.array([i % 2, 1], np.float32)} for i in range(40)}
    splits, messages = generate_stratified_split(list(rows), CaseLabels(tasks, rows))
    assert messages == []
    for split in splits:
        assert Counter((rows[case]["kind"], rows[case]["side"]) for case in split["val"]) == {(k, s): 2 for k in (0, 1) for s in (0, 1)}


def test_cases_of_a_group_never_stand_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    labels = many(a=40, b=25)
    groups = {case: f"patient{rng.integers(20)}" for case in labels.rows}
    splits, _ = generate_stratified_split(list(labels.rows), labels, groups)
    assert sorted(case for split in splits for case in split["val"]) == sorted(labels.rows)
    for split in splits:
        assert split["val"]
        assert not {groups[case] for case in split["train"]} & {groups[case] for case in split["val"]}


def test_groups_alone_need_no_classes() -> None:
    groups = {case: str(int(case) // 2) for case in IDS}
    splits, messages = generate_stratified_split(IDS, CaseLabels(), groups)
    assert messages == []
    assert [len({groups[case] for case in split["val"]}) >= 1 for split in splits] == [True] * 5


def test_with_fewer_than_five_groups_there_are_as_many_folds() -> None:
    labels = many(a=8, b=4)
    groups = {case: case[-1] if case[-1] in "01" else "2" for case in labels.rows}
    splits, messages = generate_stratified_split(list(labels.rows), labels, groups)
    assert len(splits) == 3
    assert "3 folds instead of 5" in messages[0]
    assert all(len({groups[case] for case in split["val"]}) == 1 for split in splits)


def test_a_class_that_cannot_be_in_every_fold_is_named_with_its_counts() -> None:
    labels = many(a=20, b=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits, messages = generate_stratified_split(list(labels.rows), labels)
    assert sum("b0" in split["val"] for split in splits) == 1
    (about_b,) = [message for message in messages if "class b" in message]
    assert sorted(about_b.split(": ")[-1].rstrip(".").split(", ")) == ["0", "0", "0", "1", "1"]
    assert not any("class a" in message for message in messages)


def test_where_every_class_is_rare_no_fold_is_empty() -> None:
    labels = many(a=3, b=3, c=2)
    groups = {"a0": "g0", "b0": "g0", "a1": "g1", "b1": "g1", "a2": "g2", "b2": "g2", "c0": "g3", "c1": "g4"}
    splits, _ = generate_stratified_split(list(labels.rows), labels, groups)
    assert len(splits) == 5
    assert sorted(case for split in splits for case in split["val"]) == sorted(labels.rows)
    assert all(split["val"] for split in splits)


def test_a_case_without_group_and_a_single_group_are_errors() -> None:
    labels = many(a=3)
    with pytest.raises(ValueError, match="1 cases have no group: a2"):
        generate_stratified_split(list(labels.rows), labels, {"a0": "x", "a1": "y"})
    with pytest.raises(ValueError, match="form 1 group"):
        generate_stratified_split(list(labels.rows), labels, dict.fromkeys(labels.rows, "x"))


def test_hearts_of_a_real_dataset_are_split_by_patient_with_every_class_in_every_fold() -> None:
    folder = Path(os.environ.get("NNUNET_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "acdc"
    if not (folder / "labels.csv").is_file():
        pytest.skip("the real data are not here; NNUNET_TEST_DATA names their folder")
    tasks = {"pathology": {"classes": ["NOR", "MINF", "DCM", "HCM", "RV"]}, "phase": {"classes": ["ED", "ES"]}}
    dataset_json = {"labels": {"background": 0}, "classification": tasks}
    labels, groups = CaseLabels.load(folder, dataset_json), load_case_groups(folder, dataset_json)
    cases = list(labels.rows)
    assert find_label_problems(folder, dataset_json, cases) == ([], [])
    splits, messages = generate_stratified_split(cases, labels, groups)
    assert messages == []
    assert sorted(case for split in splits for case in split["val"]) == sorted(cases)
    for split in splits:
        assert not {groups[case] for case in split["train"]} & {groups[case] for case in split["val"]}
        counts = labels.class_counts(split["val"])["pathology"]
        assert counts.pop("unknown") == 0
        assert all(4 <= count <= 8 for count in counts.values()), counts


@pytest.mark.parametrize("content", [{"a": 1}, [], [1], [{"train": ["a"]}], [{"train": "a", "val": ["b"]}], None])
def test_a_file_that_holds_no_folds_is_named(content) -> None:
    with pytest.raises(ValueError, match="splits.json does not hold folds.*train.*val"):
        check_splits(content, "splits.json")
    check_splits([{"train": ["a"], "val": []}], "splits.json")
