"""Pictures of cases with their labels in colour, to look through a dataset quickly. Spacing is not regarded.

Importable as ``nnunetv2.utilities.overlay_plots``, where nnU-Net has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.scheduling import run_per_case
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import atomic_path, load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

# nnU-Net's: background black, which adds nothing, then colours that are easily told apart.
color_cycle = (
    "000000", "4363d8", "f58231", "3cb44b", "e6194B", "911eb4", "ffe119", "bfef45", "42d4f4", "f032e6", "000075", "9A6324", "808000",
    "800000", "469990",
)  # fmt: skip
BRIGHTEST = 255
PREFERRED_CONFIGURATIONS = ("3d_fullres", "2d")


def hex_to_rgb(hex: str) -> tuple[int, int, int]:
    """``f58231`` -> ``(245, 130, 49)``."""
    if len(hex) != 6:
        raise ValueError(f"{hex!r} is no colour; expected six hexadecimal digits, such as f58231.")
    return int(hex[:2], 16), int(hex[2:4], 16), int(hex[4:], 16)


def generate_overlay(
    input_image: np.ndarray,
    segmentation: np.ndarray,
    mapping: Mapping[int, int] | None = None,
    color_cycle: Sequence[str] = color_cycle,
    overlay_intensity: float = 0.6,
) -> np.ndarray:
    """A picture with labels in colour.

    Args:
        input_image: ``(Y, X)``, or ``(Y, X, 3)`` in colours; any range of values. Not modified.
        segmentation: ``(Y, X)``.
        mapping: Index of the colour by label value, others stay as they are; None: the labels of this picture in their order.
        color_cycle: Colours as hexadecimal numbers; begun again where there are more labels.
        overlay_intensity: How much of the colour is added.

    Returns:
        uint8 ``(Y, X, 3)``.
    """
    image = np.asarray(input_image, dtype=np.float64)
    if image.shape[:2] != segmentation.shape or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"Image {image.shape} and segmentation {segmentation.shape} do not fit; expected (Y, X) or (Y, X, 3) and (Y, X) of one size."
        )
    picture = _stretched(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image)
    if mapping is None:
        mapping = {value: index for index, value in enumerate(np.unique(segmentation))}
    for value, index in mapping.items():
        picture[segmentation == value] += overlay_intensity * np.array(hex_to_rgb(color_cycle[index % len(color_cycle)]))
    return (picture / max(picture.max(), 1) * BRIGHTEST).astype(np.uint8)


def _stretched(image: np.ndarray) -> np.ndarray:
    """Values from 0 to 255; all 0 for an image of one value, and where there is no number."""
    finite = np.isfinite(image)
    if not finite.any():
        return np.zeros(image.shape)
    lowest, highest = image[finite].min(), image[finite].max()
    return np.where(finite, image - lowest, 0) / (highest - lowest or 1) * BRIGHTEST


def select_slice_to_plot(image: np.ndarray, segmentation: np.ndarray) -> int:
    """The slice of the first axis with the most voxels that are not background; of several the first.

    Args:
        image: Not looked at.
        segmentation: ``(Z, Y, X)``.
    """
    return int((segmentation != 0).sum(axis=(1, 2)).argmax())


def select_slice_to_plot2(image: np.ndarray, segmentation: np.ndarray) -> int:
    """The slice of the first axis that shows most of all classes: the mean over classes of the share of their voxels; 0 without any.

    Args:
        image: Not looked at.
        segmentation: ``(Z, Y, X)``.
    """
    counts = [(segmentation == value).sum(axis=(1, 2)) for value in np.unique(segmentation) if value > 0]
    return int(np.mean([count / count.sum() for count in counts], axis=0).argmax()) if counts else 0


def colours_of_labels(segmentation: np.ndarray) -> dict[int, int]:
    """Index of the colour by label value, the same in every picture of a dataset; black is left to the background."""
    return {int(value): 1 + (int(value) - 1) % (len(color_cycle) - 1) for value in np.unique(segmentation) if value > 0}


def plot_overlay(
    image_file: str, segmentation_file: str, image_reader_writer: BaseReaderWriter, output_file: str, overlay_intensity: float = 0.6
) -> None:
    """Write the picture of a raw case as PNG; images with three channels in one file are taken as colours."""
    image, _ = image_reader_writer.read_images((image_file,))
    segmentation, _ = image_reader_writer.read_seg(segmentation_file)
    if image.shape[1:] != segmentation.shape[1:]:
        raise ValueError(
            f"{image_file} and {segmentation_file} have different shapes, {image.shape[1:]} and {segmentation.shape[1:]}. "
            "--verify_dataset_integrity lists every affected case."
        )
    image = image.transpose(1, 2, 3, 0) if len(image) == 3 else image[0]
    _save_picture(image, segmentation[0], output_file, overlay_intensity)


def plot_overlay_preprocessed(
    dataset: nnUNetBaseDataset, k: str, output_folder: str, overlay_intensity: float = 0.6, channel_idx: int = 0
) -> None:
    """Write the picture of the preprocessed case `k` as ``output_folder/k.png``."""
    data, segmentation, _, _ = dataset.load_case(k)
    if not 0 <= channel_idx < data.shape[0]:
        raise ValueError(f"Case {k} has no channel {channel_idx}; it has {data.shape[0]}, counted from 0 (-channel_idx).")
    output_file = os.path.join(output_folder, f"{k}.png")
    _save_picture(np.asarray(data[channel_idx]), np.asarray(segmentation[0]), output_file, overlay_intensity)


def _save_picture(image: np.ndarray, segmentation: np.ndarray, output_file: str, overlay_intensity: float) -> None:
    """Write the slice that shows most; image ``(Z, Y, X)`` or ``(Z, Y, X, 3)``, segmentation ``(Z, Y, X)``."""
    index = select_slice_to_plot2(image, segmentation)
    picture = generate_overlay(
        image[index], segmentation[index], colours_of_labels(segmentation[index]), overlay_intensity=overlay_intensity
    )
    with atomic_path(output_file) as temporary:
        imsave(temporary, picture)


def multiprocessing_plot_overlay(
    list_of_image_files: Sequence[str],
    list_of_seg_files: Sequence[str],
    image_reader_writer: BaseReaderWriter,
    list_of_output_files: Sequence[str],
    overlay_intensity: float,
    num_processes: int = 8,
) -> None:
    """Write the pictures of several raw cases; failures are reported together at the end."""
    tasks = [
        (image, segmentation, image_reader_writer, output, overlay_intensity)
        for image, segmentation, output in zip(list_of_image_files, list_of_seg_files, list_of_output_files, strict=True)
    ]
    identifiers = [Path(output).stem for output in list_of_output_files]
    run_per_case(plot_overlay, tasks, identifiers=identifiers, num_processes=num_processes, description="plotting")


def multiprocessing_plot_overlay_preprocessed(
    dataset: nnUNetBaseDataset, output_folder: str, overlay_intensity: float, num_processes: int = 8, channel_idx: int = 0
) -> None:
    """Write the pictures of all cases of a preprocessed dataset; failures are reported together at the end."""
    tasks = [(dataset, identifier, output_folder, overlay_intensity, channel_idx) for identifier in dataset.identifiers]
    run_per_case(plot_overlay_preprocessed, tasks, identifiers=dataset.identifiers, num_processes=num_processes, description="plotting")


def generate_overlays_from_raw(
    dataset_name_or_id: int | str, output_folder: str, num_processes: int = 8, channel_idx: int = 0, overlay_intensity: float = 0.6
) -> None:
    """Write ``{case}.png`` for every training case of a raw dataset.

    Args:
        dataset_name_or_id: The dataset.
        output_folder: Made if it does not exist.
        num_processes: Worker processes.
        channel_idx: Which image of each case, 0 for ``_0000``.
        overlay_intensity: How much of the colours is added.
    """
    folder = Path(nnUNet_raw) / maybe_convert_to_dataset_name(dataset_name_or_id)
    dataset_json = load_json(folder / "dataset.json")
    cases = get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    lacking = [identifier for identifier, files in cases.items() if not 0 <= channel_idx < len(files["images"])]
    if lacking or not cases:
        problem = f"{', '.join(lacking[:5])}: no channel {channel_idx}, counted from 0 (-channel_idx)" if lacking else "no training cases"
        raise ValueError(f"{folder}: {problem}.")
    images = [files["images"][channel_idx] for files in cases.values()]
    reader_writer = determine_reader_writer_from_dataset_json(dataset_json, images[0])()
    os.makedirs(output_folder, exist_ok=True)
    outputs = [os.path.join(output_folder, f"{identifier}.png") for identifier in cases]
    labels = [files["label"] for files in cases.values()]
    multiprocessing_plot_overlay(images, labels, reader_writer, outputs, overlay_intensity, num_processes)


def generate_overlays_from_preprocessed(
    dataset_name_or_id: int | str,
    output_folder: str,
    num_processes: int = 8,
    channel_idx: int = 0,
    configuration: str | None = None,
    plans_identifier: str = "nnUNetPlans",
    overlay_intensity: float = 0.6,
) -> None:
    """Write ``{case}.png`` for every case of a preprocessed dataset.

    Args:
        dataset_name_or_id: The dataset.
        output_folder: Made if it does not exist.
        num_processes: Worker processes.
        channel_idx: Channel to show.
        configuration: Of the plans; None: ``3d_fullres`` if there is one, else ``2d``.
        plans_identifier: Name of the plans.
        overlay_intensity: How much of the colours is added.
    """
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(dataset_name_or_id)
    plans_manager = PlansManager(str(folder / f"{plans_identifier}.json"))
    if configuration is None:
        available = plans_manager.available_configurations
        configuration = next((name for name in PREFERRED_CONFIGURATIONS if name in available), PREFERRED_CONFIGURATIONS[0])
    cases = str(folder / plans_manager.get_configuration(configuration).data_identifier)
    dataset = infer_dataset_class(cases)(cases)
    os.makedirs(output_folder, exist_ok=True)
    multiprocessing_plot_overlay_preprocessed(dataset, output_folder, overlay_intensity, num_processes, channel_idx)
