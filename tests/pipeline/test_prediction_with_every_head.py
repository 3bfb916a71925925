"""Faults that joint models elsewhere were shipped with, at prediction: every head, type of task and aggregation."""

from __future__ import annotations

import csv
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import dataset_json, write_images, write_model
from tiny_trainings import CPU

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.morphometry import morphometry
from nnunetv2.inference.predict_from_raw_data import ClassificationOptions, nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.scheduling import CaseErrors
from nnunetv2.utilities.label_handling.classification_labels import classification_tasks
from nnunetv2.utilities.label_handling.classification_table import read_classification_csv

CLASSIFICATION = {
    "subtype": {"classes": ["a", "b", "c"], "evidence": ["lesion"]},
    "findings": {"type": "multilabel", "classes": ["x", "y"], "evidence": ["organ", "lesion"]},
    "grade": {"type": "ordinal", "classes": ["G1", "G2", "G3"], "evidence": ["lesion"]},
    "whole": {"classes": ["u", "v"]},
}
TASKS = classification_tasks(dataset_json(classification=CLASSIFICATION))
POOLINGS = ("mean_max", "attention", "evidence")
AGGREGATIONS = {"patch": ("evidence", "mean", "max", "top3"), "case": ("evidence", "mean")}
HEADS = [(pooling, level) for level in AGGREGATIONS for pooling in POOLINGS]
SAME_IMAGE = ("a", "subtype_b", "G3;x", "0")  # names that look like classes


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a model of two folds said about the images ``SAME_IMAGE``, ``other`` and ``broken``."""

    predictor: nnUNetPredictor
    model: Path
    images: Path
    aggregation: str
    table: Path

    @property
    def options(self) -> ClassificationOptions:
        return ClassificationOptions(aggregation=self.aggregation)

    def probabilities(self) -> dict[str, dict[str, np.ndarray]]:
        return read_classification_csv(self.table, self.predictor.classification_tasks)


def predictor_of(model: Path, folds: tuple[int, ...]) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.allowed_mirroring_axes = (1,)  # two copies instead of eight
    return predictor


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, number=2, size=(16, 16, 22))
    for name in SAME_IMAGE:
        shutil.copy(folder / "case_0_0000.nii.gz", folder / f"{name}_0000.nii.gz")
    (folder / "case_0_0000.nii.gz").unlink()
    (folder / "case_1_0000.nii.gz").rename(folder / "other_0000.nii.gz")
    (folder / "broken_0000.nii.gz").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module", params=HEADS, ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model whose heads have this pooling and level; those of whole cases with morphometry."""
    pooling, level = request.param
    folder = tmp_path_factory.mktemp("model") / level
    return write_model(folder, folds=(0, 1), classification=CLASSIFICATION, pooling=pooling, level=level, morphometry=level == "case")


def each_aggregation(model: Path) -> tuple[str, ...]:
    return AGGREGATIONS[model.name]


@pytest.fixture(scope="module")
def predictions(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Predicted]:
    """With each aggregation that the heads know."""
    results = []
    for aggregation in each_aggregation(model):
        predictor = predictor_of(model, (0, 1))
        found = Predicted(
            predictor=predictor, model=model, images=images, aggregation=aggregation, table=tmp_path_factory.mktemp("out") / "classes.csv"
        )
        with pytest.raises(CaseErrors) as caught:
            predictor.predict_from_files_sequential(
                str(images), None, save_classification=found.table, classification_options=found.options
            )
        assert [failure.identifier for failure in caught.value.failures] == ["broken"]
        results.append(found)
    return results


def test_tables_have_a_header_and_all_probabilities(predictions: list[Predicted]) -> None:
    for found in predictions:
        with open(found.table, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        expected = [[name, *(f"{name}_probability_{label}" for label in task.classes)] for name, task in TASKS.items()]
        assert header == ["identifier", *itertools.chain(*expected), "error"]
        assert [row[0] for row in rows] == sorted([*SAME_IMAGE, "other", "broken"])
        for row in (dict(zip(header, row, strict=True)) for row in rows if row[0] != "broken"):
            assert row["error"] == ""
            for name, task in TASKS.items():
                values = np.array([float(row[f"{name}_probability_{label}"]) for label in task.classes])
                assert (0 <= values).all() and (values <= 1).all()
                if task.is_multilabel:
                    assert row[name] == (";".join(label for label, p in zip(task.classes, values, strict=True) if p >= 0.5) or "none")
                else:
                    assert values.sum() == pytest.approx(1, abs=1e-6)
                    assert row[name] == task.classes[int(values.argmax())]


def test_a_case_that_failed_has_no_class(predictions: list[Predicted]) -> None:
    for found in predictions:
        with open(found.table, newline="", encoding="utf-8") as file:
            (row,) = [row for row in csv.DictReader(file) if row["identifier"] == "broken"]
        assert "Cannot read" in row.pop("error")
        assert row.pop("identifier") and not any(row.values())


def test_names_decide_no_class(predictions: list[Predicted]) -> None:
    for found in predictions:
        table = found.probabilities()
        for task in TASKS:
            for name in SAME_IMAGE:
                np.testing.assert_array_equal(table[name][task], table["a"][task])
        assert any(np.abs(table["other"][task] - table["a"][task]).max() > 1e-3 for task in TASKS)


def test_arrays_are_predicted_like_files_and_folds_vote_equally(predictions: list[Predicted]) -> None:
    image, properties = SimpleITKIO().read_images([str(predictions[0].images / "other_0000.nii.gz")])
    for found in predictions:
        expected = found.probabilities()["other"]
        case = found.predictor.predict_case(image, properties, return_probabilities=False, classification_options=found.options)
        folds = [
            predictor_of(found.model, (fold,)).predict_case(
                image, properties, return_probabilities=False, classification_options=found.options
            )
            for fold in (0, 1)
        ]
        for task in TASKS:
            one, first, second = (list(each.classification[task].probabilities.values()) for each in (case, *folds))
            np.testing.assert_allclose(one, expected[task], atol=1e-6)
            np.testing.assert_allclose(np.mean([first, second], axis=0), expected[task], atol=1e-6)
            assert np.abs(np.subtract(first, second)).max() > 1e-4  # a fold that is left out shows


def test_every_tile_and_mirrored_copy_has_its_say(model: Path) -> None:
    predictor = predictor_of(model, (0,))
    data = torch.randn(1, 16, 16, 30, generator=torch.Generator().manual_seed(0))
    data[..., 20:] *= 5  # tiles differ
    for aggregation in each_aggregation(model):
        _, found = predictor.predict_logits_and_classes_from_preprocessed_data(data, ClassificationOptions(aggregation=aggregation))
        for task, expected in expected_classes(predictor, data, aggregation).items():
            np.testing.assert_allclose(found[task], expected, atol=1e-5, err_msg=f"{task}, {aggregation}")


def expected_classes(predictor: nnUNetPredictor, data: torch.Tensor, aggregation: str) -> dict[str, np.ndarray]:
    """Classes of an image of 30 columns, three tiles, written down once more without the code under test."""
    weights = compute_gaussian((16, 16, 16), 1.0 / 8, 10, torch.float32, CPU)
    outputs, segmentations = zip(*tile_outputs(predictor, data), strict=True)
    logits = torch.zeros(3, 16, 16, 30)
    for segmentation, start in zip(segmentations, (0, 7, 14), strict=True):
        logits[..., start : start + 16] += segmentation * weights
    result = {}
    for name, task in TASKS.items():
        head = predictor.network.heads[name]
        is_case_head = head.description.level == "case"
        votes = np.stack([by_task[name] if is_case_head else probabilities(task.type, by_task[name]) for by_task in outputs]).mean(1)
        mass = np.ones(3)
        if aggregation == "evidence" and task.evidence:
            channels = [{"organ": 1, "lesion": 2}[structure] for structure in task.evidence]
            mass = np.array([float((each.softmax(0)[channels].sum(0) * weights).sum()) for each in segmentations])
        if aggregation in ("max", "top3"):
            values = votes.max(0) if aggregation == "max" else votes.mean(0)  # there are three tiles
            result[name] = values if task.is_multilabel else values / values.sum()
            continue
        assert np.ptp(votes, axis=0).max() > 1e-3  # tiles disagree, so that leaving one out shows
        values = np.average(votes, axis=0, weights=mass)
        if is_case_head:
            measures = morphometry(logits.argmax(0).numpy(), data.numpy(), (1.0, 1.0, 1.0), head.description.structures)
            inputs = (np.append(values, measures) - head.feature_mean.numpy()) * head.feature_scale.numpy()
            with torch.no_grad():
                scores = head.output(torch.from_numpy(np.nan_to_num(inputs))[None].float()).numpy()
            values = probabilities(task.type, scores)[0]
        result[name] = values
    return result


def tile_outputs(predictor: nnUNetPredictor, data: torch.Tensor) -> Iterator[tuple[dict[str, np.ndarray], torch.Tensor]]:
    """Of each tile what the heads say about both mirrored copies, and the mean segmentation logits."""
    for start in (0, 7, 14):
        tile = data[None, ..., start : start + 16]
        with torch.no_grad():
            plain, mirrored = predictor.network(tile), predictor.network(torch.flip(tile, (3,)))
        by_task = {name: torch.cat([plain.classification[name], mirrored.classification[name]]).double().numpy() for name in TASKS}
        yield by_task, ((plain.segmentation + torch.flip(mirrored.segmentation, (3,))) / 2)[0]


def probabilities(task_type: str, logits: np.ndarray) -> np.ndarray:
    """Of logits ``(B, number of logits)``."""
    sigmoid = 1 / (1 + np.exp(-logits))
    if task_type == "multilabel":
        return sigmoid
    if task_type == "ordinal":
        return -np.diff(np.pad(sigmoid, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0))), axis=1)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
