from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.evaluation.calibration_fit import fit_calibration, mean_log_loss
from nnunetv2.utilities.label_handling.class_calibration import logits_of, probabilities_of
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

MULTICLASS = ClassificationTask(name="t", classes=("a", "b", "c"))
ORDINAL = ClassificationTask(name="t", classes=("a", "b", "c"), type="ordinal")
MULTILABEL = ClassificationTask(name="t", classes=("a", "b"), type="multilabel")


def miscalibrated(task: ClassificationTask, number: int, temperatures, offsets=0.0, seed: int = 0) -> tuple[list, list[np.ndarray]]:
    """Labels drawn from true probabilities, and predictions that the temperatures and offsets turn into these."""
    rng = np.random.default_rng(seed)
    if task.is_multilabel:
        true = rng.beta(1, 1, (number, task.num_classes))
        targets = list((rng.random(true.shape) < true).astype(np.float32))
    else:
        true = rng.dirichlet(np.ones(task.num_classes), number)
        targets = [int(rng.choice(task.num_classes, p=row)) for row in true]
    raw = (logits_of(task.type, true) - np.asarray(offsets)) * np.asarray(temperatures)
    return targets, list(probabilities_of(task.type, raw))


@pytest.mark.parametrize(("task", "temperatures"), [(MULTICLASS, [2.5] * 3), (ORDINAL, [0.6] * 2), (MULTILABEL, [2.0, 0.5])])
def test_the_temperatures_of_many_cases_are_found(task, temperatures) -> None:
    fitted = fit_calibration(task, *miscalibrated(task, 3000, temperatures))
    assert fitted.temperatures == pytest.approx(temperatures, rel=0.12)
    assert not any(fitted.offsets)
    targets, raw = miscalibrated(task, 2000, temperatures, seed=1)
    assert mean_log_loss(task, targets, [fitted.apply(row) for row in raw]) < mean_log_loss(task, targets, raw) - 0.01


@pytest.mark.parametrize(("task", "offsets"), [(MULTICLASS, [0.8, 0, -0.8]), (ORDINAL, [-0.4, 0.7]), (MULTILABEL, [1.0, -0.5])])
def test_vector_scaling_also_finds_shifts(task, offsets) -> None:
    fitted = fit_calibration(task, *miscalibrated(task, 3000, 1.5, offsets), method="vector")
    found = np.array(fitted.offsets)
    assert found - (found.mean() if task is MULTICLASS else 0) == pytest.approx(offsets, abs=0.2)
    assert fitted.temperatures == pytest.approx([1.5] * task.num_logits, rel=0.15)


@pytest.mark.parametrize("method", ["temperature", "vector"])
@pytest.mark.parametrize("task", [MULTICLASS, ORDINAL, MULTILABEL])
def test_few_cases_change_little_and_very_few_nothing(task, method) -> None:
    targets, raw = miscalibrated(task, 24, 3.0)
    few = fit_calibration(task, targets, raw, method)
    many = fit_calibration(task, *miscalibrated(task, 2000, 3.0), method)
    assert max(few.temperatures) < max(many.temperatures)
    nothing = fit_calibration(task, targets[:19], raw[:19], method)
    assert nothing.is_identity and "19 cases" in nothing.report["reason"]


def test_perfect_predictions_stay_within_the_bounds() -> None:
    targets = [i % 3 for i in range(3000)]
    fitted = fit_calibration(MULTICLASS, targets, [np.eye(3)[t] * 0.1 + 0.3 for t in targets], "vector")
    assert min(fitted.temperatures) == pytest.approx(0.1)
    assert max(map(abs, fitted.offsets)) <= 3


def test_a_class_that_hardly_any_case_has_gets_no_parameter() -> None:
    targets, raw = miscalibrated(MULTILABEL, 400, [2.0, 2.0])
    targets = [np.array([target[0], i < 3], np.float32) for i, target in enumerate(targets)]
    fitted = fit_calibration(MULTILABEL, targets, raw, "vector")
    assert fitted.temperatures[0] > 1.2 and (fitted.temperatures[1], fitted.offsets[1]) == (1, 0)
    assert "with or without b" in fitted.report["reason"]


def test_the_same_cases_give_the_same_numbers() -> None:
    data = miscalibrated(MULTICLASS, 200, 2.0)
    assert fit_calibration(MULTICLASS, *data, "vector") == fit_calibration(MULTICLASS, *data, "vector")


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ValueError, match="Choose one of temperature, vector"):
        fit_calibration(MULTICLASS, [], [], "isotonic")
