"""Treats the planes of 3D batches as channels of 2D batches and back, for 2D augmentation of 3D patches."""

from __future__ import annotations

from collections.abc import Sequence

from batchgenerators.transforms.abstract_transforms import AbstractTransform


class Convert3DTo2DTransform(AbstractTransform):
    """``(B, C, X, Y, Z)`` becomes ``(B, C * X, Y, Z)``."""

    def __init__(self, apply_to_keys: Sequence[str] = ("data", "seg")) -> None:
        self.apply_to_keys = apply_to_keys

    def __call__(self, **data_dict) -> dict:
        for key in self.apply_to_keys:
            shape = data_dict[key].shape
            if len(shape) != 5:
                raise ValueError(f"{key} has shape {shape}; dummy 2D augmentation is for 3D batches (B, C, X, Y, Z).")
            data_dict[key] = data_dict[key].reshape(shape[0], shape[1] * shape[2], *shape[3:])
            data_dict[_shape_key(key)] = shape
        return data_dict


class Convert2DTo3DTransform(AbstractTransform):
    """The inverse; Y and Z may have changed in between."""

    def __init__(self, apply_to_keys: Sequence[str] = ("data", "seg")) -> None:
        self.apply_to_keys = apply_to_keys

    def __call__(self, **data_dict) -> dict:
        for key in self.apply_to_keys:
            before = data_dict.pop(_shape_key(key))
            data_dict[key] = data_dict[key].reshape(*before[:3], *data_dict[key].shape[2:])
        return data_dict


def _shape_key(key: str) -> str:
    return f"orig_shape_{key}"
