from __future__ import annotations

import pytest
import torch

from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence

LABELS = {"background": 0, "pancreas": 1, "lesion": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_channels_of_labels_are_their_places_among_the_values() -> None:
    assert PredictedEvidence.from_labels(["lesion"], LABELS) == PredictedEvidence(channels=(2,))
    shuffled = {"lesion": 2, "background": 0, "pancreas": [1]}
    assert PredictedEvidence.from_labels(["lesion", "pancreas"], shuffled) == PredictedEvidence(channels=(1, 2))


def test_channels_of_regions_follow_their_declaration() -> None:
    assert PredictedEvidence.from_labels(["core"], REGIONS) == PredictedEvidence(channels=(1,), has_regions=True)
    assert PredictedEvidence.from_labels(["enhancing"], REGIONS).channels == (2,)


def test_channels_agree_with_the_label_manager() -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(REGIONS, regions_class_order=[1, 2, 3])
    for name, value in REGIONS.items():
        if name in ("background", "ignore"):
            continue
        region = tuple(value) if isinstance(value, list) else value
        assert PredictedEvidence.from_labels([name], REGIONS).channels == (manager.foreground_regions.index(region),)


@pytest.mark.parametrize("name", ["tumour", "ignore"])
def test_a_name_that_is_no_label_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        PredictedEvidence.from_labels([name], LABELS)


def test_probabilities_of_labels_add_up_and_those_of_regions_do_not() -> None:
    logits = torch.tensor([2.0, -1.0, 1.0]).reshape(1, 3, 1, 1)
    softmax = torch.softmax(logits, 1)
    found = PredictedEvidence(channels=(1, 2)).probability(logits)
    torch.testing.assert_close(found, softmax[:, 1:].sum(1, keepdim=True))
    found = PredictedEvidence(channels=(1, 2), has_regions=True).probability(logits)
    torch.testing.assert_close(found, torch.sigmoid(logits[:, 2:]))


def test_without_evidence_every_voxel_counts() -> None:
    evidence = PredictedEvidence()
    assert not evidence
    assert torch.equal(evidence.probability(torch.randn(2, 3, 4, 4)), torch.ones(2, 1, 4, 4))


def test_a_network_of_other_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        PredictedEvidence(channels=(3,)).probability(torch.zeros(1, 3, 2, 2))
