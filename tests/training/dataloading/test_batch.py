"""A batch is a dict with nnU-Net's keys and unpacks as three."""

from __future__ import annotations

import pickle

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import pin_memory_of_all_eligible_items_in_dict

from nnunetv2.training.dataloading.batch import Batch, as_batch


def example() -> Batch:
    classes = {"grade": {"target": torch.tensor([1, -1]), "weight": torch.tensor([1.0, 0.0])}}
    return Batch(data=torch.zeros(2, 1, 4, 4), target=[torch.zeros(2, 1, 4, 4)], keys=np.array(["a", "b"]), **{"class": classes})


def test_unpacks_as_image_segmentation_and_classes() -> None:
    batch = example()
    image, segmentation, classes = batch
    assert image is batch["data"] and segmentation is batch["target"] and classes is batch["class"]


def test_is_a_dict_by_name() -> None:
    batch = example()
    assert set(batch.keys()) == {"data", "target", "keys", "class"} and "data" in batch and batch.get("other") is None
    assert dict(batch)["data"] is batch["data"] and dict(**batch)["keys"] is batch["keys"]
    assert pickle.loads(pickle.dumps(batch))["keys"].tolist() == ["a", "b"]


def test_moves_every_tensor() -> None:
    moved = example().to("meta", non_blocking=True)
    assert isinstance(moved, Batch) and moved["data"].device.type == "meta" and moved["target"][0].device.type == "meta"
    assert moved["class"]["grade"]["weight"].device.type == "meta" and moved["keys"].tolist() == ["a", "b"]


def test_batchgenerators_walks_through_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # there may be no GPU
    pinned = pin_memory_of_all_eligible_items_in_dict(example())
    assert isinstance(pinned, Batch) and (pinned["target"][0] == 1).all() and pinned["class"]["grade"]["target"].tolist() == [2, 0]


def test_a_plain_dict_is_a_batch_without_classes() -> None:
    plain = {"data": torch.zeros(1), "target": torch.zeros(1), "keys": ["a"]}
    batch = as_batch(plain)
    assert batch["class"] == {} and "class" not in plain and as_batch(batch) is batch
