from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nnunetv2.cli.evaluate_classification import main
from nnunetv2.evaluation.evaluate_classification import evaluate_classification
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv

DATASET = {
    "labels": {"background": 0, "lesion": 1},
    "classification": {
        "subtype": {"classes": ["a", "b", "c"]},
        "findings": {"type": "multilabel", "classes": ["x", "y"]},
        "grade": {"type": "ordinal", "classes": ["G1", "G2", "G3"]},
    },
}
LABELS = """identifier,subtype,findings,grade
case_0,a,x,G1
case_1,b,none,G2
case_2,a,x;y,
case_3,b,,G3
case_4,a,y,G1
only_in_reference,a,x,G1
broken,a,x,G1
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    (tmp_path / "labels.csv").write_text(LABELS)
    rng = np.random.default_rng(0)
    rows = {
        identifier: {"subtype": rng.dirichlet(np.ones(3)), "findings": rng.random(2), "grade": rng.dirichlet(np.ones(3))}
        for identifier in [*(f"case_{i}" for i in range(5)), "only_predicted"]
    }
    write_classification_csv(tmp_path / "predicted.csv", classification_tasks(DATASET), rows | {"broken": "OSError: no such image"})
    return tmp_path


def evaluate(folder: Path, **options) -> dict:
    return evaluate_classification(folder / "predicted.csv", folder / "labels.csv", folder / "dataset.json", folder / "out", **options)


def test_every_case_is_scored_or_named(folder) -> None:
    result = evaluate(folder)
    assert result["cases"] == {
        "scored": [f"case_{i}" for i in range(5)],
        "not_in_reference": ["only_predicted"],
        "not_predicted": ["only_in_reference"],
        "failed": {"broken": "OSError: no such image"},
    }
    counts = {name: (report["n"], report["unknown_cases"]) for name, report in result["tasks"].items()}
    assert counts == {"subtype": (5, []), "findings": (4, ["case_3"]), "grade": (4, ["case_2"])}


def test_tables_and_pictures_are_written(folder) -> None:
    result = evaluate(folder)
    pictures = {f"{task}_{kind}.png" for task in DATASET["classification"] for kind in ("confusion", "roc", "reliability")}
    assert {file.name for file in (folder / "out").iterdir()} == pictures | {"classification_metrics.json", "classification_metrics.csv"}
    for picture in pictures:
        assert (folder / "out" / picture).read_bytes().startswith(b"\x89PNG")
    stored = json.loads((folder / "out" / "classification_metrics.json").read_text())
    assert stored["tasks"]["grade"]["scores"]["quadratic_kappa"] == result["tasks"]["grade"]["scores"]["quadratic_kappa"]
    with open(folder / "out" / "classification_metrics.csv", newline="") as file:
        rows = {(row["task"], row["class"], row["score"]): row for row in csv.DictReader(file)}
    row = rows["subtype", "", "accuracy"]
    assert float(row["value"]) == stored["tasks"]["subtype"]["scores"]["accuracy"]
    assert float(row["low"]) == stored["tasks"]["subtype"]["intervals"]["scores"]["accuracy"]["low"]
    assert (row["n"], row["draws"]) == ("5", "2000")
    assert rows["subtype", "c", "auroc"]["value"] == rows["subtype", "c", "auroc"]["low"] == ""  # no case has this class
    assert rows["findings", "y", "average_precision"]["n"] == "2"


def test_patients_are_resampled_together_where_groups_exist(folder) -> None:
    alone = evaluate(folder)
    assert alone["bootstrap"]["resampled"] == "cases" and alone["tasks"]["subtype"]["groups"] == 5
    groups = "identifier,patient\n" + "".join(f"case_{i},p{i // 2}\n" for i in range(5))
    (folder / "elsewhere.csv").write_text(groups)
    given = evaluate(folder, groups_file=folder / "elsewhere.csv")
    assert given["bootstrap"]["resampled"] == "groups" and given["tasks"]["subtype"]["groups"] == 3
    assert given["tasks"]["subtype"]["scores"] == pytest.approx(alone["tasks"]["subtype"]["scores"], nan_ok=True)
    (folder / "groups.csv").write_text(groups)
    assert evaluate(folder)["tasks"]["subtype"]["groups"] == 3
    (folder / "groups.csv").write_text(groups.replace("case_4,p2\n", ""))
    with pytest.raises(ValueError, match="1 cases have no group: case_4"):
        evaluate(folder)


def test_nothing_in_common_is_an_error_that_shows_both_sides(folder) -> None:
    (folder / "labels.csv").write_text("identifier,subtype,findings,grade\nother,a,x,G1\ncase_0,,,\n")
    with pytest.raises(ValueError, match=r"nothing to score.*case_0, case_1.*2 \(other, case_0\)"):
        evaluate(folder)
    assert not (folder / "out").exists()


def test_wrong_names_of_classes_are_reported_together(folder) -> None:
    (folder / "labels.csv").write_text(LABELS.replace("b,none", "q,none").replace("G3", "G7"))
    with pytest.raises(ValueError, match=r"case_1: 'q' is no class of subtype(.|\n)*case_3: 'G7' is no class of grade"):
        evaluate(folder)


def test_a_dataset_without_classes_is_an_error(folder) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": {}}))
    with pytest.raises(ValueError, match="declares no classes"):
        evaluate(folder)


def test_the_command_prints_scores_intervals_and_what_is_missing(folder, capsys) -> None:
    arguments = ["predicted.csv", "labels.csv", "-djfile", "dataset.json", "-o", "out"]
    main([argument if argument.startswith("-") else str(folder / argument) for argument in arguments])
    printed = capsys.readouterr().out
    assert "5 cases scored" in printed
    assert "1 predicted, but not in the reference: only_predicted" in printed
    assert "1 in the reference, but not predicted: only_in_reference" in printed
    assert "1 failed in the prediction: broken" in printed
    assert "1 without a known label: case_3" in printed
    accuracy = evaluate(folder)["tasks"]["subtype"]["scores"]["accuracy"]
    assert f"accuracy                  {accuracy:.3f} (" in printed
