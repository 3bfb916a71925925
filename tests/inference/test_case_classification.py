from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunetv2.inference.case_classification import CaseClassification, aggregate_tiles, mean_of_folds, task_prediction
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask

SUBTYPE = ClassificationTask(name="subtype", classes=("a", "b"), evidence=("lesion",))
FINDINGS = ClassificationTask(name="findings", classes=("x", "y", "z"), type="multilabel")
LESION = PredictedEvidence(channels=(1,))


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.log(torch.tensor(probabilities))


def tile_with_lesion(share: float) -> torch.Tensor:
    """Logits (2, 10, 10) that predict the lesion in a share of the voxels."""
    logits = torch.zeros(2, 10, 10)
    logits[0], logits[1] = 20, -20
    rows = round(share * 10)
    logits[0, :rows], logits[1, :rows] = -20, 20
    return logits


def collected(aggregation: str, tiles: list[tuple[torch.Tensor, torch.Tensor]], evidence=None) -> np.ndarray:
    votes = CaseClassification({"subtype": SUBTYPE}, {"subtype": LESION} if evidence is None else evidence, aggregation)
    for classes, segmentation in tiles:
        votes.add_tile({"subtype": classes}, segmentation, None)
    return votes.probabilities()["subtype"]


def test_tiles_vote_by_the_evidence_predicted_in_them() -> None:
    tiles = [(logits_of(0.9, 0.1), tile_with_lesion(0.3)), (logits_of(0.2, 0.8), tile_with_lesion(0.1))]
    np.testing.assert_allclose(collected("evidence", tiles), [(0.3 * 0.9 + 0.1 * 0.2) / 0.4, (0.3 * 0.1 + 0.1 * 0.8) / 0.4], atol=1e-6)


def test_the_same_tiles_can_vote_in_other_ways() -> None:
    tiles = [
        (logits_of(0.9, 0.1), tile_with_lesion(0.3)),
        (logits_of(0.2, 0.8), tile_with_lesion(0.1)),
        (logits_of(0.6, 0.4), tile_with_lesion(0)),
    ]
    votes = CaseClassification({"subtype": SUBTYPE}, {"subtype": LESION})
    for classes, segmentation in tiles:
        votes.add_tile({"subtype": classes}, segmentation, None)
    for aggregation in ("evidence", "mean", "max", "top3"):
        np.testing.assert_array_equal(votes.probabilities_with(aggregation)["subtype"], collected(aggregation, tiles))


def test_a_tile_without_evidence_has_no_say() -> None:
    tiles = [(logits_of(0.9, 0.1), tile_with_lesion(0.2)), (logits_of(0.0001, 0.9999), tile_with_lesion(0))]
    np.testing.assert_allclose(collected("evidence", tiles), [0.9, 0.1], atol=1e-5)


def test_without_any_evidence_all_tiles_count_the_same() -> None:
    tiles = [(logits_of(0.9, 0.1), tile_with_lesion(0)), (logits_of(0.3, 0.7), tile_with_lesion(0))]
    np.testing.assert_allclose(collected("evidence", tiles), [0.6, 0.4], atol=1e-6)


def test_a_task_without_evidence_counts_all_tiles_the_same() -> None:
    tiles = [(logits_of(0.9, 0.1), tile_with_lesion(0.5)), (logits_of(0.3, 0.7), tile_with_lesion(0))]
    np.testing.assert_allclose(collected("evidence", tiles, evidence={}), [0.6, 0.4], atol=1e-6)


def test_evidence_is_weighted_like_the_segmentation() -> None:
    weights = torch.zeros(10, 10)
    weights[0] = 1  # only the first row counts, which is all lesion in one tile and none in the other
    votes = CaseClassification({"subtype": SUBTYPE}, {"subtype": LESION})
    votes.add_tile({"subtype": logits_of(0.9, 0.1)}, tile_with_lesion(0.1), weights)
    votes.add_tile({"subtype": logits_of(0.3, 0.7)}, tile_with_lesion(0.9).flip(1), weights)
    np.testing.assert_allclose(votes.probabilities()["subtype"], [0.9, 0.1], atol=1e-5)


def test_mirrored_copies_average_their_probabilities_not_their_logits() -> None:
    votes = CaseClassification({"subtype": SUBTYPE}, aggregation="mean")
    votes.add_tile({"subtype": torch.stack([logits_of(0.99, 0.01), logits_of(0.51, 0.49)])}, None, None)
    np.testing.assert_allclose(votes.probabilities()["subtype"], [0.75, 0.25], atol=1e-6)


def test_max_and_top3_are_scaled_to_one_for_exclusive_classes() -> None:
    probabilities = np.array([[0.8, 0.2], [0.1, 0.9], [0.5, 0.5], [0.6, 0.4]])
    np.testing.assert_allclose(aggregate_tiles(probabilities, np.zeros(4), aggregation="max", exclusive=True), np.array([0.8, 0.9]) / 1.7)
    top3 = np.array([(0.8 + 0.6 + 0.5) / 3, (0.9 + 0.5 + 0.4) / 3])
    np.testing.assert_allclose(aggregate_tiles(probabilities, np.zeros(4), aggregation="top3", exclusive=True), top3 / top3.sum())
    np.testing.assert_allclose(aggregate_tiles(probabilities, np.zeros(4), aggregation="max", exclusive=False), [0.8, 0.9])


def test_folds_vote_equally() -> None:
    folds = [{"t": np.array([0.9, 0.1])}, {"t": np.array([0.2, 0.8])}]
    np.testing.assert_allclose(mean_of_folds(folds)["t"], [0.55, 0.45])


def test_values_that_are_no_numbers_are_an_error() -> None:
    votes = CaseClassification({"subtype": SUBTYPE})
    with pytest.raises(RuntimeError, match="subtype"):
        votes.add_tile({"subtype": torch.tensor([float("nan"), 0.0])}, tile_with_lesion(0.1), None)


def test_an_unknown_aggregation_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="evidence, mean, max, top3"):
        CaseClassification({"subtype": SUBTYPE}, aggregation="median")


def test_predictions_name_their_classes() -> None:
    assert task_prediction(SUBTYPE, np.array([0.4, 0.6])).label == "b"
    prediction = task_prediction(FINDINGS, np.array([0.7, 0.2, 0.5]))
    assert prediction.label == "x;z"
    assert prediction.probabilities == {"x": 0.7, "y": 0.2, "z": 0.5}
    assert task_prediction(FINDINGS, np.array([0.1, 0.2, 0.3])).label == "none"
