"""Intensity normalization, one class per scheme, applied to one channel at a time.

A scheme works in place when the image already has the target dtype, so a channel of a large volume is not copied.
The order of the float32 operations is part of the contract: stored cases must equal those of nnU-Net v2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

UINT8_MAX = 255


class ImageNormalization(ABC):
    """Base class of all schemes.

    Args:
        use_mask_for_norm: Normalize only where ``seg >= 0``, that is inside the non-zero region.
        intensityproperties: Foreground statistics of this channel over the dataset (``mean``, ``std``,
            ``percentile_00_5``, ``percentile_99_5``, ...); only dataset-wide schemes need them.
        target_dtype: dtype of the result and of the arithmetic.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true: bool | None = None

    def __init__(
        self, use_mask_for_norm: bool | None = None, intensityproperties: dict[str, Any] | None = None, target_dtype: type = np.float32
    ) -> None:
        if use_mask_for_norm is not None and not isinstance(use_mask_for_norm, (bool, np.bool_)):
            raise TypeError(f"use_mask_for_norm must be True, False or None, not {use_mask_for_norm!r}.")
        self.use_mask_for_norm = use_mask_for_norm
        self.intensityproperties = {} if intensityproperties is None else intensityproperties
        self.target_dtype = target_dtype

    @property
    def smallest_divisor(self) -> float:
        """Guard against dividing by zero; float16 cannot represent 1e-8."""
        return 1e-4 if np.dtype(self.target_dtype) == np.float16 else 1e-8

    @abstractmethod
    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Normalize one channel.

        Args:
            image: ``(X, Y, Z)``; modified in place if it has the target dtype.
            seg: ``(X, Y, Z)``, negative outside the non-zero region; needed with ``use_mask_for_norm``.

        Returns:
            The normalized channel in the target dtype.
        """


class ZScoreNormalization(ImageNormalization):
    """Zero mean, unit variance per case, over the whole image or, with ``use_mask_for_norm``, inside the mask."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = True

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        image = image.astype(self.target_dtype, copy=False)
        if not self.use_mask_for_norm:
            mean, std = image.mean(), image.std()
            image -= mean
            image /= max(std, self.smallest_divisor)
            return image
        if seg is None:
            raise ValueError("use_mask_for_norm is set, but no mask was given: pass seg, negative outside the non-zero region.")
        mask = seg >= 0
        inside = image[mask]
        if inside.size:
            image[mask] = (inside - inside.mean()) / max(inside.std(), self.smallest_divisor)
        return image


class CTNormalization(ImageNormalization):
    """Clip to the dataset's foreground percentiles, then z-score with the dataset's mean and deviation."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        missing = [key for key in ("mean", "std", "percentile_00_5", "percentile_99_5") if key not in self.intensityproperties]
        if missing:
            raise ValueError(
                f"CTNormalization needs the dataset's intensity statistics; missing: {', '.join(missing)}. "
                "They are part of dataset_fingerprint.json and of the plans (foreground_intensity_properties_per_channel)."
            )
        image = image.astype(self.target_dtype, copy=False)
        np.clip(image, self.intensityproperties["percentile_00_5"], self.intensityproperties["percentile_99_5"], out=image)
        image -= self.intensityproperties["mean"]
        image /= max(self.intensityproperties["std"], self.smallest_divisor)
        return image


class NoNormalization(ImageNormalization):
    """Intensities as they are."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        return image.astype(self.target_dtype, copy=False)


class RescaleTo01Normalization(ImageNormalization):
    """Minimum to 0, maximum to 1, per case."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        image = image.astype(self.target_dtype, copy=False)
        image -= image.min()
        image /= max(image.max(), self.smallest_divisor)
        return image


class RGBTo01Normalization(ImageNormalization):
    """8-bit colour to 0..1."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        low, high = image.min(), image.max()
        if low < 0 or high > UINT8_MAX:
            raise ValueError(
                f"RGBTo01Normalization expects values in 0..{UINT8_MAX}, found {low}..{high}. These images are not 8-bit colour: "
                "choose another channel name in dataset.json (for example 'zscore' or 'rescale_to_0_1')."
            )
        image = image.astype(self.target_dtype, copy=False)
        image /= UINT8_MAX
        return image
