"""From logits on the network's grid back to the image: undo resampling, cropping and the order of axes, and write the files.

Logits are interpolated and then turned into labels, not the other way round, because that is more precise. ``blockwise_export`` does
this block by block, so that memory does not grow with the number of classes. Resampling that does not work in blocks (cubic splines,
torch, a user's own function) goes channel by channel where each is treated by itself, else with all channels at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.blockwise_export import BlockwiseProbabilities, fill_labels, index_of_largest
from nnunetv2.inference.prediction_files import write_probability_file
from nnunetv2.preprocessing.resampling.blockwise_resampling import BlockwiseResampling, blockwise_resampling
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.file_io import load_json, save_pickle
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import REGION_THRESHOLD, LabelManager

if TYPE_CHECKING:
    import torch

    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

LARGEST_UINT8_COUNT = 255  # this many foreground labels or more need uint16


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: torch.Tensor | np.ndarray,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties_dict: dict,
    return_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
    *,
    threads: int = 1,
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
        threads: That share the work, as far as it can be shared; more than one only where nothing else uses the processor, such as a network.

    Returns:
        The segmentation ``(X, Y, Z)``, uint8 or uint16, in the axis order of the reader; with probabilities a tuple of both.
    """
    logits = _as_array(predicted_logits)
    segmentation, inside = empty_segmentation(label_manager, properties_dict)
    bbox, original_shape = properties_dict["bbox_used_for_cropping"], properties_dict["shape_before_cropping"]
    backward = plans_manager.transpose_backward
    blockwise = _blockwise(logits, plans_manager, configuration_manager, label_manager, properties_dict)
    resample = _resampler(logits.shape[1:], plans_manager, configuration_manager, properties_dict)
    if return_probabilities:
        if blockwise is not None and _is_finite(logits):
            probabilities = np.zeros((len(logits), *original_shape), dtype=np.float32)
            if not label_manager.has_regions:
                probabilities[0] = 1
            BlockwiseProbabilities(logits, blockwise, label_manager, inside).fill(probabilities[(slice(None), *_box(bbox))])
        else:
            probabilities = _as_array(label_manager.apply_inference_nonlin(resample(logits)))
            inside[...] = _as_array(label_manager.convert_probabilities_to_segmentation(probabilities))
            probabilities = _as_array(label_manager.revert_cropping_on_probabilities(probabilities, bbox, original_shape))
        return segmentation.transpose(backward), probabilities.transpose([0, *(axis + 1 for axis in backward)])
    if blockwise is not None and fill_labels(logits, blockwise, label_manager, inside, threads):
        return segmentation.transpose(backward)
    if _works_by_channel(label_manager, configuration_manager):
        inside[...] = _segmentation_by_channel(logits, resample, label_manager)
    else:
        inside[...] = _as_array(label_manager.convert_logits_to_segmentation(resample(logits)))
    return segmentation.transpose(backward)


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
    threads: int = 1,
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
        threads: See :func:`convert_predicted_logits_to_segmentation_with_correct_shape`.
    """
    if isinstance(predicted_array_or_file, (str, os.PathLike)):
        predicted_array_or_file = np.load(predicted_array_or_file, allow_pickle=False)
    dataset_json = dataset_json_dict_or_file if isinstance(dataset_json_dict_or_file, Mapping) else load_json(dataset_json_dict_or_file)
    label_manager = plans_manager.get_label_manager(dataset_json)
    grid = (plans_manager, configuration_manager, label_manager, properties_dict)
    if save_probabilities:
        classes = {f"classification_{task}": np.asarray(values, dtype=np.float32) for task, values in (classification or {}).items()}
        segmentation = _write_probabilities(_as_array(predicted_array_or_file), *grid, output_file_truncated + ".npz", classes)
        save_pickle(properties_dict, output_file_truncated + ".pkl")
    else:
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(predicted_array_or_file, *grid, threads=threads)
    write_segmentation(segmentation, properties_dict, plans_manager, dataset_json, output_file_truncated)


def write_segmentation(
    segmentation: np.ndarray, properties: dict, plans_manager: PlansManager, dataset_json: Mapping[str, Any], output_file_truncated: str
) -> None:
    """Write a finished segmentation ``(X, Y, Z)``, in the axis order of the reader, to a file named without its ending."""
    writer = plans_manager.image_reader_writer_class()
    writer.write_seg(segmentation, output_file_truncated + dataset_json["file_ending"], properties)


def _write_probabilities(
    logits: np.ndarray,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties: dict,
    file: str,
    classes: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Write ``probabilities`` and the classes into an ``.npz``, channel by channel where that is possible; returns the segmentation."""
    blockwise = _blockwise(logits, plans_manager, configuration_manager, label_manager, properties)
    if blockwise is None or not _is_finite(logits):
        segmentation, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans_manager, configuration_manager, label_manager, properties, return_probabilities=True
        )
        write_probability_file(file, probabilities.shape, probabilities, classes)
        return segmentation
    segmentation, inside = empty_segmentation(label_manager, properties)
    cropped = BlockwiseProbabilities(logits, blockwise, label_manager, inside).channels()
    channels = (
        _on_original_grid(values, 1 if index == 0 and not label_manager.has_regions else 0, plans_manager, properties)
        for index, values in enumerate(cropped)
    )
    segmentation = segmentation.transpose(plans_manager.transpose_backward)
    write_probability_file(file, (len(logits), *segmentation.shape), channels, classes)
    return segmentation


def _on_original_grid(values: np.ndarray, outside: float, plans_manager: PlansManager, properties: dict) -> np.ndarray:
    """One channel of the cropped image, in the image and in the axis order of the reader."""
    result = np.full(tuple(properties["shape_before_cropping"]), outside, dtype=values.dtype)
    result[_box(properties["bbox_used_for_cropping"])] = values
    return result.transpose(plans_manager.transpose_backward)


def empty_segmentation(label_manager: LabelManager, properties: dict) -> tuple[np.ndarray, np.ndarray]:
    """Background everywhere, in the network's order of axes, and the box of it that was predicted."""
    segmentation = np.zeros(tuple(properties["shape_before_cropping"]), dtype=label_dtype(label_manager))
    return segmentation, segmentation[_box(properties["bbox_used_for_cropping"])]


def _box(bbox: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bbox)


def _is_finite(logits: np.ndarray) -> bool:
    """Whether all are numbers; by channel, without a mask as large as the logits."""
    return all(bool(np.isfinite(channel).all()) for channel in logits)


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
    segmentation = segmentation.astype(label_dtype(label_manager), copy=False)
    if dataset_class is None:
        # By name: what trains is above this module, and only cascades need it.
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "training", "dataloading")
        dataset_class = recursive_find_python_class(folder, "nnUNetDatasetBlosc2", "nnunetv2.training.dataloading")
    dataset_class.save_seg(segmentation, output_file)


def _resampler(
    shape: tuple[int, ...], plans_manager: PlansManager, configuration_manager: ConfigurationManager, properties: dict
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from channels on the network's grid to channels on the grid of the cropped image."""
    target_shape, spacing, original_spacing = _grids(shape, plans_manager, configuration_manager, properties)

    def resample(channels: np.ndarray) -> np.ndarray:
        return _as_array(configuration_manager.resampling_fn_probabilities(channels, target_shape, spacing, original_spacing))

    return resample


def _grids(
    shape: tuple[int, ...], plans_manager: PlansManager, configuration_manager: ConfigurationManager, properties: dict
) -> tuple[tuple[int, ...], list[float], list[float]]:
    """Shape of the cropped image, spacing of the network's grid and of the image's, all in the network's order of axes."""
    original_spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    spacing = [*configuration_manager.spacing]
    if len(spacing) != len(shape):  # 2D configurations leave the distance of the slices as it is
        spacing = [original_spacing[0], *spacing]
    return properties["shape_after_cropping_and_before_resampling"], spacing, original_spacing


def _blockwise(
    logits: np.ndarray,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties: dict,
) -> BlockwiseResampling | None:
    """The resampling of logits to the cropped image in blocks; None where resampling or labels are not of the kind that can do so."""
    if logits.dtype not in (np.float16, np.float32):
        return None
    blockwise = resampling_by_blocks(logits.shape[1:], plans_manager, configuration_manager, label_manager, properties)
    if blockwise is not None:
        _check_number_of_heads(logits, label_manager)
    return blockwise


def resampling_by_blocks(
    shape: tuple[int, ...],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties: dict,
    row_stops: Sequence[int] = (),
) -> BlockwiseResampling | None:
    """The resampling of float logits of a shape ``(X, Y, Z)`` to the cropped image, in blocks.

    Args:
        shape: Of the network's grid.
        plans_manager: Says how axes were permuted.
        configuration_manager: Says how logits are resampled.
        label_manager: Turns logits into labels.
        properties: Of the case, made by the preprocessor.
        row_stops: See :func:`blockwise_resampling`.

    Returns:
        None where resampling or labels are not of the kind that can do so.
    """
    function = configuration_manager.resampling_fn_probabilities
    if getattr(function, "func", None) is not resample_data_or_seg_to_shape or function.args or not _is_standard(label_manager):
        return None
    grids = _grids(shape, plans_manager, configuration_manager, properties)
    return blockwise_resampling(shape, *grids, **function.keywords, row_stops=row_stops)


def _works_by_channel(label_manager: LabelManager, configuration_manager: ConfigurationManager) -> bool:
    """Whether resampling and decision are the package's own, which treat every channel by itself."""
    function = configuration_manager.resampling_fn_probabilities
    function = getattr(function, "func", function)
    return function.__module__.startswith("nnunetv2.preprocessing.resampling.") and _is_standard(label_manager)


def _is_standard(label_manager: LabelManager) -> bool:
    """Whether labels are decided by the package's own rules: the largest channel, or regions painted over each other."""
    own_rules = (
        "convert_logits_to_segmentation",
        "convert_probabilities_to_segmentation",
        "apply_inference_nonlin",
        "revert_cropping_on_probabilities",
    )
    standard_nonlinearity = LabelManager(label_manager.label_dict, label_manager.regions_class_order).inference_nonlin
    return label_manager.inference_nonlin is standard_nonlinearity and all(
        getattr(type(label_manager), name) is getattr(LabelManager, name) for name in own_rules
    )


def _segmentation_by_channel(logits: np.ndarray, resample: Callable[[np.ndarray], np.ndarray], label_manager: LabelManager) -> np.ndarray:
    """Labels of resampled logits, with one resampled channel in memory at a time."""
    _check_number_of_heads(logits, label_manager)
    channels = (resample(logits[index : index + 1])[0] for index in range(len(logits)))
    if label_manager.has_regions:
        return _labels_of_regions(channels, label_manager)
    return index_of_largest(enumerate(channels), label_dtype(label_manager))


def _check_number_of_heads(logits: np.ndarray, label_manager: LabelManager) -> None:
    """Raise ValueError if the logits are not those of the labels."""
    if len(logits) != label_manager.num_segmentation_heads:
        raise ValueError(f"The network has {len(logits)} outputs, but the labels need {label_manager.num_segmentation_heads}.")


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


def label_dtype(label_manager: LabelManager) -> type[np.unsignedinteger]:
    return np.uint8 if len(label_manager.foreground_labels) < LARGEST_UINT8_COUNT else np.uint16


def _as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The array behind a tensor; arrays pass."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
