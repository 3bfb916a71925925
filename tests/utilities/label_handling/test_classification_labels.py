"""Classes of cases: what dataset.json declares, what labels.csv says, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2.utilities.label_handling.classification_labels import (
    CaseLabels,
    ClassificationTask,
    class_table,
    classification_tasks,
    copy_label_tables,
    find_label_problems,
    load_case_groups,
    readable_labels,
    structure_values,
)

SUBTYPE = {"classes": ["mucinous", "serous", "other"], "evidence": ["lesion"], "context": ["pancreas"]}
FINDINGS = {"type": "multilabel", "classes": ["calcification", "cyst", "stone"]}
DATASET = {
    "labels": {"background": 0, "pancreas": [1, 2], "lesion": 2, "ignore": 3},
    "file_ending": ".nii.gz",
    "classification": {"subtype": SUBTYPE, "findings": FINDINGS},
}


def task(name: str = "subtype", **content: Any) -> ClassificationTask:
    return ClassificationTask.from_dict(name, content)


def raw_folder(tmp_path: Path, labels: str | bytes | None = None, groups: str | None = None) -> Path:
    folder = tmp_path / "raw"
    (folder / "imagesTr").mkdir(parents=True)
    if labels is not None:
        (folder / "labels.csv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    if groups is not None:
        (folder / "groups.csv").write_text(groups)
    return folder


# What is declared


def test_a_task_has_defaults_and_survives_a_round_trip() -> None:
    plain = task(classes=["a", "b"])
    assert (plain.type, plain.evidence, plain.context, plain.flip_sensitive_axes, plain.weight) == ("multiclass", (), (), (), 1.0)
    content = {
        "type": "ordinal",
        "classes": ["G1", "G2", "G3"],
        "evidence": ["lesion"],
        "flip_sensitive_axes": [0],
        "weight": 0.5,
        "mine": 1,
    }
    ordinal = task(**content)
    assert (ordinal.num_classes, ordinal.num_logits, ordinal.is_ordinal, ordinal.is_multilabel) == (3, 2, True, False)
    assert ClassificationTask.from_dict("subtype", json.loads(json.dumps(ordinal.to_dict()))) == ordinal
    assert ordinal.to_dict()["mine"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "`classes` is missing"),
        ({"classes": "abc"}, "`classes` is 'abc'"),
        ({"classes": ["a"]}, "has 1 entries, expected 2"),
        ({"classes": [], "type": "multilabel"}, "expected 1"),
        ({"classes": ["a", "a"]}, "repeat: a"),
        ({"classes": ["a", ""]}, "class name ''"),
        ({"classes": ["a", "b;c"]}, "'b;c'"),
        ({"classes": [0, 1]}, "must be text"),
        ({"classes": ["a", "none"], "type": "multilabel"}, "'none'"),
        ({"classes": ["a", "b"], "type": "regression"}, "'regression'"),
        ({"classes": ["a", "b"], "flip_sensitive_axes": [3]}, r"\[3\]"),
        ({"classes": ["a", "b"], "weight": -1}, "`weight` is -1"),
        ({"classes": ["a", "b"], "weight": float("nan")}, "`weight` is nan"),
    ],
)
def test_a_faulty_task_says_what_is_wrong(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"subtype.*{message}"):
        task(**content)


@pytest.mark.parametrize("name", ["identifier", "error", "two words", "1st", ""])
def test_names_of_tasks_are_python_identifiers_and_no_other_column(name: str) -> None:
    with pytest.raises(ValueError, match="Python identifier"):
        task(name, classes=["a", "b"])


def test_every_problem_of_every_task_is_in_one_report() -> None:
    tasks = {
        "a": {"classes": ["x"], "evidence": ["tumor"]},
        "b": {"type": "?", "classes": ["x", "y"]},
        "c": {**SUBTYPE, "context": ["ignore"]},
        "d": 3,
    }
    with pytest.raises(ValueError, match="dataset.json") as error:
        classification_tasks({**DATASET, "classification": tasks})
    for part in ("'a': `classes`", "'a': `evidence` names 'tumor'", "'b': `type`", "'c': `context` names 'ignore'", "'d'"):
        assert part in str(error.value)


def test_without_the_key_there_are_no_tasks_and_no_labels(tmp_path: Path) -> None:
    plain = {"labels": {"background": 0}}
    assert classification_tasks(plain) == {}
    folder = raw_folder(tmp_path, "not,a,table", "neither,is,this\n")
    labels = CaseLabels.load(folder, plain)
    assert (labels.tasks, labels.target("x", "subtype"), labels.class_counts(["x"])) == ({}, None, {})
    assert load_case_groups(folder, plain) is None
    assert find_label_problems(folder, plain, ["x"]) == ([], [])
    copy_label_tables(folder, tmp_path / "preprocessed", plain, ["x"])
    assert not (tmp_path / "preprocessed" / "labels.csv").exists()


def test_structures_give_label_values_with_regions_flattened() -> None:
    assert structure_values(["lesion", "pancreas"], DATASET) == (1, 2)
    assert structure_values([], DATASET) == ()


# Cells


def test_cells_are_class_names_or_indices() -> None:
    subtype = task(**SUBTYPE)
    assert [subtype.parse_cell(cell) for cell in ("serous", " other ", "1", "1.0", "", "  ")] == [1, 2, 1, 1, None, None]


@pytest.mark.parametrize("cell", ["Serous", "3", "-1", "1.5", "nan", "serous;other", "none"])
def test_other_cells_are_errors_that_name_the_classes(cell: str) -> None:
    with pytest.raises(ValueError, match="mucinous, serous, other"):
        task(**SUBTYPE).parse_cell(cell)


def test_indices_do_not_count_where_a_class_is_named_like_a_number() -> None:
    grade = task("grade", classes=["1", "2", "NA"])
    assert [grade.parse_cell(cell) for cell in ("1", "2", "NA")] == [0, 1, 2]
    with pytest.raises(ValueError, match="'0'"):
        grade.parse_cell("0")


def test_multilabel_cells_join_names() -> None:
    findings = task("findings", **FINDINGS)
    assert findings.parse_cell("stone; calcification").tolist() == [1, 0, 1]
    assert findings.parse_cell("none").tolist() == [0, 0, 0]
    assert findings.parse_cell("1").tolist() == [0, 1, 0]
    assert findings.parse_cell("") is None
    assert findings.parse_cell("cyst").dtype == np.float32
    for cell in ("cyst;tumor", "cyst;", "none;cyst"):
        with pytest.raises(ValueError, match="findings"):
            findings.parse_cell(cell)


@pytest.mark.parametrize("cell", ["mucinous", ""])
def test_targets_turn_back_into_cells(cell: str) -> None:
    assert task(**SUBTYPE).format_target(task(**SUBTYPE).parse_cell(cell)) == cell


@pytest.mark.parametrize("cell", ["calcification;stone", "none", ""])
def test_multilabel_targets_turn_back_into_cells(cell: str) -> None:
    assert task(**FINDINGS).format_target(task(**FINDINGS).parse_cell(cell)) == cell


# Tables


def test_a_table_is_read_as_text_with_unknown_cells_and_further_columns(tmp_path: Path) -> None:
    table = "\ufeffidentifier,age,findings, subtype\r\n001,50,none,serous\r\n\r\n002,,stone;cyst,\r\n003\r\n"
    labels = CaseLabels.load(raw_folder(tmp_path, table.encode("utf-8")), DATASET)
    assert labels.target("001", "subtype") == 1
    assert labels.target("001", "findings").tolist() == [0, 0, 0]
    assert labels.target("002", "subtype") is None
    assert labels.target("002", "findings").tolist() == [0, 1, 1]
    assert labels.target("003", "subtype") is None
    assert labels.target("not in the table", "subtype") is None
    assert labels.target(np.str_("001"), "subtype") == 1


def test_counts_show_unknown_cases_apart(tmp_path: Path) -> None:
    labels = CaseLabels.load(raw_folder(tmp_path, "identifier,subtype,findings\na,serous,cyst;stone\nb,serous,\nc,,none\n"), DATASET)
    assert labels.class_counts(["a", "b", "c", "d"]) == {
        "subtype": {"mucinous": 0, "serous": 2, "other": 0, "unknown": 2},
        "findings": {"calcification": 0, "cyst": 1, "stone": 1, "unknown": 2},
    }
    assert labels.class_counts(["d"])["subtype"]["unknown"] == 1
    assert labels.class_counts([])["subtype"] == {"mucinous": 0, "serous": 0, "other": 0, "unknown": 0}
    text = class_table(labels, ["a", "b", "c", "d"])
    assert "subtype (multiclass)" in text
    assert any(line.split() == ["serous", "2"] for line in text.splitlines())


def test_every_faulty_row_is_reported_at_once_by_case(tmp_path: Path) -> None:
    table = "identifier,subtype,findings\ncase_1,serus,cyst\n\ncase_2,other,tumor\ncase_2,other,cyst\n,other,cyst\ncase_3,other,cyst\n"
    with pytest.raises(ValueError, match=r"Case labels of") as error:
        CaseLabels.load(raw_folder(tmp_path, table), DATASET)
    text = str(error.value)
    for part in (
        "line 2: case case_1: 'serus'",
        "line 4: case case_2: 'tumor'",
        "line 5: case case_2 stands there twice",
        "line 6: the identifier is empty",
    ):
        assert part in text
    assert "case_3" not in text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("identifier,subtype\na,serous\n", "column findings is missing"),
        ("case,subtype,findings\na,serous,cyst\n", "begin with identifier"),
        ("identifier;subtype;findings\na;serous;cyst\n", "commas"),
        ("identifier,subtype,findings,subtype\na,serous,cyst,other\n", "more than one column subtype"),
        ("", "begin with identifier"),
        (b"identifier,subtype,findings\na,ser\xf6s,cyst\n", "UTF-8"),
    ],
)
def test_a_faulty_header_or_encoding_is_an_error_that_names_the_file(tmp_path: Path, table: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)labels.csv.*{message}"):
        CaseLabels.load(raw_folder(tmp_path, table), DATASET)


def test_a_missing_table_is_an_error_that_shows_the_header(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="identifier,subtype,findings"):
        CaseLabels.load(folder, DATASET)
    with pytest.raises(FileNotFoundError, match="'classes.csv'"):
        CaseLabels.load(folder, {**DATASET, "case_labels": "classes.csv"})


def test_the_table_may_have_another_name_or_stand_inline(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, "identifier,subtype,findings\na,other,none\n")
    (folder / "classes.csv").write_text("identifier,subtype,findings\na,serous,none\n")
    assert CaseLabels.load(folder, {**DATASET, "case_labels": "classes.csv"}).target("a", "subtype") == 1
    inline = {"a": {"subtype": "mucinous", "findings": ["cyst", "stone"]}, "b": {"subtype": 2, "findings": []}, "c": {"subtype": None}}
    labels = CaseLabels.load(folder, {**DATASET, "case_labels": inline})
    assert [labels.target(case, "subtype") for case in "abc"] == [0, 2, None]
    assert labels.target("a", "findings").tolist() == [0, 1, 1]
    assert labels.target("b", "findings").tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="not so for x"):
        CaseLabels.load(folder, {**DATASET, "case_labels": {"x": "serous"}})


def test_groups_from_a_table_or_inline(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, groups="identifier,patient\na,p1\nb,p1\n")
    assert load_case_groups(folder, DATASET) == {"a": "p1", "b": "p1"}
    assert load_case_groups(folder, {"labels": {}, "case_groups": "groups.csv"}) == {"a": "p1", "b": "p1"}
    assert load_case_groups(folder, {"labels": {}, "case_groups": {"a": 7}}) == {"a": "7"}
    assert load_case_groups(folder, {"labels": {}}) is None


def test_faulty_groups_are_reported_at_once(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, groups="identifier,patient\na,p1\nb,\na,p2\n,p3\n")
    with pytest.raises(
        ValueError, match=r"(?s)groups\.csv.*line 3: case b has no group.*line 4: case a stands there twice.*line 5: the identifier"
    ):
        load_case_groups(folder, DATASET)


# The whole dataset


def test_everything_wrong_with_a_dataset_is_in_one_report(tmp_path: Path) -> None:
    table = "identifier,subtype,findings\na,serous,cyst\nb,serous,tumor\nx,serous,\n"
    folder = raw_folder(tmp_path, table, groups="identifier,patient\na,p1\nb,p1\ny,p2\n")
    errors, warnings = find_label_problems(folder, DATASET, ["a", "b", "c"])
    text = "\n".join(errors)
    for part in (
        "case b: 'tumor'",
        "case x: has class labels, but there is no image",
        "case y: in the groups, but there is no image",
        "case c: has no group",
        "'subtype': no case has the class mucinous, other",
        "'subtype': only the class serous is in use",
        "'findings': no case has the class calcification, stone",
    ):
        assert part in text, part
    assert len(warnings) == 1
    assert warnings[0].startswith("1 of 3 cases")


def test_a_task_that_is_declared_wrongly_does_not_hide_the_problems_of_the_table(tmp_path: Path) -> None:
    tasks = {**DATASET["classification"], "grade": {"classes": ["G1", "G2"], "evidence": ["tumour"]}, "broken": {"classes": "a"}}
    folder = raw_folder(tmp_path, "identifier,subtype,findings\na,serous,cyst\nb,foo,none\n")
    dataset_json = {**DATASET, "classification": tasks}
    text = "\n".join(find_label_problems(folder, dataset_json, ["a", "b"])[0])
    for part in ("`evidence` names 'tumour'", "`classes` is 'a'", "the column grade is missing", "case b: 'foo' is no class of subtype"):
        assert part in text, part
    assert "'grade': no case has the class" not in text  # its column is missing, which says more
    assert readable_labels(folder, dataset_json).class_counts(["a", "b"])["subtype"]["serous"] == 1


def test_a_sound_dataset_has_no_problems(tmp_path: Path) -> None:
    table = "identifier,subtype,findings\na,serous,cyst\nb,mucinous,calcification;stone\nc,other,\n"
    assert find_label_problems(raw_folder(tmp_path, table), DATASET, ["a", "b", "c"]) == ([], [])


def test_a_faulty_declaration_and_a_missing_table_are_problems_too(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path)
    assert "labels.csv does not exist" in "\n".join(find_label_problems(folder, DATASET, ["a"])[0])
    assert "`type`" in "\n".join(
        find_label_problems(folder, {**DATASET, "classification": {"a": {"type": "?", "classes": ["x", "y"]}}}, ["a"])[0]
    )


def test_the_preprocessed_folder_gets_normalised_tables_that_win(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, groups="identifier,patient,more\nb,p1,1\na,p1,2\nz,p9,3\n")
    (folder / "classes.csv").write_text("\ufeffidentifier,more,findings,subtype\nb,9,stone; cyst,1.0\na,9,,other\n", encoding="utf-8")
    dataset_json = {**DATASET, "case_labels": "classes.csv"}
    preprocessed = tmp_path / "preprocessed"
    copy_label_tables(folder, preprocessed, dataset_json, ["a", "b"])
    assert (preprocessed / "labels.csv").read_text() == "identifier,subtype,findings\na,other,\nb,serous,cyst;stone\n"
    assert (preprocessed / "groups.csv").read_text() == "identifier,group\na,p1\nb,p1\n"
    assert sorted(path.name for path in preprocessed.iterdir()) == ["groups.csv", "labels.csv"]
    assert CaseLabels.load(preprocessed, dataset_json).target("b", "subtype") == 1
    assert load_case_groups(preprocessed, dataset_json) == {"a": "p1", "b": "p1"}
    inline = {**DATASET, "case_labels": {"b": {"subtype": "mucinous"}}}
    assert CaseLabels.load(preprocessed, inline).target("b", "subtype") == 1


def test_labels_without_an_image_stop_the_copy_before_anything_is_written(tmp_path: Path) -> None:
    folder = raw_folder(tmp_path, "identifier,subtype,findings\na,serous,\nx,serous,\n", groups="identifier,patient\na,p1\n")
    with pytest.raises(ValueError, match="(?s)case x: has class labels.*case c: has no group"):
        copy_label_tables(folder, tmp_path / "preprocessed", DATASET, ["a", "c"])
    assert not (tmp_path / "preprocessed").exists()
