"""A small preprocessed dataset on disk, and loaders over it."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

PATCH, INITIAL_PATCH = (12, 16, 14), (16, 22, 20)


@pytest.fixture(scope="session")
def preprocessed_folder(tmp_path_factory) -> str:
    """Five cases of two channels; label 1 holds label 2; case_4 has no foreground."""
    folder = tmp_path_factory.mktemp("preprocessed")
    rng = np.random.default_rng(0)
    for number in range(5):
        shape = (18 + number, 26, 24)
        labels = np.zeros((1, *shape), dtype=np.int16)
        if number < 4:
            labels[0, 5:12, 6:16, 6:16] = 1
            labels[0, 7:9, 8 + number : 11 + number, 8:10] = 2
        locations = {label: np.argwhere(labels == label) for label in (1, 2)}
        image = rng.normal(size=(2, *shape)).astype(np.float32)
        blocks = chunks = (1, *shape)
        properties = {"class_locations": {key: value if len(value) else [] for key, value in locations.items()}, "spacing": [1.0, 1.0, 1.0]}
        nnUNetDatasetBlosc2.save_case(image, labels, properties, str(folder / f"case_{number}"), chunks, blocks, chunks, blocks)
    return str(folder)


@pytest.fixture(scope="session")
def label_manager() -> LabelManager:
    return LabelManager({"background": 0, "organ": 1, "lesion": 2}, None)


@pytest.fixture(scope="session")
def make_loader(preprocessed_folder, label_manager):
    """Function that makes a loader with augmentation; keywords replace settings."""

    def make(loader_class=nnUNetDataLoader, batch_size=2, **settings) -> nnUNetDataLoader:
        transforms = training_transforms(PATCH, (-0.5, 0.5), [(1, 1, 1), (0.5, 0.5, 0.5)], (0, 1, 2), False)
        defaults = {"oversample_foreground_percent": 0.33, "transforms": transforms, "seed": 7}
        return loader_class(
            nnUNetDatasetBlosc2(preprocessed_folder), batch_size, INITIAL_PATCH, PATCH, label_manager, **{**defaults, **settings}
        )

    return make
