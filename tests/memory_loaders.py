"""Loaders of training batches whose two cases are in memory."""

from __future__ import annotations

import numpy as np

from nnunetv2.training.data_augmentation.default_augmentation import training_transforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

SCALES = [(1, 1, 1), (0.5, 0.5, 0.5)]


class MemoryDataset:
    """Two cases with labels -1 to 2, and a previous stage's segmentation of them."""

    def __init__(self, with_previous_stage: bool) -> None:
        rng = np.random.default_rng(0)
        self.cases = {}
        for name in "xy":
            labels = np.repeat(rng.integers(-1, 3, (1, 14, 5, 12)), 5, axis=2).astype(np.int16)
            image = rng.normal(size=(2, *labels.shape[1:])).astype(np.float32)
            locations = {label: np.argwhere(labels == label) for label in (1, 2)}
            self.cases[name] = image, labels, labels[0] if with_previous_stage else None, {"class_locations": locations}
        self.identifiers = list(self.cases)

    def load_case(self, identifier: str):
        return self.cases[identifier]


def make_loader(mode: str, *, cascade: bool = False, regions=None, **settings) -> nnUNetDataLoader:
    patch = (12, 10) if mode == "2d" else (8, 12, 10)
    initial = (20, 17) if mode == "2d" else (8 if mode == "planes" else 13, 20, 17)
    scales = [scale[: len(patch)] for scale in SCALES]
    axes = tuple(range(len(patch)))
    labels = [1, 2] if cascade else None
    transforms = training_transforms(patch, (-1, 1), scales, axes, mode == "planes", [True, False], cascade, labels, regions)
    manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
    options = {"oversample_foreground_percent": 0.5, "transforms": transforms, "seed": 0, **settings}
    return nnUNetDataLoader(MemoryDataset(cascade), 2, initial, patch, manager, **options)
