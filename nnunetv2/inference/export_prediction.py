"""From logits on the network's grid back to the image: undo resampling, cropping and the order of axes, and write the files.

Logits are interpolated and then turned into labels, not the other way round, because that is more precise. Where nothing but the
labels is wanted this happens channel by channel, with the best value so far kept: the result is the same, and memory no longer
grows with the number of classes. Everything here is numpy, so that it can run beside the network or without torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.file_io import atomic_path, load_json, save_pickle
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

if TYPE_CHECKING:
    import torch

    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

LARGEST_UINT8_COUNT = 255  # this many foreground labels or more need uint16
REGION_THRESHOLD = 0.5


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: torch.Tensor | np.ndarray,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties_dict: dict,
    return_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities if wanted, on the grid of the original image.

    Args:
        predicted_logits: ``(heads, X, Y, Z)`` on the network's grid; not modified.
        plans_manager: Says how axes were permuted.
        configuration_manager: Says how logits are resampled.
        label_manager: Turns logits into labels.
        properties_dict: Made by the preprocessor: spacing, crop box and shapes.
        return_probabilities: Also return ``(heads, *original shape)`` float32.
        num_threads_torch: Accepted for compatibility. The number of threads belongs to the process, and is not changed here.

    Returns:
        The segmentation ``(X, Y, Z)``, uint8 or uint16, in the axis order of the reader; with probabilities a tuple of both.
    """
    logits = _as_array(predicted_logits)
    resample = _resampler(logits.shape[1:], plans_manager, configuration_manager, properties_dict)
    probabilities = None
    if return_probabilities:
        probabilities = _as_array(label_manager.apply_inference_nonlin(resample(logits)))
        if _is_standard(label_manager) and not label_manager.has_regions:
            segmentation = _index_of_largest(iter(probabilities), _label_dtype(label_manager))
        else:
            segmentation = _as_array(label_manager.convert_probabilities_to_segmentation(probabilities))
    elif _works_by_channel(label_manager, configuration_manager):
        segmentation = _segmentation_by_channel(logits, resample, label_manager)
    else:
        segmentation = _as_array(label_manager.convert_logits_to_segmentation(resample(logits)))

    bbox, original_shape = properties_dict["bbox_used_for_cropping"], properties_dict["shape_before_cropping"]
    segmentation = _undo_crop(segmentation, bbox, original_shape, label_manager).transpose(plans_manager.transpose_backward)
    if probabilities is None:
        return segmentation
    probabilities = _as_array(label_manager.revert_cropping_on_probabilities(probabilities, bbox, original_shape))
    return segmentation, probabilities.transpose([0, *(axis + 1 for axis in plans_manager.transpose_backward)])


def values_on_original_grid(
    values: torch.Tensor | np.ndarray, plans_manager: PlansManager, configuration_manager: ConfigurationManager, properties_dict: dict
) -> np.ndarray:
    """Any values by voxel, resampled like probabilities to the grid of the original image; 0 outside the crop.

    Args:
        values: ``(channels, X, Y, Z)`` on the network's grid.
        plans_manager: Says how axes were permuted.
        configuration_manager: Says how probabilities are resampled.
        properties_dict: Made by the preprocessor.

    Returns:
        ``(channels, *original shape)`` in the axis order of the reader.
    """
    values = _as_array(values)
    resampled = _resampler(values.shape[1:], plans_manager, configuration_manager, properties_dict)(values)
    result = np.zeros((len(resampled), *properties_dict["shape_before_cropping"]), dtype=resampled.dtype)
    result[(slice(None), *(slice(start, stop) for start, stop in properties_dict["bbox_used_for_cropping"]))] = resampled
    return result.transpose([0, *(axis + 1 for axis in plans_manager.transpose_backward)])


def export_prediction_from_logits(
    predicted_array_or_file: np.ndarray | torch.Tensor | str,
    properties_dict: dict,
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict | str,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
    *,
    classification: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the segmentation of a case, and if wanted its probabilities and properties.

    The segmentation is written last, so that it stands for a complete case.

    Args:
        predicted_array_or_file: Logits ``(heads, X, Y, Z)`` or an ``.npy`` file of them.
        properties_dict: Made by the preprocessor.
        configuration_manager: See :func:`convert_predicted_logits_to_segmentation_with_correct_shape`.
        plans_manager: See there.
        dataset_json_dict_or_file: Gives the file ending and the labels.
        output_file_truncated: Output file without its ending.
        save_probabilities: Also write ``.npz`` (``probabilities``) and ``.pkl`` (properties).
        num_threads_torch: Accepted for compatibility.
        classification: Class probabilities by task; they go into the ``.npz`` as ``classification_<task>``.
    """
    if isinstance(predicted_array_or_file, (str, os.PathLike)):
        predicted_array_or_file = np.load(predicted_array_or_file, allow_pickle=False)
    dataset_json = dataset_json_dict_or_file if isinstance(dataset_json_dict_or_file, Mapping) else load_json(dataset_json_dict_or_file)
    result = convert_predicted_logits_to_segmentation_with_correct_shape(
        predicted_array_or_file,
        plans_manager,
        configuration_manager,
        plans_manager.get_label_manager(dataset_json),
        properties_dict,
        return_probabilities=save_probabilities,
    )
    if save_probabilities:
        segmentation, probabilities = result
        classes = {f"classification_{task}": np.asarray(values, dtype=np.float32) for task, values in (classification or {}).items()}
        with atomic_path(output_file_truncated + ".npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, probabilities=probabilities, **classes)
        save_pickle(properties_dict, output_file_truncated + ".pkl")
    else:
        segmentation = result
    writer = plans_manager.image_reader_writer_class()
    writer.write_seg(segmentation, output_file_truncated + dataset_json["file_ending"], properties_dict)


def resample_and_save(
    predicted: torch.Tensor | np.ndarray,
    target_shape: list[int],
    output_file: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    properties_dict: dict,
    dataset_json_dict_or_file: dict | str,
    num_threads_torch: int = default_num_processes,
    dataset_class: Any = None,
) -> None:
    """Store the labels of a first stage on the grid of the next one, for training a cascade.

    Args:
        predicted: Logits ``(heads, X, Y, Z)``.
        target_shape: Spatial shape of the case in the next configuration.
        output_file: File of the preprocessed case without its ending.
        plans_manager: Gives the labels.
        configuration_manager: The configuration that made the logits.
        properties_dict: Not used, as in nnU-Net.
        dataset_json_dict_or_file: Gives the labels.
        num_threads_torch: Accepted for compatibility.
        dataset_class: Offers ``save_seg(seg, output_file)``; by default the class that reads the preprocessed data.
    """
    dataset_json = dataset_json_dict_or_file if isinstance(dataset_json_dict_or_file, Mapping) else load_json(dataset_json_dict_or_file)
    label_manager = plans_manager.get_label_manager(dataset_json)
    spacing = [*configuration_manager.spacing]
    logits = _as_array(predicted)
    resample = functools.partial(
        configuration_manager.resampling_fn_probabilities, new_shape=target_shape, current_spacing=spacing, new_spacing=spacing
    )
    if _works_by_channel(label_manager, configuration_manager):
        segmentation = _segmentation_by_channel(logits, resample, label_manager)
    else:
        segmentation = _as_array(label_manager.convert_logits_to_segmentation(_as_array(resample(logits))))
    segmentation = segmentation.astype(_label_dtype(label_manager), copy=False)
    if dataset_class is None:
        # By name: what trains is above this module, and only cascades need it.
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "training", "dataloading")
        dataset_class = recursive_find_python_class(folder, "nnUNetDatasetBlosc2", "nnunetv2.training.dataloading")
    dataset_class.save_seg(segmentation, output_file)


def _resampler(
    shape: tuple[int, ...], plans_manager: PlansManager, configuration_manager: ConfigurationManager, properties: dict
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from channels on the network's grid to channels on the grid of the cropped image."""
    original_spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    spacing = [*configuration_manager.spacing]
    if len(spacing) != len(shape):  # 2D configurations leave the distance of the slices as it is
        spacing = [original_spacing[0], *spacing]
    target_shape = properties["shape_after_cropping_and_before_resampling"]

    def resample(channels: np.ndarray) -> np.ndarray:
        return _as_array(configuration_manager.resampling_fn_probabilities(channels, target_shape, spacing, original_spacing))

    return resample


def _works_by_channel(label_manager: LabelManager, configuration_manager: ConfigurationManager) -> bool:
    """Whether resampling and decision are the package's own, which treat every channel by itself."""
    function = configuration_manager.resampling_fn_probabilities
    function = getattr(function, "func", function)
    return function.__module__.startswith("nnunetv2.preprocessing.resampling.") and _is_standard(label_manager)


def _is_standard(label_manager: LabelManager) -> bool:
    """Whether labels are decided by the package's own rules: the largest channel, or regions painted over each other."""
    own_rules = ("convert_logits_to_segmentation", "convert_probabilities_to_segmentation", "apply_inference_nonlin")
    standard_nonlinearity = LabelManager(label_manager.label_dict, label_manager.regions_class_order).inference_nonlin
    return label_manager.inference_nonlin is standard_nonlinearity and all(
        getattr(type(label_manager), name) is getattr(LabelManager, name) for name in own_rules
    )


def _segmentation_by_channel(logits: np.ndarray, resample: Callable[[np.ndarray], np.ndarray], label_manager: LabelManager) -> np.ndarray:
    """Labels of resampled logits, with one resampled channel in memory at a time."""
    if len(logits) != label_manager.num_segmentation_heads:
        raise ValueError(f"The network has {len(logits)} outputs, but the labels need {label_manager.num_segmentation_heads}.")
    channels = (resample(logits[index : index + 1])[0] for index in range(len(logits)))
    if label_manager.has_regions:
        return _labels_of_regions(channels, label_manager)
    return _index_of_largest(channels, _label_dtype(label_manager))


def _index_of_largest(channels: Iterator[np.ndarray], dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Like ``argmax`` over the channels: of equal values the first wins."""
    best = np.array(next(channels), dtype=np.float32)
    labels = np.zeros(best.shape, dtype=dtype)
    for index, channel in enumerate(channels, start=1):
        # By plane, which stays in the processor's cache; in float32, because numpy compares float16 slowly.
        for plane, best_plane, labels_plane in zip(channel, best, labels, strict=True):
            plane = plane.astype(np.float32, copy=False)
            np.copyto(labels_plane, dtype(index), where=plane > best_plane)
            np.maximum(best_plane, plane, out=best_plane)
    return labels


def _labels_of_regions(channels: Iterator[np.ndarray], label_manager: LabelManager) -> np.ndarray:
    """Regions painted one over the other, in the order that dataset.json asks for."""
    labels = None
    for channel, label in zip(channels, label_manager.regions_class_order, strict=True):
        if labels is None:
            labels = np.zeros(channel.shape, dtype=np.uint16)
        probability = _as_array(label_manager.apply_inference_nonlin(channel[None]))[0]
        labels[probability > REGION_THRESHOLD] = label
    assert labels is not None
    return labels


def _undo_crop(segmentation: np.ndarray, bbox: list[list[int]], original_shape: tuple[int, ...], label_manager: LabelManager) -> np.ndarray:
    """Background everywhere outside the box that was predicted."""
    result = np.zeros(tuple(original_shape), dtype=_label_dtype(label_manager))
    result[tuple(slice(start, stop) for start, stop in bbox)] = segmentation
    return result


def _label_dtype(label_manager: LabelManager) -> type[np.unsignedinteger]:
    return np.uint8 if len(label_manager.foreground_labels) < LARGEST_UINT8_COUNT else np.uint16


def _as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The array behind a tensor; arrays pass."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
