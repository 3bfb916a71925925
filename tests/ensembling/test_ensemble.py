from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_cross_validations import FULL, REGIONS, TWO, TinyCrossValidation, write_cross_validation
from tiny_datasets import FINDINGS, SUBTYPE
from tiny_models import CLASSIFICATION, dataset_json, plans, write_images, write_model

from nnunetv2.cli.ensemble import main
from nnunetv2.cli.evaluate_classification import main as evaluate_classification
from nnunetv2.cli.predict import predict_modelfolder_entry
from nnunetv2.cli.report import main as report
from nnunetv2.ensembling.ensemble import average_probabilities, ensemble_crossvalidations, ensemble_folders
from nnunetv2.utilities.file_io import load_json, save_json, save_pickle
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import (
    has_raw_columns,
    read_classification_csv,
    read_classification_rows,
    write_classification_csv,
)

TASKS = {"subtype": SUBTYPE, "findings": FINDINGS}


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def write_predictions(
    folder: Path, seed: int, *, labels: dict | None = None, cases: tuple[str, ...] = ("a", "b"), **entries: object
) -> Path:
    """A folder of predictions with probabilities, as ``nnUNetv2_predict --save_probabilities`` leaves it."""
    folder.mkdir()
    content = dataset_json(**({"labels": labels} if labels else {}), **entries)
    save_json(content, folder / "dataset.json")
    save_json(plans(), folder / "plans.json")
    channels = 3 if labels is None else 2
    for case in cases:
        probabilities = np.random.default_rng([seed, ord(case)]).dirichlet(np.ones(channels), size=(3, 4, 5)).transpose(3, 0, 1, 2)
        np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities.astype(np.float32))
        geometry = {"spacing": (1.0, 1.0, 2.0), "origin": (5.0, 6.0, 7.0), "direction": tuple(np.eye(3).ravel())}
        save_pickle({"sitk_stuff": geometry, "spacing": [2.0, 1.0, 1.0]}, folder / f"{case}.pkl")
    return folder


def write_classes(folder: Path, rows: dict[str, dict[str, list[float]] | str], raw: dict | None = None) -> None:
    tasks = classification_tasks(load_json(folder / "dataset.json"))
    arrays = {case: row if isinstance(row, str) else {name: np.array(p) for name, p in row.items()} for case, row in rows.items()}
    write_classification_csv(folder / "classification.csv", tasks, arrays, raw)


def test_probabilities_are_averaged_in_float32(tmp_path) -> None:
    for name, value in (("a", 0.25), ("b", 0.75), ("c", 0.8)):
        np.savez_compressed(tmp_path / f"{name}.npz", probabilities=np.full((2, 1, 1, 3), value, dtype=np.float32))
    mean = average_probabilities([tmp_path / f"{name}.npz" for name in "abc"])
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, 0.6, rtol=1e-6)
    np.savez_compressed(tmp_path / "b.npz", probabilities=np.zeros((2, 1, 1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"b.npz has probabilities of shape \(2, 1, 1, 4\)"):
        average_probabilities([tmp_path / "a.npz", tmp_path / "b.npz"])
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="b.npz cannot be read"):
        average_probabilities([tmp_path / "a.npz", tmp_path / "b.npz"])


@pytest.mark.parametrize("with_regions", [False, True])
def test_the_segmentation_is_that_of_the_mean_on_the_images_grid(tmp_path, with_regions) -> None:
    options = {"labels": REGIONS, "regions_class_order": [1, 2]} if with_regions else {}
    folders = [write_predictions(tmp_path / str(seed), seed, **options) for seed in range(3)]
    main(["-i", *map(str, folders), "-o", str(tmp_path / "out"), "-np", "1", "--save_npz"])
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["dataset.json", "plans.json", *(f"{case}{ending}" for case in "ab" for ending in (".nii.gz", ".npz", ".pkl"))]
    )
    for case in "ab":
        mean = np.mean([np.load(folder / f"{case}.npz")["probabilities"] for folder in folders], axis=0)
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{case}.npz")["probabilities"], mean, rtol=1e-6)
        expected = np.where(mean[1] > 0.5, 2, np.where(mean[0] > 0.5, 1, 0)) if with_regions else mean.argmax(0)
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{case}.nii.gz"), expected)
    image = sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz"))
    assert (image.GetOrigin(), image.GetSpacing()) == ((5.0, 6.0, 7.0), (1.0, 1.0, 2.0))
    ensemble_folders([tmp_path / "out"], tmp_path / "again", num_processes=1)  # what it writes can be averaged again
    np.testing.assert_array_equal(read(tmp_path / "again" / "a.nii.gz"), read(tmp_path / "out" / "a.nii.gz"))


def test_members_that_do_not_fit_are_named(tmp_path, capsys) -> None:
    first = write_predictions(tmp_path / "first", 0)
    fewer = write_predictions(tmp_path / "fewer", 1, cases=("a",))
    with pytest.raises(ValueError, match="fewer lacks b"):
        ensemble_folders([first, fewer], tmp_path / "out", num_processes=1)
    other = write_predictions(tmp_path / "other", 1, labels={"background": 0, "liver": 1})
    with pytest.raises(ValueError, match="other/dataset.json has labels .*liver.* same labels"):
        ensemble_folders([first, other], tmp_path / "out", num_processes=1)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        ensemble_folders([first, tmp_path / "nowhere"], tmp_path / "out", num_processes=1)
    with pytest.raises(ValueError, match="is an input as well"):
        ensemble_folders([first, fewer], first, num_processes=1)
    assert not (tmp_path / "out").exists()
    for file in first.glob("*.npz"):
        file.unlink()
    with pytest.raises(SystemExit):
        main(["-i", str(first), "-o", str(tmp_path / "out")])
    assert "--save_probabilities" in capsys.readouterr().err


# --- classes


ROWS = (
    {"a": {"subtype": [0.9, 0.1], "findings": [0.2, 0.9]}, "b": {"subtype": [0.6, 0.4], "findings": [0.0, 0.0]}},
    {"a": {"subtype": [0.2, 0.8], "findings": [0.4, 0.5]}, "b": {"subtype": [0.1, 0.9], "findings": [1.0, 0.0]}},
)
MEAN = {"a": {"subtype": [0.55, 0.45], "findings": [0.3, 0.7]}, "b": {"subtype": [0.35, 0.65], "findings": [0.5, 0.0]}}


@pytest.fixture
def members(tmp_path) -> list[Path]:
    folders = [write_predictions(tmp_path / f"m{seed}", seed, classification=TASKS) for seed in range(2)]
    for folder, rows in zip(folders, ROWS):
        write_classes(folder, rows)
    return folders


def assert_rows(file: Path, expected: dict, raw: bool = False) -> None:
    rows = read_classification_csv(file, classification_tasks(load_json(file.parent / "dataset.json")), raw=raw)
    assert set(rows) == set(expected)
    for case, row in expected.items():
        for task, probabilities in row.items():
            np.testing.assert_allclose(rows[case][task], probabilities, rtol=1e-12)


def test_class_tables_are_averaged_and_decided_anew(members, tmp_path) -> None:
    main(["-i", *map(str, members), "-o", str(tmp_path / "out"), "-np", "1", "--save_npz"])
    assert_rows(tmp_path / "out" / "classification.csv", MEAN)
    lines = (tmp_path / "out" / "classification.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["dark", "bright"]
    assert lines[2].split(",")[4] == "bright_lesion"  # half is enough
    assert np.load(tmp_path / "out" / "a.npz")["classification_subtype"] == pytest.approx([0.55, 0.45])


def test_calibrated_members_are_averaged_as_they_are(members, tmp_path, capsys) -> None:
    raw = {case: {name: np.array(p)[::-1] for name, p in row.items()} for case, row in ROWS[0].items()}
    write_classes(members[0], ROWS[0], raw)
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    assert_rows(tmp_path / "out" / "classification.csv", MEAN)
    assert not has_raw_columns(tmp_path / "out" / "classification.csv", classification_tasks(load_json(members[0] / "dataset.json")))
    assert "m0 holds calibrated" in capsys.readouterr().out
    write_classes(members[1], ROWS[1], raw)
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    assert_rows(tmp_path / "out" / "classification.csv", MEAN)
    assert_rows(tmp_path / "out" / "classification.csv", {"a": {"subtype": [0.1, 0.9]}, "b": {"subtype": [0.4, 0.6]}}, raw=True)


def test_a_case_that_failed_in_a_member_is_never_given_a_class(members, tmp_path) -> None:
    write_classes(members[1], {**ROWS[1], "a": "out of memory"})
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    rows = read_classification_rows(tmp_path / "out" / "classification.csv", classification_tasks(load_json(members[0] / "dataset.json")))
    assert rows["a"] == "m1: out of memory"
    assert not isinstance(rows["b"], str)


def test_tables_of_other_tasks_classes_or_cases_are_refused(members, tmp_path) -> None:
    write_classes(members[1], {"a": ROWS[1]["a"]})
    with pytest.raises(ValueError, match="m1/classification.csv lacks b"):
        ensemble_folders(members, tmp_path / "out", num_processes=1)
    for tasks in ({"subtype": {**SUBTYPE, "classes": ["bright", "dark"]}, "findings": FINDINGS}, {"subtype": SUBTYPE}):
        save_json(dataset_json(classification=tasks), members[1] / "dataset.json")
        with pytest.raises(ValueError, match="m1/dataset.json declares the classes .* same tasks"):
            ensemble_folders(members, tmp_path / "out", num_processes=1)
    assert not (tmp_path / "out").exists()


def test_a_member_without_classes_does_not_vote_and_is_named(members, tmp_path, capsys) -> None:
    (members[1] / "classification.csv").unlink()
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    assert "m1 has no classification.csv" in capsys.readouterr().out
    assert_rows(tmp_path / "out" / "classification.csv", ROWS[0])


def test_classes_alone_can_be_averaged(members, tmp_path) -> None:
    for folder in members:
        for file in [*folder.glob("*.npz"), *folder.glob("*.pkl")]:
            file.unlink()
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    assert_rows(tmp_path / "out" / "classification.csv", MEAN)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_the_mean_can_be_scored_and_reported_on(members, tmp_path) -> None:
    ensemble_folders(members, tmp_path / "out", num_processes=1)
    (tmp_path / "labels.csv").write_text("identifier,subtype,findings\na,dark,upper_half\nb,bright,none\n")
    evaluate_classification(
        [str(tmp_path / "out" / "classification.csv"), str(tmp_path / "labels.csv"), "-djfile", str(tmp_path / "out" / "dataset.json"),
         "-o", str(tmp_path / "scores")]
    )  # fmt: skip
    assert load_json(tmp_path / "scores" / "classification_metrics.json")["tasks"]["subtype"]["scores"]["accuracy"] == 1
    report([str(tmp_path / "out"), "-o", str(tmp_path / "page.html"), "--reference_labels", str(tmp_path / "labels.csv")])
    assert "subtype" in (tmp_path / "page.html").read_text()


def test_what_two_models_predict_is_averaged(tmp_path) -> None:
    """The files of the predictor itself, with classes of several kinds."""
    cases = write_images(tmp_path / "images", number=2)
    for name, poolings in (("first", "mean_max"), ("second", "attention")):
        dataset = dataset_json(classification=CLASSIFICATION)
        model = write_model(tmp_path / name, folds=(0 if name == "first" else 1,), classification=True, pooling=poolings, dataset=dataset)
        fold = next(model.glob("fold_*")).name[5:]
        predict_modelfolder_entry(
            ["-m", str(model), "-i", str(tmp_path / "images"), "-o", str(tmp_path / f"{name}_out"), "-f", fold, "-device", "cpu",
             "--save_probabilities", "--save_cls", "-npp", "0", "-nps", "0", "--disable_tta"]
        )  # fmt: skip
    members = [tmp_path / "first_out", tmp_path / "second_out"]
    main(["-i", *map(str, members), "-o", str(tmp_path / "out"), "-np", "1", "--save_npz"])
    tasks = classification_tasks(load_json(tmp_path / "out" / "dataset.json"))
    assert set(tasks) == set(CLASSIFICATION)
    tables = [read_classification_csv(folder / "classification.csv", tasks) for folder in (*members, tmp_path / "out")]
    for case in cases:
        contents = [np.load(folder / f"{case}.npz") for folder in (*members, tmp_path / "out")]
        assert set(contents[0].files) == set(contents[2].files)
        for key in contents[2].files:
            np.testing.assert_allclose(contents[2][key], (contents[0][key] + contents[1][key]) / 2, atol=1e-6)
        for task in tasks:
            np.testing.assert_allclose(tables[2][case][task], (tables[0][case][task] + tables[1][case][task]) / 2)
        prediction, mean = (sitk.ReadImage(str(folder / f"{case}.nii.gz")) for folder in (members[0], tmp_path / "out"))
        assert prediction.GetOrigin() == mean.GetOrigin()
        assert prediction.GetDirection() == mean.GetDirection()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mean), contents[2]["probabilities"].argmax(0))


# --- cross-validations


@pytest.fixture
def crossval(nnunet_folders) -> TinyCrossValidation:
    return write_cross_validation(
        nnunet_folders,
        classification={"subtype": SUBTYPE},
        certainty={TWO: {"refit": 0.1, "joint": 0.9}, FULL: {"joint": 0.8}},
    )


def test_validation_predictions_of_models_are_averaged(crossval, tmp_path) -> None:
    models = [crossval.results / TWO, crossval.results / FULL]
    ensemble_crossvalidations(models, tmp_path / "out", (0, 1, 2), 1, class_heads=["joint", None])
    for number, case in enumerate(crossval.identifiers):
        files = [model / f"fold_{number % 3}" / "validation" / f"{case}.npz" for model in models]
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{case}.nii.gz"), average_probabilities(files).argmax(0))
    description = load_json(tmp_path / "out" / "cross_validation.json")
    assert description["models"] == [TWO, FULL]
    assert description["fold_of"]["case_004"] == 1
    tasks = classification_tasks(load_json(crossval.raw / "dataset.json"))
    rows = read_classification_csv(tmp_path / "out" / "classification.csv", tasks)
    first = read_classification_csv(models[0] / "fold_1" / "validation" / "classification_joint.csv", tasks)
    second = read_classification_csv(models[1] / "fold_1" / "validation" / "classification.csv", tasks)
    np.testing.assert_allclose(rows["case_004"]["subtype"], (first["case_004"]["subtype"] + second["case_004"]["subtype"]) / 2)
    assert list(load_json(tmp_path / "out" / "classification_summary.json")) == ["ensemble"]
    with pytest.raises(ValueError, match="has no refit heads"):
        ensemble_crossvalidations(models, tmp_path / "out", (0, 1, 2), 1, class_heads=[None, "refit"])


def test_without_overwriting_cases_stay(crossval, tmp_path) -> None:
    models = [crossval.results / TWO, crossval.results / FULL]
    ensemble_crossvalidations(models, tmp_path / "out", (0,), 1)
    marked = tmp_path / "out" / "case_000.nii.gz"
    shutil.copy(tmp_path / "out" / "case_003.nii.gz", marked)
    ensemble_crossvalidations(models, tmp_path / "out", (0, 1), 1, overwrite=False)
    assert marked.read_bytes() == (tmp_path / "out" / "case_003.nii.gz").read_bytes()
    assert (tmp_path / "out" / "case_001.nii.gz").is_file()
    ensemble_crossvalidations(models, tmp_path / "out", (0,), 1)
    assert marked.read_bytes() != (tmp_path / "out" / "case_003.nii.gz").read_bytes()
    assert not (tmp_path / "out" / "case_001.nii.gz").exists()


def test_models_of_other_cases_or_without_probabilities_are_refused(crossval, tmp_path) -> None:
    models = [crossval.results / TWO, crossval.results / FULL]
    (models[1] / "fold_2" / "validation" / "case_005.npz").unlink()
    with pytest.raises(ValueError, match="3d_fullres lacks case_005"):
        ensemble_crossvalidations(models, tmp_path / "out", (0, 1, 2), 1)
    (models[1] / "fold_2" / "validation" / "case_002.npz").unlink()
    with pytest.raises(RuntimeError, match=r"fold 2 has no \*\.npz.*--npz"):
        ensemble_crossvalidations(models, tmp_path / "out", (0, 1, 2), 1)
    assert not (tmp_path / "out").exists()
