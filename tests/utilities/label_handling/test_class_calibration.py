from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnunetv2.utilities.label_handling.class_calibration import ClassCalibration, TaskCalibration, logits_of, probabilities_of
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

TASKS = {
    "subtype": ClassificationTask(name="subtype", classes=("a", "b", "c")),
    "findings": ClassificationTask(name="findings", classes=("x", "y", "z"), type="multilabel"),
    "grade": ClassificationTask(name="grade", classes=("G1", "G2", "G3"), type="ordinal"),
}


def of(task: ClassificationTask, temperatures, offsets=None) -> TaskCalibration:
    offsets = offsets or [0] * task.num_logits
    return TaskCalibration(task_type=task.type, classes=task.classes, temperatures=tuple(temperatures), offsets=tuple(offsets))


def calibration(temperature: float = 2.0) -> ClassCalibration:
    tasks = {name: of(task, [temperature] * task.num_logits) for name, task in TASKS.items()}
    return ClassCalibration(method="temperature", heads="joint", aggregation="evidence", tasks=tasks)


@pytest.mark.parametrize("task", TASKS.values())
def test_probabilities_become_logits_and_back(task) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    np.testing.assert_allclose(probabilities_of(task.type, logits_of(task.type, probabilities)), probabilities, atol=1e-9)


def test_temperatures_by_hand() -> None:
    """A temperature of 2 takes the square root of odds."""
    np.testing.assert_allclose(
        of(TASKS["subtype"], [2] * 3).apply([0.64, 0.32, 0.04]), np.sqrt([0.64, 0.32, 0.04]) / np.sqrt([0.64, 0.32, 0.04]).sum()
    )
    np.testing.assert_allclose(of(TASKS["findings"], [2, 1, 0.5]).apply([0.9, 0.3, 0.75]), [0.75, 0.3, 0.9])
    # odds of lying above G1: 9, above G2: 1/9
    np.testing.assert_allclose(of(TASKS["grade"], [2, 2]).apply([0.1, 0.8, 0.1]), [0.25, 0.5, 0.25])
    np.testing.assert_allclose(of(TASKS["findings"], [1] * 3, [np.log(3), 0, 0]).apply([0.5, 0.3, 0.2]), [0.75, 0.3, 0.2])


@pytest.mark.parametrize("task", [TASKS["subtype"], TASKS["grade"]])
def test_certain_predictions_stay_distributions(task) -> None:
    for row in ([1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0], [1 - 1e-12, 1e-12, 0]):
        for temperatures in (0.1, 10):
            calibrated = of(task, [temperatures] * task.num_logits, [-3, 3, 1][: task.num_logits]).apply(row)
            assert np.isfinite(calibrated).all() and (calibrated >= 0).all() and calibrated.sum() == pytest.approx(1)


def test_the_file_gives_the_same_probabilities_to_the_last_digit(tmp_path) -> None:
    original = calibration(1 / 3)
    original.save(tmp_path / "c.json")
    read = ClassCalibration.load(tmp_path / "c.json", TASKS)
    row = {name: np.array([0.7, 0.2, 0.1]) for name in TASKS}
    for name, values in original.apply(row).items():
        assert np.array_equal(read.apply(row)[name], values)
        assert not np.array_equal(values, row[name])


def entry(classes: str = "abc", temperatures: tuple = (1, 1, 1)) -> dict:
    return {"subtype": {"type": "multiclass", "classes": list(classes), "temperatures": temperatures, "offsets": [0] * len(classes)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "no calibration of version 1"),
        ({"tasks": entry(classes="ab", temperatures=(1, 1))}, "other classes.*subtype"),
        ({"tasks": entry(temperatures=(1, 1))}, "2 temperatures"),
        ({"tasks": entry(temperatures=(1, 1, 0))}, "larger than 0"),
        ({"tasks": None}, "damaged"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path, change, message) -> None:
    calibration().save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=rf"c\.json.*{message}"):
        ClassCalibration.load(tmp_path / "c.json", TASKS)


def test_it_belongs_to_one_way_of_predicting() -> None:
    with_evidence = TASKS | {"subtype": ClassificationTask(name="subtype", classes=("a", "b", "c"), evidence=("lesion",))}
    assert calibration().fits(with_evidence, "joint", "evidence")
    assert calibration().fits(TASKS, "joint", "mean")  # no evidence: the same votes
    assert not calibration().fits(with_evidence, "joint", "mean")
    assert not calibration().fits(TASKS, "joint", "max")
    assert not calibration().fits(TASKS, "other", "evidence")
    assert not calibration().fits(TASKS, "joint", "evidence", "checkpoint_best.pth")


def test_a_file_that_names_no_checkpoint_is_of_the_final_one(tmp_path: Path) -> None:
    calibration().save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content.pop("checkpoint") == "checkpoint_final.pth"
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert ClassCalibration.load(tmp_path / "c.json", TASKS).checkpoint == "checkpoint_final.pth"
    (tmp_path / "c.json").write_text(json.dumps(content | {"checkpoint": "checkpoint_best.pth"}))
    assert ClassCalibration.load(tmp_path / "c.json", TASKS).checkpoint == "checkpoint_best.pth"
