from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from nnunetv2.evaluation.classification_metrics import (
    BIN_EDGES,
    classification_summary,
    reliability,
    roc_curve,
    task_report,
    weighted_scores,
)
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, ClassificationTask

MULTICLASS = ClassificationTask(name="t", classes=("a", "b", "c"))
ORDINAL = ClassificationTask(name="t", classes=("a", "b", "c"), type="ordinal")
MULTILABEL = ClassificationTask(name="t", classes=("a", "b", "c"), type="multilabel")


def random_table(seed: int, task: ClassificationTask) -> tuple[CaseLabels, dict[str, dict[str, np.ndarray]]]:
    """Cases with ties in their probabilities and unknown labels; in every third table the class b is absent."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(12, 60))
    if task.is_multilabel:
        probabilities = np.round(rng.random((number, 3)), 1)
        truth = (rng.random((number, 3)) < 0.4).astype(np.float32)
        truth[:, 1] *= seed % 3 > 0
    else:
        probabilities = np.round(rng.dirichlet(np.ones(3), number), 1)
        truth = rng.choice([0, 2] if seed % 3 == 0 else [0, 1, 2], number)
    unknown = rng.random(number) < 0.2
    rows = {f"case_{i}": {"t": None if unknown[i] else truth[i]} for i in range(number)}
    return CaseLabels({"t": task}, rows), {f"case_{i}": {"t": probabilities[i]} for i in range(number)}


KINDS = ("all classes", "absent", "one class", "never predicted", "certain", "one case")


def difficult_table(seed: int, kind: str, task_type: str, number_of_classes: int) -> tuple[ClassificationTask, np.ndarray, np.ndarray]:
    """A task, targets and probabilities with many ties, also between the highest classes of a case."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number_of_classes])
    number = 1 if kind == "one case" else int(rng.integers(5, 40))
    allowed = np.arange(number_of_classes)
    if kind in ("absent", "one class"):
        allowed = rng.permutation(allowed)[: 1 if kind == "one class" else max(1, number_of_classes - 2)]
    task = ClassificationTask(name="t", classes=tuple("abcdef"[:number_of_classes]), type=task_type)
    if task_type == "multilabel":
        truth = (rng.random((number, number_of_classes)) < 0.5) & np.isin(np.arange(number_of_classes), allowed)
        if kind == "one class":
            truth[:, allowed] = True  # every case has it, so nothing ranks below it
        probabilities = rng.integers(0, 5, (number, number_of_classes)) / 4
        truth = truth.astype(np.float32)
    else:
        truth = rng.choice(allowed, number)
        shares = rng.integers(0, 4, (number, number_of_classes)).astype(float)
        shares[shares.sum(axis=1) == 0] = 1
        probabilities = shares / shares.sum(axis=1, keepdims=True)
    if kind == "never predicted":
        probabilities[:, 0] = 0
        if task_type != "multilabel":
            probabilities[probabilities.sum(axis=1) == 0] = 1
            probabilities[:, 0] = 0
            probabilities /= probabilities.sum(axis=1, keepdims=True)
    if kind == "certain":
        probabilities = np.round(probabilities) if task_type == "multilabel" else np.eye(number_of_classes)[probabilities.argmax(axis=1)]
    return task, truth, probabilities


def calibration_error_by_a_loop(happened: np.ndarray, probability: np.ndarray) -> float:
    """Bins (0, 0.1], ..., (0.9, 1]; a probability of 0 is in the first."""
    error = 0.0
    for index in range(10):
        low, high = BIN_EDGES[index], BIN_EDGES[index + 1]
        inside = [i for i, p in enumerate(probability) if (index == 0 or p > low) and (index == 9 or p <= high)]
        if inside:
            share_right = sum(bool(happened[i]) for i in inside) / len(inside)
            mean_probability = sum(float(probability[i]) for i in inside) / len(inside)
            error += len(inside) / len(probability) * abs(share_right - mean_probability)
    return error


def log_loss(truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """As scikit-learn has it since 1.5; before, rows that do not sum to one were scaled."""
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    epsilon = np.finfo(probabilities.dtype).eps
    of_truth = probabilities[np.arange(len(truth)), np.searchsorted(labels, truth)]
    return float(-np.mean(np.log(np.clip(of_truth, epsilon, 1 - epsilon))))


def mean_of_defined(score: Callable, classes: Iterable[int]) -> float:
    values = [score(k) for k in classes]
    return float(np.mean([value for value in values if not math.isnan(value)])) if not all(map(math.isnan, values)) else math.nan


def area(truth: np.ndarray, scores: np.ndarray) -> float:
    return metrics.roc_auc_score(truth, scores) if 0 < truth.sum() < len(truth) else math.nan


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("number_of_classes", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", ["multiclass", "ordinal", "multilabel"])
def test_difficult_tables_agree_with_scikit_learn(task_type: str, kind: str, number_of_classes: int, seed: int) -> None:
    """Two or four classes, of which some are absent, in every case, or never predicted."""
    classes = range(number_of_classes)
    task, truth, p = difficult_table(seed, kind, task_type, number_of_classes)
    report = task_report(task, list(truth), list(p))
    if task.is_multilabel:
        table, decided = truth.astype(bool), p >= 0.5
        present = [k for k in classes if table[:, k].any()]
        rates = [mean_of_numbers([recall(table[:, k], decided[:, k]), recall(~table[:, k], ~decided[:, k])]) for k in classes]
        expected = {
            "accuracy": metrics.accuracy_score(truth, decided),
            "balanced_accuracy": mean_of_defined(lambda k: rates[k], present),
            "mcc": mean_of_defined(lambda k: metrics.matthews_corrcoef(table[:, k], decided[:, k]), present),
            "macro_average_precision": mean_of_defined(lambda k: metrics.average_precision_score(table[:, k], p[:, k]), present),
            "brier": np.mean([metrics.brier_score_loss(table[:, k], p[:, k], pos_label=True) for k in classes]),
            "ece": np.mean([calibration_error_by_a_loop(table[:, k], p[:, k]) for k in classes]),
            "log_loss": np.mean([log_loss(table[:, k], p[:, k], labels=[False, True]) for k in classes]),
        }
        assert report["confusion"] == [metrics.confusion_matrix(table[:, k], decided[:, k], labels=[False, True]).tolist() for k in classes]
    else:
        choice = p.argmax(axis=1)
        table, decided = np.equal.outer(truth, classes), np.equal.outer(choice, classes)
        highest = p.max(axis=1)
        expected = {
            "accuracy": metrics.accuracy_score(truth, choice),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, choice),
            "mcc": metrics.matthews_corrcoef(truth, choice),
            "brier": sum(metrics.brier_score_loss(table[:, k], p[:, k], pos_label=True) for k in classes),
            "ece": calibration_error_by_a_loop(truth == choice, highest),
            "log_loss": log_loss(truth, p, labels=list(classes)),
        }
        if task.is_ordinal:
            expected["quadratic_kappa"] = metrics.cohen_kappa_score(truth, choice, labels=list(classes), weights="quadratic")
        assert report["confusion"] == metrics.confusion_matrix(truth, choice, labels=list(classes)).tolist()
    expected["macro_f1"] = np.mean([metrics.f1_score(table[:, k], decided[:, k], zero_division=0) for k in classes])
    expected["auroc"] = mean_of_defined(lambda k: area(table[:, k], p[:, k]), classes)
    assert report["scores"] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert_classes_agree(report, table, decided, p)


def recall(truth: np.ndarray, decided: np.ndarray) -> float:
    return metrics.recall_score(truth, decided) if truth.any() else math.nan


def mean_of_numbers(values: Sequence[float]) -> float:
    return mean_of_defined(lambda k: values[k], range(len(values)))


def known_arrays(labels: CaseLabels, table: dict) -> tuple[np.ndarray, np.ndarray]:
    known = [i for i in table if labels.target(i, "t") is not None]
    assert 0 < len(known) < len(table)
    return np.array([labels.target(i, "t") for i in known]), np.array([table[i]["t"] for i in known])


def expected_calibration_error(happened: np.ndarray, probability: np.ndarray) -> float:
    """From scikit-learn's reliability curve and the number of cases in each of its bins."""
    frequency, mean = calibration_curve(happened, probability, n_bins=10, strategy="uniform")
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], probability), minlength=10)
    return np.abs(frequency - mean) @ counts[counts > 0] / len(probability)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:.*do not sum to one")
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("task", [MULTICLASS, ORDINAL])
def test_exclusive_classes_agree_with_scikit_learn(seed, task) -> None:
    labels, table = random_table(seed, task)
    report = classification_summary({"t": task}, table, labels)["tasks"]["t"]
    truth, probabilities = known_arrays(labels, table)
    decided = probabilities.argmax(axis=1)
    present = [k for k in range(3) if k in truth]
    assert len(present) == (2 if seed % 3 == 0 else 3)
    expected = {
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, decided),
        "macro_f1": metrics.f1_score(truth, decided, labels=[0, 1, 2], average="macro", zero_division=0),
        "auroc": np.mean([metrics.roc_auc_score(truth == k, probabilities[:, k]) for k in present]),
        "mcc": metrics.matthews_corrcoef(truth, decided),
        "brier": np.sum([np.mean((probabilities[:, k] - (truth == k)) ** 2) for k in range(3)]),
        "ece": expected_calibration_error(truth == decided, probabilities.max(axis=1)),
        "log_loss": log_loss(truth, probabilities, labels=[0, 1, 2]),
    }
    assert expected["brier"] == pytest.approx(sum(metrics.brier_score_loss(truth == k, probabilities[:, k]) for k in range(3)))
    if task is ORDINAL:
        expected["quadratic_kappa"] = metrics.cohen_kappa_score(truth, decided, labels=[0, 1, 2], weights="quadratic")
    assert report["scores"] == pytest.approx(expected, abs=1e-9)
    assert report["confusion"] == metrics.confusion_matrix(truth, decided, labels=[0, 1, 2]).tolist()
    assert_classes_agree(report, np.equal.outer(truth, range(3)), np.equal.outer(decided, range(3)), probabilities)


@pytest.mark.parametrize("seed", range(9))
def test_multilabel_agrees_with_scikit_learn(seed) -> None:
    labels, table = random_table(seed, MULTILABEL)
    report = classification_summary({"t": MULTILABEL}, table, labels)["tasks"]["t"]
    truth, probabilities = known_arrays(labels, table)
    decided = probabilities >= 0.5
    present = [k for k in range(3) if truth[:, k].any()]
    assert len(present) == (2 if seed % 3 == 0 else 3)

    def mean(score, predictions, classes=present) -> float:
        return np.mean([score(truth[:, k], predictions[:, k]) for k in classes])

    expected = {
        "accuracy": metrics.accuracy_score(truth, decided),
        "balanced_accuracy": mean(metrics.balanced_accuracy_score, decided),
        "macro_f1": metrics.f1_score(truth, decided, average="macro", zero_division=0),
        "auroc": mean(metrics.roc_auc_score, probabilities),
        "mcc": mean(metrics.matthews_corrcoef, decided),
        "macro_average_precision": mean(metrics.average_precision_score, probabilities),
        "brier": mean(metrics.brier_score_loss, probabilities, range(3)),
        "ece": mean(expected_calibration_error, probabilities, range(3)),
        "log_loss": mean(lambda t, p: log_loss(t, p, labels=[0, 1]), probabilities, range(3)),
    }
    assert report["scores"] == pytest.approx(expected, abs=1e-9)
    assert report["confusion"] == metrics.multilabel_confusion_matrix(truth, decided).tolist()
    assert_classes_agree(report, truth.astype(bool), decided, probabilities)


def assert_classes_agree(report: dict, truth: np.ndarray, decided: np.ndarray, probabilities: np.ndarray) -> None:
    """Each class against the rest; arrays ``(cases, K)``."""
    for k, values in enumerate(report["per_class"].values()):
        t, d, p = truth[:, k], decided[:, k], probabilities[:, k]
        expected = {
            "n": t.sum(),
            "precision": metrics.precision_score(t, d, zero_division=0),
            "recall": metrics.recall_score(t, d, zero_division=0),
            "specificity": metrics.recall_score(~t, ~d, zero_division=0),
            "f1": metrics.f1_score(t, d, zero_division=0),
            "auroc": area(t, p),
            "average_precision": metrics.average_precision_score(t, p) if t.any() else math.nan,
        }
        assert values == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("task", [MULTICLASS, ORDINAL, MULTILABEL])
def test_a_case_of_weight_two_counts_like_the_case_twice(task) -> None:
    labels, table = random_table(1, task)
    targets, probabilities = known_arrays(labels, table)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(targets)))
    weighted = weighted_scores(task, list(targets), list(probabilities), weights)
    for row, counts in enumerate(weights):
        repeated = task_report(task, list(targets.repeat(counts, axis=0)), list(probabilities.repeat(counts, axis=0)))
        assert {name: values[row] for name, values in weighted.scores.items()} == pytest.approx(repeated["scores"], abs=1e-12)
        assert weighted.confusion[row].tolist() == repeated["confusion"]
        for label, values in weighted.per_class.items():
            assert {name: value[row] for name, value in values.items()} == pytest.approx(repeated["per_class"][label], nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_roc_curve_agrees_with_scikit_learn(seed) -> None:
    labels, table = random_table(seed, MULTILABEL)
    truth, probabilities = known_arrays(labels, table)
    expected = metrics.roc_curve(truth[:, 0], probabilities[:, 0], drop_intermediate=False)
    for rates, expected_rates in zip(roc_curve(truth[:, 0] > 0, probabilities[:, 0]), expected[:2], strict=True):
        np.testing.assert_allclose(rates, expected_rates)


def test_calibration_error_and_brier_score_by_hand() -> None:
    """Two cases at 0.8, of which one is right, and one right case at 0.6: |0.5 - 0.8| * 2/3 + |1 - 0.6| * 1/3."""
    probabilities = [np.array(p) for p in ([0.8, 0.1, 0.1], [0.8, 0.2, 0.0], [0.2, 0.6, 0.2])]
    scores = task_report(MULTICLASS, [0, 1, 1], probabilities)["scores"]
    assert scores["ece"] == pytest.approx(1 / 3)
    assert scores["brier"] == pytest.approx(((0.04 + 0.01 + 0.01) + (0.64 + 0.64) + (0.04 + 0.16 + 0.04)) / 3)
    assert scores["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3)
    (low, high) = reliability(MULTICLASS, [0, 1, 1], probabilities)["predicted class"]
    assert low == pytest.approx({"low": 0.5, "high": 0.6, "n": 1, "mean_probability": 0.6, "frequency": 1})
    assert high == pytest.approx({"low": 0.7, "high": 0.8, "n": 2, "mean_probability": 0.8, "frequency": 0.5})


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
