"""The page as a whole: what stands in it, what it warns about, and that it is one file that loads nothing and runs nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import weakref
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_datasets import GRADE
from tiny_reports import ALL_TYPES, DATASET, MODEL, class_rows, write_checkpoint, write_material, write_test_predictions

from nnunetv2.cli.report import main
from nnunetv2.report import write_report as module
from nnunetv2.report.collect import Sources
from nnunetv2.report.write_report import write_report
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, classification_tasks
from nnunetv2.utilities.label_handling.classification_table import write_classification_csv

VOID = {"img", "br", "meta", "hr", "col"}
DRAWS = 60  # enough for intervals to exist
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Elements of a page; checks that they are nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.words.append(data)
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(folder: Path, *, output: Path | None = None, worst: int = 2, **sources: Any) -> Page:
    """Write a page and read it."""
    file = write_report(folder, output, sources=Sources(**sources), worst=worst, draws=DRAWS, command="nnUNetv2_report x")
    page = Page(file.read_text(encoding="utf-8"))
    check_is_self_contained(page)
    return page


def check_is_self_contained(page: Page) -> None:
    """Nothing is loaded, nothing runs, every picture has words, every link a target."""
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        if tag == "img":
            assert re.match(r"data:image/(png|svg\+xml);base64,", attributes["src"]) and attributes["alt"]
        if "href" in attributes:
            assert attributes["href"].startswith("#") and attributes["href"][1:] in ids
    policies = [attributes["content"] for tag, attributes in page.elements if tag == "meta" and attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def pictures(page: Page) -> list[str]:
    """Texts of the pictures of cases."""
    return [attributes["alt"] for tag, attributes in page.elements if tag == "img" and attributes["src"].startswith("data:image/png")]


def test_a_model_is_reported_out_of_fold_with_everything(nnunet_folders) -> None:
    material = write_material(nnunet_folders, classification=ALL_TYPES, unknown_every=6)
    page = report(material.model)
    assert {"Summary", "Data and splits", "Training", "Segmentation", "Class: subtype", "Class: findings", "Class: grade"} <= set(
        page.headings
    )
    assert {"Cases to look at", "How this was made", "Sets of heads", "Overall", "Each class"} <= set(page.headings)
    text = page.text
    assert "12 cases from 6 groups (for example patients) were predicted, each by a network that was not trained on it" in text
    assert "cross-validation, folds 0, 1 of 2" in text
    assert "10 cases with a known class; refitted heads (trained after the segmentation). 2 predicted cases without a known class" in text
    assert "subtype: cases of each class (in each fold: training + held out)" in text
    assert "nnUNetv2_train Dataset001_Tiny 3d_fullres 1 -tr nnUNetTrainerMultitask -p nnUNetPlans --seed 7 --epochs 12" in text
    assert "nnUNetv2_report x" in text and "2.9.9" in text and "secret" not in text
    assert "mean_max, stages 1, 2, on case" in text
    charts = [attributes["alt"] for tag, attributes in page.elements if tag == "img" and "svg" in attributes["src"]]
    for start in (
        "Box plot of the Dice",
        "Segmentation loss over",
        "grade: loss over",
        "Confusion matrix of findings",
        "ROC curves of grade",
        "Reliability of subtype",
    ):
        assert sum(text.startswith(start) for text in charts) == 1, start
    assert len(pictures(page)) == 2 * 4  # segmentation and three tasks
    assert all("reference outlines: organ" in text and "prediction outlines: organ" in text for text in pictures(page))
    assert "Saliency maps, which show where the network looked for a class, are missing" in text


def test_the_dice_on_the_page_is_that_of_the_validation(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    summaries = [load_json(material.model / f"fold_{fold}" / "validation" / "summary.json") for fold in (0, 1)]
    dice = [case["metrics"]["2"]["Dice"] for summary in summaries for case in summary["metric_per_case"]]
    row = re.search(r"lesion 12 ([\d.]+) \(([\d.]+)–([\d.]+)\)", report(material.model).text)
    assert row[1] == f"{np.mean(dice):.2f}" and float(row[2]) - 0.005 <= np.mean(dice) <= float(row[3]) + 0.005


def test_names_from_files_cannot_become_markup(nnunet_folders, tmp_path) -> None:
    task = {"classes": ["dark", EVIL]}
    material = write_material(nnunet_folders, classification={"grade": GRADE}, name=EVIL, description=EVIL)
    dataset = load_json(material.model / "dataset.json") | {"classification": {"subtype": task}, "channel_names": {"0": EVIL}}
    dataset["labels"] = {"background": 0, r"$\frac$": 1, EVIL: 2}
    folder = tmp_path / "new" / "predictions"
    write_test_predictions(folder, load_json(material.raw / "dataset.json"), with_classes=False)
    case = '<img src=x onerror=alert(1)>&"'
    shutil.copy(folder / "new_0.nii.gz", folder / f"{case}.nii.gz")
    shutil.copy(tmp_path / "new" / "references" / "new_0.nii.gz", tmp_path / "new" / "references" / f"{case}.nii.gz")
    shutil.copy(tmp_path / "new" / "images" / "new_0_0000.nii.gz", tmp_path / "new" / "images" / f"{case}_0000.nii.gz")
    save_json(dataset, folder / "dataset.json")
    tasks = classification_tasks(dataset)
    cases = [f"new_{i}" for i in range(6)] + [case]
    truth = CaseLabels(tasks, {name: {"subtype": i % 2} for i, name in enumerate(cases)})
    truth.write_csv(tmp_path / "labels.csv")
    rows = class_rows(tasks, truth, cases, 0.6)
    write_classification_csv(folder / "classification.csv", tasks, rows | {"<b>broken</b>": f"OSError: {EVIL}"})
    page = report(
        folder,
        reference_labels=tmp_path / "labels.csv",
        reference_segmentations=tmp_path / "new" / "references",
        images=tmp_path / "new" / "images",
        worst=10,
    )
    written = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in written and "onerror=alert(1)>" not in written
    assert EVIL in page.text and case in page.text and r"$\frac$" in page.text
    assert "1 case could not be predicted and has no class: <b>broken</b>." in page.text


def test_a_plain_model_has_a_useful_page(nnunet_folders) -> None:
    material = write_material(nnunet_folders, classification=None)
    page = report(material.model)
    assert "The dataset declares no classes, so that this model predicts segmentations alone." in page.text
    assert "Segmentation: the 2 cases with the lowest Dice" in page.headings
    assert len(pictures(page)) == 2 and "Saliency" not in page.text


def test_regions_are_named(nnunet_folders) -> None:
    regions = {"background": 0, "whole": [1, 2], "lesion": 2}
    material = write_material(
        nnunet_folders, labels=regions, classification={"subtype": {"classes": ["dark", "bright"]}}, regions_class_order=[1, 2]
    )
    page = report(material.model)
    assert re.search(r"whole 12 0\.\d\d \(", page.text) and re.search(r"lesion 12 0\.\d\d \(", page.text)


def test_saliency_maps_are_shown_beside_the_image(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    for fold in ("fold_0", "fold_1"):
        validation = material.model / fold / "validation"
        (validation / "saliency").mkdir()
        for file in validation.glob("*.nii.gz"):
            image = sitk.Cast(sitk.ReadImage(str(file)) == 2, sitk.sitkFloat32)
            sitk.WriteImage(image, str(validation / "saliency" / f"{file.name[:-7]}_subtype.nii.gz"))
    page = report(material.model)
    assert pictures(page).count("Saliency of subtype over the same slice.") == 2
    assert "Saliency maps, which show where the network looked for a class, are missing" not in page.text


def test_fold_all_and_leaks_are_warned_about(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    splits = load_json(material.preprocessed / "splits_final.json")
    moved = splits[0]["val"][0]
    splits[0]["train"].append(moved)
    save_json(splits, material.preprocessed / "splits_final.json")
    page = report(material.model, worst=0)
    assert f"1 of 12 cases was in the training of the very network that predicted them ({moved})" in page.text
    assert "1 group of cases (for example patients) has cases both in training and in validation (patient0)" in page.text
    assert "each by a network that was not trained on it" not in page.text

    shutil.move(material.model / "fold_0", material.model / "fold_all")
    text = report(material.model, worst=0).text
    assert "Fold all is left out" in text and "6 cases from 3 groups" in text and "cross-validation, fold 1 of 2" in text
    shutil.rmtree(material.model / "fold_1")
    page = report(material.model, worst=0)
    assert "6 cases from 3 groups (for example patients) were predicted by the network that was trained on them (fold all)." in page.text
    assert "6 of 6 cases were in the training of the very network" in page.text


def test_missing_folds_files_and_images_are_said_in_a_sentence(nnunet_folders) -> None:
    material = write_material(nnunet_folders, num_folds=3)
    shutil.rmtree(material.model / "fold_2")
    shutil.rmtree(material.raw)
    for name in ("labels.csv", "splits_final.json"):
        (material.preprocessed / name).unlink()
    for checkpoint in material.model.glob("fold_*/checkpoint_final.pth"):
        checkpoint.unlink()
    text = report(material.model).text
    assert "The splits are not shown" in text and "The true classes of these cases were not found" in text
    assert "No fold has a checkpoint that can be read" in text
    assert "The images are not on this machine" in text
    assert "subtype: what was predicted" in text and "subtype: the 2 cases with the least certain prediction" in text


def test_a_model_before_its_validation_shows_its_curves(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    for fold in (0, 1):
        shutil.rmtree(material.model / f"fold_{fold}" / "validation")
    page = report(material.model)
    assert "No case has been predicted yet." in page.text and "nnUNetv2_train with --val" in page.text
    assert any((attributes.get("alt") or "").startswith("Segmentation loss") for _, attributes in page.elements)


def test_folds_with_different_heads_count_by_those_that_all_have(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    validation = material.model / "fold_1" / "validation"
    shutil.move(validation / "classification_joint.csv", validation / "classification.csv")
    save_json({"joint": {}}, validation / "classification_summary.json")
    page = report(material.model, worst=0)
    assert "Not every fold has refitted heads, so that the joint heads count, which every fold has." in page.text
    assert "12 cases with a known class; joint heads" in page.text


def test_a_damaged_checkpoint_costs_its_curves_only(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    (material.model / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="lacks its curves"):
        page = report(material.model, worst=0)
    assert "Curves of fold 1, 12 epochs." in page.text


def test_predictions_are_scored_with_the_truth_that_is_given(nnunet_folders, tmp_path) -> None:
    material = write_material(nnunet_folders, classification=ALL_TYPES, patients=False)
    folder = write_test_predictions(tmp_path / "new" / "predictions", load_json(material.raw / "dataset.json"))
    root = folder.parent
    page = report(folder, reference_labels=root / "labels.csv", reference_segmentations=root / "references", images=root / "images")
    assert "6 cases were predicted and compared with what is true. None of them is a training case of the dataset." in page.text
    assert "from a comparison made for this report" in page.text and "Class: findings" in page.headings
    assert len(pictures(page)) == 8
    assert "-m with the folder of the model" in page.text
    with_model = report(folder, reference_labels=root / "labels.csv", model_folder=material.model, worst=0)
    assert "Curves of folds 0, 1, 12 epochs." in with_model.text and "No reference segmentation of these cases was found" in with_model.text


def test_predictions_without_truth_show_what_was_predicted(nnunet_folders, tmp_path) -> None:
    material = write_material(nnunet_folders)
    folder = write_test_predictions(tmp_path / "new" / "predictions", load_json(material.raw / "dataset.json"))
    save_json({"list_of_lists_or_source_folder": str(folder.parent / "images")}, folder / "predict_from_raw_data_args.json")
    page = report(folder)
    assert "What is true is not known here" in page.text
    volume = [np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == 2) / 1000 for file in folder.glob("*.nii.gz")]
    assert f"lesion 6 of 6 {np.median(volume):.2g}" in page.text
    assert "subtype: the 2 cases with the least certain prediction" in page.headings
    assert len(pictures(page)) == 2 and "There is no reference segmentation." in page.text


def test_predicted_training_cases_are_scored_with_a_warning(nnunet_folders, tmp_path) -> None:
    material = write_material(nnunet_folders)
    folder = tmp_path / "predictions"
    shutil.copytree(material.model / "fold_0" / "validation", folder)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(material.model / name, folder)
    page = report(folder)
    assert "6 of 6 predicted cases belong to the data that the model was developed on" in page.text
    assert "summary.json in the folder of the predictions" in page.text
    assert "6 cases with a known class; predictions." in page.text


def test_raw_and_calibrated_probabilities_are_compared(nnunet_folders, tmp_path) -> None:
    material = write_material(nnunet_folders)
    folder = write_test_predictions(tmp_path / "new" / "predictions", load_json(material.raw / "dataset.json"))
    tasks = classification_tasks(load_json(folder / "dataset.json"))
    truth = CaseLabels.read_csv(folder.parent / "labels.csv", tasks)
    calibrated, raw = (class_rows(tasks, truth, sorted(truth.rows), certainty) for certainty in (0.5, 0.9))
    write_classification_csv(folder / "classification.csv", tasks, calibrated, raw)
    page = report(folder, reference_labels=folder.parent / "labels.csv", worst=0)
    assert "6 cases with a known class; calibrated predictions." in page.text
    alt = next(a["alt"] for tag, a in page.elements if tag == "img" and a["alt"].startswith("Reliability"))
    assert "predicted class, raw:" in alt and "predicted class, calibrated:" in alt


def test_one_case_is_in_memory_at_a_time(nnunet_folders, monkeypatch) -> None:
    material = write_material(nnunet_folders)
    alive: list[weakref.ref] = []
    load = module.load_case

    def watched(*arguments: Any) -> Any:
        assert not any(reference() is not None for reference in alive)
        case = load(*arguments)
        alive.append(weakref.ref(case.image))
        return case

    monkeypatch.setattr(module, "load_case", watched)
    report(material.model, worst=4)
    assert len(alive) >= 4


def test_a_broken_image_costs_its_picture_only(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    for case in material.identifiers[:3]:
        (material.raw / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(b"no image")
    page = report(material.model, worst=12)
    assert page.text.count("The image cannot be read") == 6 and len(pictures(page)) == 2 * 9


def test_the_command_writes_where_it_is_told(nnunet_folders, tmp_path, capsys) -> None:
    material = write_material(nnunet_folders)
    main([f"{DATASET}/{MODEL}", "-o", str(tmp_path / "page.html"), "--worst", "1"])
    assert f"Written: {tmp_path / 'page.html'}" in capsys.readouterr().out
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert f"nnUNetv2_report {DATASET}/{MODEL} -o" in text and "--worst 1" in text
    main([str(material.model), "--worst", "0"])
    assert (material.model / "report.html").is_file()


def test_the_validation_of_another_checkpoint_is_reported_apart(nnunet_folders, capsys) -> None:
    material = write_material(nnunet_folders)
    for fold in material.model.glob("fold_*"):
        (fold / "checkpoint_best_joint.pth").write_bytes(b"")
        os.utime(fold / "checkpoint_best_joint.pth", (0, 0))
        shutil.copytree(fold / "validation", fold / "validation_best_joint")
    chosen = material.model / "fold_0" / "validation_best_joint" / "summary.json"
    summary = load_json(chosen)
    for case in summary["metric_per_case"]:
        case["metrics"]["2"]["Dice"] = 1.0
    save_json(summary, chosen)
    main([str(material.model), "-chk", "checkpoint_best_joint.pth", "--worst", "0"])
    assert not (material.model / "report.html").exists()
    page = Page((material.model / "report_best_joint.html").read_text(encoding="utf-8")).text
    final = report(material.model).text
    dice = [float(re.search(r"lesion 12 ([\d.]+) ", text)[1]) for text in (page, final)]
    assert dice[0] > dice[1]
    assert "the validation of checkpoint_best_joint.pth" in page and "is newer than its validation" not in page
    os.utime(material.model / "fold_1" / "checkpoint_best_joint.pth", (4e9, 4e9))
    assert "fold_1: checkpoint_best_joint.pth is newer" in report(material.model, checkpoint="checkpoint_best_joint.pth").text


@pytest.mark.parametrize(
    ("checkpoint", "of_model", "message"),
    [
        ("checkpoint_best.pth", True, "No fold .* has a validation_best, .* --val -val_chk checkpoint_best.pth writes. Found: validation"),
        ("best", True, "no name of a checkpoint"),
        ("checkpoint_best.pth", False, "is none. Leave -chk out"),
    ],
)
def test_a_checkpoint_without_a_validation_is_an_error(checkpoint, of_model, message, nnunet_folders, tmp_path) -> None:
    material = write_material(nnunet_folders, classification=None)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        write_report(material.model if of_model else tmp_path, sources=Sources(checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("folder", "message"),
    [("nowhere", "There is no folder .*nowhere"), ("model/fold_0", "is one fold of a model"), ("empty", "neither a trained model")],
)
def test_wrong_folders_are_explained(folder: str, message: str, nnunet_folders, tmp_path, capsys) -> None:
    material = write_material(nnunet_folders, classification=None)
    (tmp_path / "empty").mkdir()
    path = str(material.model / "fold_0") if folder.startswith("model") else str(tmp_path / folder)
    with pytest.raises(SystemExit) as caught:
        main([path])
    assert caught.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_without_predictions_is_an_error(nnunet_folders, tmp_path) -> None:
    write_material(nnunet_folders)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}))
    with pytest.raises(FileNotFoundError, match="holds no predictions"):
        write_report(tmp_path)


def test_curves_of_a_training_that_has_not_finished_are_shown(nnunet_folders) -> None:
    material = write_material(nnunet_folders)
    write_checkpoint(material.model / "fold_2", {}, epochs=3)
    shutil.move(material.model / "fold_2" / "checkpoint_final.pth", material.model / "fold_2" / "checkpoint_latest.pth")
    assert "Curves of folds 0, 1, 2, 3 to 12 epochs." in report(material.model, worst=0).text
