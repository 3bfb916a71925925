from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask
from nnunetv2.utilities.label_handling.classification_table import (
    join_parts,
    part_file,
    read_classification_csv,
    read_classification_rows,
    write_classification_csv,
)

TASKS = {
    "subtype": ClassificationTask(name="subtype", classes=("a", "b")),
    "findings": ClassificationTask(name="findings", classes=("x", "y"), type="multilabel"),
}


def row(a: float, x: float, y: float) -> dict[str, np.ndarray]:
    return {"subtype": np.array([a, 1 - a]), "findings": np.array([x, y])}


def test_the_table_has_one_row_per_case_in_sorted_order(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    write_classification_csv(file, TASKS, {"case_2": row(0.25, 0.75, 0.5), "case_1": row(0.75, 0.125, 0.25)})
    assert file.read_text().splitlines() == [
        "identifier,subtype,subtype_probability_a,subtype_probability_b,findings,findings_probability_x,findings_probability_y",
        "case_1,a,0.75,0.25,none,0.125,0.25",
        "case_2,b,0.25,0.75,x;y,0.75,0.5",
    ]


def test_a_failed_case_gets_no_class_but_its_error(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    write_classification_csv(file, TASKS, {"good": row(0.75, 0, 0), "bad": "RuntimeError: cannot read\nthe file, sorry"})
    lines = file.read_text().splitlines()
    assert lines[0].endswith(",error")
    assert lines[1] == 'bad,,,,,,,"RuntimeError: cannot read the file, sorry"'
    assert lines[2] == "good,a,0.75,0.25,none,0.0,0.0,"
    assert set(read_classification_csv(file, TASKS)) == {"good"}
    assert read_classification_rows(file, TASKS)["bad"] == "RuntimeError: cannot read the file, sorry"


def test_probabilities_survive_in_full_precision(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    written = row(1 / 3, 1e-9, 0.1 + 0.2)
    write_classification_csv(file, TASKS, {"case": written})
    read = read_classification_csv(file, TASKS)["case"]
    assert all(np.array_equal(read[name], written[name]) for name in TASKS)


def test_a_table_of_another_model_is_refused(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    file.write_text("identifier,subtype\ncase,a\n")
    with pytest.raises(ValueError, match="subtype_probability_a"):
        read_classification_csv(file, TASKS)


@pytest.mark.parametrize("cell", ["", "high", "nan", "-0.1", "3.2"])
def test_what_is_no_probability_is_refused(tmp_path, cell) -> None:
    file = tmp_path / "classification.csv"
    write_classification_csv(file, TASKS, {"case": row(0.5, 0, 0.125)})
    file.write_text(file.read_text().replace("0.125", cell))
    with pytest.raises(ValueError, match="line 2: case case has a probability that is no number from 0 to 1"):
        read_classification_csv(file, TASKS)


def test_a_case_twice_is_refused(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    write_classification_csv(file, TASKS, {"case": row(0.5, 0, 0)})
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="case stands there twice"):
        read_classification_csv(file, TASKS)


def test_raw_probabilities_stand_behind_calibrated_ones(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    raw = {"good": row(0.9, 0.75, 0.25)}
    write_classification_csv(file, TASKS, {"good": row(0.75, 0.625, 0.375), "bad": "broken"}, raw)
    header, bad, good = file.read_text().splitlines()
    assert header.endswith(
        "findings_probability_y,subtype_raw_probability_a,subtype_raw_probability_b,"
        "findings_raw_probability_x,findings_raw_probability_y,error"
    )
    assert bad == "bad" + "," * 11 + "broken"
    assert good.startswith("good,a,0.75,0.25,x,0.625,0.375,0.9,")
    assert read_classification_csv(file, TASKS)["good"]["findings"].tolist() == [0.625, 0.375]
    assert read_classification_csv(file, TASKS, raw=True)["good"]["findings"].tolist() == [0.75, 0.25]
    plain = tmp_path / "plain.csv"
    write_classification_csv(plain, TASKS, raw)
    assert read_classification_csv(plain, TASKS, raw=True)["good"]["findings"].tolist() == [0.75, 0.25]


def test_parts_keep_raw_probabilities(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    for part, name in enumerate("ab"):
        write_classification_csv(part_file(file, part), TASKS, {name: row(0.75, 1, 0)}, {name: row(0.9, 1, 0)})
    assert join_parts(file, TASKS, 2)
    assert read_classification_csv(file, TASKS, raw=True)["b"]["subtype"][0] == 0.9
    assert read_classification_csv(file, TASKS)["b"]["subtype"][0] == 0.75


def test_parts_are_joined_when_the_last_is_there(tmp_path) -> None:
    file = tmp_path / "classification.csv"
    write_classification_csv(part_file(file, 1), TASKS, {"b": row(0.25, 1, 0)})
    assert not join_parts(file, TASKS, 2)
    assert not file.exists()
    write_classification_csv(part_file(file, 0), TASKS, {"a": row(0.75, 0, 1), "c": "broken"})
    assert join_parts(file, TASKS, 2)
    assert [line.split(",")[0] for line in file.read_text().splitlines()[1:]] == ["a", "b", "c"]
    assert part_file(file, 1).name == "classification_part1.csv"
