"""Overlap of a predicted with a reference segmentation; arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LabelOrRegion = int | tuple[int, ...]


def region_or_label_to_mask(segmentation: np.ndarray, region_or_label: LabelOrRegion) -> np.ndarray:
    """Voxels of a label, or of any of the labels of a region."""
    if np.ndim(region_or_label) == 0:
        return segmentation == region_or_label
    mask = np.zeros(segmentation.shape, dtype=bool)
    for label in region_or_label:
        mask |= segmentation == label
    return mask


def compute_tp_fp_fn_tn(mask_ref: np.ndarray, mask_pred: np.ndarray, ignore_mask: np.ndarray | None = None) -> tuple[int, int, int, int]:
    """Voxels that are in both masks, in the prediction alone, in the reference alone and in neither.

    Args:
        mask_ref: Boolean reference.
        mask_pred: Boolean prediction of the same shape.
        ignore_mask: True where a voxel does not count.
    """
    if ignore_mask is not None:
        counted = ~ignore_mask
        mask_ref, mask_pred = mask_ref & counted, mask_pred & counted
        total = int(np.count_nonzero(counted))
    else:
        total = mask_ref.size
    tp = int(np.count_nonzero(mask_ref & mask_pred))
    fp = int(np.count_nonzero(mask_pred)) - tp
    fn = int(np.count_nonzero(mask_ref)) - tp
    return tp, fp, fn, total - tp - fp - fn


def overlap_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels_or_regions: Sequence[LabelOrRegion],
    ignore_label: int | None = None,
) -> dict[LabelOrRegion, dict[str, float]]:
    """Dice, IoU and voxel counts by label or region.

    Args:
        reference: Label map.
        prediction: Label map of the same shape.
        labels_or_regions: What to score.
        ignore_label: Voxels with this label in the reference do not count.

    Returns:
        By label or region ``Dice`` and ``IoU`` (NaN where neither has a voxel), ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``, ``n_ref``.
    """
    ignore_mask = None if ignore_label is None else reference == ignore_label
    metrics = {}
    for label_or_region in labels_or_regions:
        mask_ref = region_or_label_to_mask(reference, label_or_region)
        mask_pred = region_or_label_to_mask(prediction, label_or_region)
        tp, fp, fn, tn = compute_tp_fp_fn_tn(mask_ref, mask_pred, ignore_mask)
        union = tp + fp + fn
        metrics[label_or_region] = {
            "Dice": 2 * tp / (2 * tp + fp + fn) if union else float("nan"),
            "IoU": tp / union if union else float("nan"),
            "FP": fp,
            "TP": tp,
            "FN": fn,
            "TN": tn,
            "n_pred": fp + tp,
            "n_ref": fn + tp,
        }
    return metrics
