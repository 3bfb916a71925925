"""The phantom: reproducible, complete, and not classifiable by size and brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunetv2.demo.phantom import LABELS, SUBTYPES, simulate_case, write_phantom_dataset
from nnunetv2.utilities.file_io import load_json
from nnunetv2.utilities.label_handling.classification_labels import CaseLabels, find_label_problems


@pytest.mark.parametrize("seed", [0, 1])
def test_volume_and_mean_intensity_do_not_tell_the_subtype(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, classes = [], []
    for index in range(90):
        case = simulate_case(SUBTYPES[index % 3], rng)
        lesion = case.segmentation == LABELS["lesion"]
        features.append([lesion.sum() * np.prod(case.spacing), case.image[lesion].mean()])
        classes.append(case.subtype)
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    assert f1_score(classes, cross_val_predict(classifier, features, classes, cv=5), average="macro") < 0.5


def test_same_generator_state_gives_the_same_case() -> None:
    first, second = (simulate_case("rim", np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.segmentation, second.segmentation)


def test_lesion_lies_inside_what_would_be_organ() -> None:
    case = simulate_case("granular", np.random.default_rng(5))
    counts = np.bincount(case.segmentation.ravel(), minlength=3)
    assert counts[LABELS["organ"]] > 5 * counts[LABELS["lesion"]] > 0


def test_dataset_is_valid_and_leaves_a_tenth_unlabelled(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_Phantom"
    held_out = write_phantom_dataset(folder, num_training=20, num_test=3, seed=0)
    dataset_json = load_json(folder / "dataset.json")
    identifiers = sorted(p.name.removesuffix(".nii.gz") for p in (folder / "labelsTr").iterdir())
    errors, warnings = find_label_problems(folder, dataset_json, identifiers)
    assert errors == [] and len(warnings) == 1
    assert CaseLabels.load(folder, dataset_json).class_counts(identifiers)["subtype"]["unknown"] == 2
    assert list(held_out.values()) == list(SUBTYPES)


def test_unknown_subtype_is_refused() -> None:
    with pytest.raises(ValueError, match="cystic"):
        simulate_case("cystic", np.random.default_rng(0))
