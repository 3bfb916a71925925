from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics

from nnunetv2.evaluation.classification_metrics import classification_summary, task_report
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

MULTICLASS = ClassificationTask(name="t", classes=("a", "b", "c"))
ORDINAL = ClassificationTask(name="t", classes=("a", "b", "c"), type="ordinal")
MULTILABEL = ClassificationTask(name="t", classes=("a", "b", "c"), type="multilabel")


def random_case(seed: int, number: int = 40) -> tuple[list[int], np.ndarray]:
    """Targets and probabilities with ties, as rounded predictions have them."""
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.dirichlet(np.ones(3), number), 1)
    return rng.integers(0, 3, number).tolist(), probabilities


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", [MULTICLASS, ORDINAL])
def test_exclusive_classes_agree_with_scikit_learn(seed, task) -> None:
    truth, probabilities = random_case(seed)
    decided = probabilities.argmax(axis=1)
    report = task_report(task, truth, list(probabilities))
    expected = {
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, decided),
        "macro_f1": metrics.f1_score(truth, decided, labels=[0, 1, 2], average="macro", zero_division=0),
        "auroc": np.mean([metrics.roc_auc_score(np.equal(truth, k), probabilities[:, k]) for k in range(3)]),
    }
    if task is ORDINAL:
        expected["quadratic_kappa"] = metrics.cohen_kappa_score(truth, decided, weights="quadratic")
    assert report["scores"] == pytest.approx(expected, abs=1e-9)
    assert report["confusion"] == metrics.confusion_matrix(truth, decided, labels=[0, 1, 2]).tolist()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, decided, labels=[0, 1, 2], zero_division=0)
    for k, values in enumerate(report["per_class"].values()):
        assert [values[name] for name in ("precision", "recall", "f1", "n")] == pytest.approx(
            [precision[k], recall[k], f1[k], support[k]], abs=1e-9
        )
        assert values["average_precision"] == pytest.approx(
            metrics.average_precision_score(np.equal(truth, k), probabilities[:, k]), abs=1e-9
        )
        assert values["specificity"] == pytest.approx(metrics.recall_score(np.not_equal(truth, k), decided != k), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_agrees_with_scikit_learn(seed) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (30, 3)).astype(np.float32)
    probabilities = np.round(rng.random((30, 3)), 1)
    decided = probabilities >= 0.5
    report = task_report(MULTILABEL, list(truth), list(probabilities))
    expected = {
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": np.mean([metrics.balanced_accuracy_score(truth[:, k], decided[:, k]) for k in range(3)]),
        "macro_f1": metrics.f1_score(truth, decided, average="macro", zero_division=0),
        "auroc": metrics.roc_auc_score(truth, probabilities, average="macro"),
        "macro_average_precision": metrics.average_precision_score(truth, probabilities, average="macro"),
    }
    assert report["scores"] == pytest.approx(expected, abs=1e-9)
    assert report["confusion"] == metrics.multilabel_confusion_matrix(truth, decided).tolist()


def test_a_class_that_no_case_has_counts_in_f1_but_not_in_auroc() -> None:
    report = task_report(MULTICLASS, [0, 1, 0, 1], [np.array(p) for p in ([0.8, 0.2, 0], [0.1, 0.9, 0], [0.7, 0.3, 0], [0.2, 0.8, 0])])
    assert report["scores"]["macro_f1"] == pytest.approx(2 / 3)
    assert report["scores"]["auroc"] == 1
    assert report["scores"]["balanced_accuracy"] == 1
    assert math.isnan(report["per_class"]["c"]["auroc"])


def test_only_known_cases_are_scored() -> None:
    labels = CaseLabels({"t": MULTICLASS}, {"p": {"t": 0}, "q": {"t": 2}, "unlabelled": {"t": None}, "not_predicted": {"t": 1}})
    table = {name: {"t": np.array([0.6, 0.3, 0.1])} for name in ("p", "q", "unlabelled", "without_row")}
    summary = classification_summary({"t": MULTICLASS}, table, labels)
    report = summary["tasks"]["t"]
    assert (report["n"], report["unknown"]) == (2, 2)
    assert report["scores"]["accuracy"] == 0.5
    assert report["confusion"] == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert summary["case_score"] == report["scores"]["macro_f1"]


def test_nothing_known_gives_nan_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in (MULTICLASS, ORDINAL, MULTILABEL):
            summary = classification_summary({"t": task}, {"case": {"t": np.ones(3) / 3}}, CaseLabels({"t": task}, {}))
            assert summary["tasks"]["t"]["n"] == 0
            assert all(math.isnan(value) for value in summary["tasks"]["t"]["scores"].values())
            assert math.isnan(summary["case_score"])


def test_the_case_score_is_the_mean_over_tasks() -> None:
    tasks = {
        "m": ClassificationTask(name="m", classes=("a", "b")),
        "o": ClassificationTask(name="o", classes=("a", "b", "c"), type="ordinal"),
    }
    labels = CaseLabels(tasks, {"p": {"m": 0, "o": 0}, "q": {"m": 1, "o": 2}})
    table = {
        "p": {"m": np.array([0.9, 0.1]), "o": np.array([0.1, 0.8, 0.1])},
        "q": {"m": np.array([0.1, 0.9]), "o": np.array([0.1, 0.1, 0.8])},
    }
    summary = classification_summary(tasks, table, labels)
    kappa = metrics.cohen_kappa_score([0, 2], [1, 2], weights="quadratic", labels=[0, 1, 2])
    assert summary["case_score"] == pytest.approx((1 + kappa) / 2)
