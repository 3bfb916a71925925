"""Resampling of images, label maps and probabilities with splines, nnU-Net's default.

Where a case is strongly anisotropic, the axis with the large spacing is treated separately: slices are resized in-plane,
then interpolated along that axis with ``order_z``. Results equal ``skimage.transform.resize(mode='edge')`` (clipped to the
input's range) and ``batchgenerators``' ``resize_segmentation``; both are evaluated as separable operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.interpolation_operators import SUPPORTED_ORDERS, axis_operator, resize_slices, resize_volume
from nnunetv2.preprocessing.resampling.label_resampling import resize_labels, take_nearest


def get_do_separate_z(spacing: Sequence[float], anisotropy_threshold: float = ANISO_THRESHOLD) -> bool:
    """Whether the largest spacing exceeds the smallest by more than the threshold."""
    return bool(np.max(spacing) / np.min(spacing) > anisotropy_threshold)


def get_lowres_axis(new_spacing: Sequence[float]) -> np.ndarray:
    """Every axis that has the largest spacing."""
    return np.flatnonzero(max(new_spacing) / np.array(new_spacing) == 1)


def compute_new_shape(old_shape: Sequence[int], old_spacing: Sequence[float], new_spacing: Sequence[float]) -> np.ndarray:
    """Number of voxels that covers the same extent at another spacing, at least one per axis.

    Args:
        old_shape: Voxels per spatial axis; no channel axis.
        old_spacing: Voxel size in mm, in the axis order of ``old_shape``.
        new_spacing: Requested voxel size in mm, same order.

    Raises:
        ValueError: If the arguments differ in their number of axes.
    """
    if not len(old_shape) == len(old_spacing) == len(new_spacing):
        raise ValueError(f"Axes differ: shape {tuple(old_shape)}, spacing {tuple(old_spacing)}, new spacing {tuple(new_spacing)}.")
    # Divide before multiplying: the order decides ties.
    sizes = [round(old / new * n) for old, new, n in zip(old_spacing, new_spacing, old_shape, strict=True)]
    return np.array([max(1, size) for size in sizes])


def determine_do_sep_z_and_axis(
    force_separate_z: bool | None,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> tuple[bool, int | None]:
    """Whether one axis is to be resampled separately, and which.

    Args:
        force_separate_z: None decides by the anisotropy of the current, then of the new spacing.
        current_spacing: Voxel size before resampling.
        new_spacing: Voxel size after resampling.
        separate_z_anisotropy_threshold: Ratio of largest to smallest spacing above which an axis is separate.

    Returns:
        ``(True, axis)``, or ``(False, None)``, also where two or three axes share the largest spacing.
    """
    if force_separate_z is None:
        if get_do_separate_z(current_spacing, separate_z_anisotropy_threshold):
            candidates = get_lowres_axis(current_spacing)
        elif get_do_separate_z(new_spacing, separate_z_anisotropy_threshold):
            candidates = get_lowres_axis(new_spacing)
        else:
            return False, None
    elif force_separate_z:
        candidates = get_lowres_axis(current_spacing)
    else:
        return False, None
    return (True, int(candidates[0])) if len(candidates) == 1 else (False, None)


def resample_data_or_seg_to_spacing(
    data: np.ndarray,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> np.ndarray:
    """Resample ``(C, X, Y, Z)`` to the shape that ``new_spacing`` gives; see ``resample_data_or_seg_to_shape``."""
    new_shape = compute_new_shape(data.shape[1:], current_spacing, new_spacing)
    return resample_data_or_seg_to_shape(
        data, new_shape, current_spacing, new_spacing, is_seg, order, order_z, force_separate_z, separate_z_anisotropy_threshold
    )


def resample_data_or_seg_to_shape(
    data: Any,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> np.ndarray:
    """Resample ``(C, X, Y, Z)`` to a shape; the spacings only decide whether an axis is treated separately.

    Args:
        data: numpy array, or a CPU tensor, which is converted. Not modified.
        new_shape: Three sizes.
        current_spacing: Voxel size before resampling.
        new_spacing: Voxel size after resampling.
        is_seg: Whether ``data`` holds labels.
        order: Spline order (in-plane, where an axis is separate).
        order_z: Spline order along the separate axis.
        force_separate_z: See ``determine_do_sep_z_and_axis``.
        separate_z_anisotropy_threshold: See ``determine_do_sep_z_and_axis``.

    Returns:
        Array in the dtype of ``data``; ``data`` itself if the shape does not change.
    """
    if not isinstance(data, np.ndarray):
        data = data.numpy()
    do_separate_z, axis = determine_do_sep_z_and_axis(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    return resample_data_or_seg(data, new_shape, is_seg, axis, order, do_separate_z, order_z)


def resample_data_or_seg(
    data: np.ndarray,
    new_shape: Sequence[int],
    is_seg: bool = False,
    axis: int | None = None,
    order: int = 3,
    do_separate_z: bool = False,
    order_z: int = 0,
    dtype_out: Any = None,
) -> np.ndarray:
    """Resample ``(C, X, Y, Z)``, the axis ``axis`` separately if ``do_separate_z``.

    Returns:
        Array of ``dtype_out`` (default: the dtype of ``data``); ``data`` itself if the shape does not change.

    Raises:
        ValueError: If the number of axes does not fit, or no axis is named for ``do_separate_z``.
    """
    if data.ndim != 4 or len(new_shape) != 3:
        raise ValueError(f"Expected an array (C, X, Y, Z) and a new shape of three sizes, found {data.shape} and {tuple(new_shape)}.")
    if do_separate_z and axis is None:
        raise ValueError("do_separate_z needs the axis that is to be treated separately.")
    new_shape = tuple(int(n) for n in new_shape)
    if data.shape[1:] == new_shape:
        return data
    result = np.empty((len(data), *new_shape), dtype=data.dtype if dtype_out is None else dtype_out)
    for channel, out in zip(data, result, strict=True):
        if do_separate_z:
            resize = _resize_labels_separately if is_seg else _resize_image_separately
            resize(channel, new_shape, int(axis), order, order_z, out)
        elif is_seg:
            out[...] = _resize_labels_jointly(channel, new_shape, order)
        else:
            _resize_image_jointly(channel, new_shape, order, out)
    return result


def _resize_image_jointly(volume: np.ndarray, new_shape: tuple[int, ...], order: int, out: np.ndarray) -> None:
    """All three axes at once, clipped to the range of the volume."""
    if _has_operator(volume, order):
        resize_volume(volume, new_shape, order, out)
    else:
        out[...] = _library_resize(volume, new_shape, order)


def _resize_image_separately(volume: np.ndarray, new_shape: tuple[int, ...], axis: int, order: int, order_z: int, out: np.ndarray) -> None:
    """Slices in-plane, each clipped to its own range, then the remaining axis without clipping."""
    stack, in_plane = np.moveaxis(volume, axis, 0), _without(new_shape, axis)
    target = np.moveaxis(out, axis, 0)
    old, new = volume.shape[axis], new_shape[axis]
    if order_z == 0 or old == new:
        needed, position = np.unique(_nearest_along_axis(old, new), return_inverse=True)
        target[...] = _resize_image_slices(stack[needed], in_plane, order)[position]
        return
    slices = _resize_image_slices(stack, in_plane, order)
    if _has_operator(slices, order_z):
        target[...] = axis_operator(old, new, order_z).apply(slices, 0)
    else:
        target[...] = _library_interpolate_first_axis(slices, new, order_z)


def _resize_image_slices(slices: np.ndarray, new_shape: tuple[int, ...], order: int) -> np.ndarray:
    """A stack ``(N, Y, X)`` slice by slice, float64."""
    if slices.shape[1:] == new_shape:
        return slices.astype(np.float64)
    if _has_operator(slices, order):
        return resize_slices(slices, new_shape, order)
    return np.stack([_library_resize(image, new_shape, order) for image in slices])


def _resize_labels_jointly(labels: np.ndarray, new_shape: tuple[int, ...], order: int) -> np.ndarray:
    """All three axes at once."""
    if order in (0, 1) and _is_whole(labels):
        return resize_labels(labels, new_shape, order)
    return _library_resize_labels(labels, new_shape, order)


def _resize_labels_separately(labels: np.ndarray, new_shape: tuple[int, ...], axis: int, order: int, order_z: int, out: np.ndarray) -> None:
    """Slices in-plane, then the remaining axis: the nearest slice, or label by label where ``order_z`` > 0."""
    stack, in_plane = np.moveaxis(labels, axis, 0), _without(new_shape, axis)
    target = np.moveaxis(out, axis, 0)
    old, new = labels.shape[axis], new_shape[axis]
    if order_z == 0 or old == new:
        needed, position = np.unique(_nearest_along_axis(old, new), return_inverse=True)
        target[...] = _resize_label_slices(stack[needed], in_plane, order)[position]
        return
    slices = _resize_label_slices(stack, in_plane, order)
    target[...] = 0
    for label in np.unique(labels):
        indicator = (slices == label).astype(np.float64)
        if order_z == 1:
            score = axis_operator(old, new, order_z).apply(indicator, 0)
        else:
            # Cubic scores reach 0.5 exactly at symmetric borders, where the last bit decides.
            score = _library_interpolate_first_axis(indicator, new, order_z)
        target[np.round(score) > 0.5] = label


def _resize_label_slices(slices: np.ndarray, new_shape: tuple[int, ...], order: int) -> np.ndarray:
    """A stack ``(N, Y, X)`` slice by slice, in its own dtype."""
    if order in (0, 1) and _is_whole(slices):
        return resize_labels(slices, (len(slices), *new_shape), order)
    return np.stack([_library_resize_labels(labels, new_shape, order) for labels in slices])


def _nearest_along_axis(old: int, new: int) -> np.ndarray:
    """Which input slice every output slice repeats."""
    return take_nearest(np.arange(old)[:, None, None], (new, 1, 1))[:, 0, 0]


def _without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """All sizes but one."""
    return (*sizes[:axis], *sizes[axis + 1 :])


def _has_operator(array: np.ndarray, order: int) -> bool:
    """Whether the separable operator applies.

    Integers are cut off, not rounded, when they are stored, so there the last bit matters; a matrix product would spread
    a non-finite voxel differently.
    """
    return order in SUPPORTED_ORDERS and array.dtype.kind == "f" and bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _is_whole(labels: np.ndarray) -> bool:
    """Whether a label map holds whole numbers only."""
    return labels.dtype.kind in "iub" or bool(np.all(labels == np.rint(labels)))


def _library_resize(image: np.ndarray, new_shape: tuple[int, ...], order: int) -> np.ndarray:
    """scikit-image, for orders and dtypes without operator."""
    from skimage.transform import resize

    return resize(image.astype(np.float64), new_shape, order, mode="edge", anti_aliasing=False)


def _library_resize_labels(labels: np.ndarray, new_shape: tuple[int, ...], order: int) -> np.ndarray:
    """batchgenerators, for orders above 1 and fractional values."""
    from batchgenerators.augmentations.utils import resize_segmentation

    return resize_segmentation(labels, new_shape, order)


def _library_interpolate_first_axis(stack: np.ndarray, new: int, order: int) -> np.ndarray:
    """Spline along the first axis with scipy, for orders without operator."""
    from scipy.ndimage import map_coordinates

    from nnunetv2.preprocessing.resampling.interpolation_operators import sample_positions

    positions = np.meshgrid(
        sample_positions(len(stack), new), np.arange(stack.shape[1]), np.arange(stack.shape[2]), indexing="ij", copy=False
    )
    return map_coordinates(stack.astype(np.float64), positions, order=order, mode="nearest")
