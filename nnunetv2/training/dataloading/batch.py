"""The batch that loaders yield and trainers consume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


class Batch(dict):
    """A dict with nnU-Net's keys that unpacks as three: ``image, segmentation, classes = batch``.

    - ``data``: float32 ``(B, C, *patch)``
    - ``target``: int16 ``(B, 1, *patch)``, or a list with one such tensor per deep-supervision scale; bool ``(B, R, *patch)``
      for region-based training
    - ``keys``: identifiers of the cases
    - ``class``: by task ``{"target": ..., "weight": ...}``; ``{}`` without classification
    """

    def __iter__(self) -> Iterator[Any]:
        return iter([self["data"], self.get("target"), self.get("class", {})])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``; this one stays as it is."""
        return Batch({key: _map_tensors(lambda t: t.to(device, non_blocking=non_blocking), self[key]) for key in self.keys()})

    def pin_memory(self) -> Batch:
        """The batch with every tensor in page-locked memory, from where copies to a GPU overlap with computing."""
        return Batch({key: _map_tensors(torch.Tensor.pin_memory, self[key]) for key in self.keys()})


def as_batch(mapping: Mapping[str, Any]) -> Batch:
    """A batch as it is, and a plain dict (from a user's own loader) as a batch without classes."""
    if isinstance(mapping, Batch) and "class" in mapping.keys():
        return mapping
    batch = Batch(mapping)
    batch.setdefault("class", {})
    return batch


def _map_tensors(function, value):
    """Applies a function to every tensor within dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(function, value[key]) for key in value.keys()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(function, item) for item in value)
    return value
