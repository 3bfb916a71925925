"""Pages and calibrations of what cross-validation accumulation and ensembles write."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cross_validations import FULL, TWO, TinyCrossValidation, write_cross_validation
from tiny_datasets import SUBTYPE

from nnunetv2.cli.calibrate_classification import main as calibrate
from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
from nnunetv2.report.collect import Sources, collect
from nnunetv2.report.write_report import write_report
from nnunetv2.utilities.file_io import load_json, save_json


@pytest.fixture
def dataset(nnunet_folders: dict[str, Path]) -> TinyCrossValidation:
    return write_cross_validation(nnunet_folders, classification={"subtype": SUBTYPE})


@pytest.mark.parametrize("several", [False, True], ids=["accumulated", "ensemble"])
def test_pooled_folds_are_reported_as_held_out(dataset, tmp_path, several) -> None:
    out = tmp_path / "pooled"
    if several:
        ensemble_crossvalidations([dataset.results / TWO, dataset.results / FULL], out, (0, 1, 2), 1)
    else:
        accumulate_cv_results(dataset.results / FULL, out, (0, 1, 2), 1)
    content = collect(out, Sources(num_processes=1))
    assert content.seen_in_training == []
    assert len(content.overlaps) == len(content.class_rows) == 6
    write_report(out, tmp_path / "page.html", sources=Sources(num_processes=1))
    page = (tmp_path / "page.html").read_text()
    assert "6 cases were predicted, each by a network that was not trained on it (cross-validation, folds 0, 1, 2 of 3)" in page
    assert "developed on" not in page


def test_a_case_of_its_own_folds_training_is_still_found(dataset, tmp_path) -> None:
    accumulate_cv_results(dataset.results / FULL, tmp_path / "pooled", (0, 1, 2), 1)
    splits = load_json(dataset.preprocessed / "splits_final.json")
    splits[1]["train"].append("case_004")
    save_json(splits, dataset.preprocessed / "splits_final.json")
    assert collect(tmp_path / "pooled", Sources(num_processes=1)).seen_in_training == ["case_004"]


def test_a_calibration_wants_the_model(dataset, tmp_path, capsys) -> None:
    ensemble_crossvalidations([dataset.results / TWO, dataset.results / FULL], tmp_path / "pooled", (0, 1, 2), 1)
    with pytest.raises(SystemExit):
        calibrate(["-m", str(tmp_path / "pooled")])
    assert f"pools the validation of {TWO} and {FULL}" in capsys.readouterr().err
