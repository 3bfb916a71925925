"""Raw dataset to dataset_fingerprint.json: sizes, spacings and foreground intensities of all cases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2.experiment_planning.dataset_fingerprint.intensity_statistics import (
    PERCENTILES,
    Samples,
    draw_foreground_samples,
    intensity_properties,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import load_raw_dataset_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter, check_values
from nnunetv2.imageio.label_values import whole_label_values
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.voxel_grid import check_same_grid, voxel_grid
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.memory_need import bytes_to_read_cases
from nnunetv2.scheduling import LOCAL, run_per_case
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_io import load_json, save_json
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from nnunetv2.utilities.worker_numbers import choose_workers

# Foreground intensities drawn from all cases together; nnU-Net's number, which plans depend on in their last digits.
TOTAL_SAMPLES = 10e7
SAMPLING_SEED = 1234


class DatasetFingerprintExtractor:
    """Computes dataset_fingerprint.json.

    Args:
        dataset_name_or_id: Dataset below nnUNet_raw.
        num_processes: Cases read at the same time.
        verbose: Print shape, spacing and cropping of every case.

    Raises:
        FileNotFoundError: If the dataset or its dataset.json is missing.
        ValueError: If dataset.json cannot be used, or there are no training cases.
    """

    show_progress_bar: bool = True
    fit_processes: bool = False  # run() takes as many processes as CPUs and memory carry, instead of num_processes
    scheduler: str = LOCAL  # where run() works: here, or the address of a Dask scheduler

    def __init__(self, dataset_name_or_id: str | int, num_processes: int = 8, verbose: bool = False) -> None:
        self.dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        self.verbose = verbose
        self.num_processes = num_processes
        self.input_folder = os.path.join(nnUNet_raw, self.dataset_name)
        self.dataset_json = load_raw_dataset_json(self.input_folder)
        self.dataset = get_filenames_of_train_images_and_targets(self.input_folder, self.dataset_json)
        if not self.dataset:
            raise ValueError(
                f"{self.input_folder} has no training cases: no file in imagesTr ends with {self.dataset_json.get('file_ending')!r}, "
                "the file_ending of dataset.json."
            )
        self.num_foreground_voxels_for_intensitystats = TOTAL_SAMPLES

    @staticmethod
    def collect_foreground_intensities(
        segmentation: np.ndarray, images: np.ndarray, seed: int = SAMPLING_SEED, num_samples: int = 10000
    ) -> tuple[list[np.ndarray | list], list[dict[str, float]]]:
        """Samples and statistics of the foreground of one case.

        Args:
            segmentation: Labels (1, x, y, z).
            images: Intensities (c, x, y, z).
            seed: Of the draw.
            num_samples: By channel, drawn with replacement.

        Returns:
            By channel the samples (an empty list without foreground), and by channel statistics of all foreground voxels.

        Raises:
            ValueError: If the arrays are not 4D or hold NaN.
        """
        check_case_arrays(images, segmentation)
        samples = draw_foreground_samples(segmentation, images, seed, num_samples)
        return [np.asarray(s) if len(s) else [] for s in samples], foreground_statistics(segmentation, images)

    @staticmethod
    def analyze_case(
        image_files: Sequence[str], segmentation_file: str, reader_writer_class: type[BaseReaderWriter], num_samples: int = 10000
    ) -> tuple[tuple[int, ...], Sequence[float], list, list[dict[str, float]], float]:
        """What one case adds to the fingerprint.

        Returns:
            Shape after cropping, spacing in mm of the image, samples by channel (see `draw_foreground_samples`), statistics by channel,
            and the share of voxels that cropping left.
        """
        reader = reader_writer_class()
        images, properties = reader.read_images(image_files)
        segmentation, segmentation_properties = reader.read_seg(segmentation_file)
        grid = voxel_grid(image_files[0], images, properties)
        check_same_grid(grid, voxel_grid(segmentation_file, segmentation, segmentation_properties))
        check_values(reader, images, image_files)
        check_values(reader, segmentation, [segmentation_file], "segmentation")
        segmentation = whole_label_values(segmentation, os.path.basename(segmentation_file))

        cropped, cropped_segmentation, _ = crop_to_nonzero(images, segmentation)
        samples = draw_foreground_samples(cropped_segmentation, cropped, SAMPLING_SEED, num_samples)
        statistics = foreground_statistics(cropped_segmentation, cropped)
        relative_size = np.prod(cropped.shape[1:]) / np.prod(images.shape[1:])
        return cropped.shape[1:], properties["spacing"], samples, statistics, float(relative_size)

    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        """Compute and write the fingerprint.

        Args:
            overwrite_existing: Compute it even if the file exists.

        Returns:
            The content of dataset_fingerprint.json.

        Raises:
            CaseErrors: If cases cannot be read; it lists all of them.
            ValueError: If no case has foreground, or a case has another number of channels than dataset.json.
        """
        preprocessed_folder = os.path.join(nnUNet_preprocessed, self.dataset_name)
        fingerprint_file = os.path.join(preprocessed_folder, "dataset_fingerprint.json")
        if os.path.isfile(fingerprint_file) and not overwrite_existing:
            fingerprint = load_json(fingerprint_file)
            n_cases = len(fingerprint.get("spacings", []))
            if n_cases != len(self.dataset):
                print(
                    f"WARNING: {fingerprint_file} was computed from {n_cases} cases, the dataset now has {len(self.dataset)}. "
                    "It is used as it is; --clean computes it again."
                )
            return fingerprint

        reader_writer_class = determine_reader_writer_from_dataset_json(self.dataset_json, next(iter(self.dataset.values()))["images"][0])
        num_samples = int(self.num_foreground_voxels_for_intensitystats // len(self.dataset))
        results = run_per_case(
            type(self).analyze_case,
            [
                ([os.path.abspath(file) for file in case["images"]], os.path.abspath(case["label"]), reader_writer_class, num_samples)
                for case in self.dataset.values()
            ],
            identifiers=list(self.dataset),
            num_processes=self._number_of_processes(),
            description="fingerprint",
            show_progress=self.show_progress_bar,
            scheduler=self.scheduler,
        )
        if self.verbose:
            for identifier, (shape, spacing, *_, relative_size) in zip(self.dataset, results, strict=True):
                sizes = f"{tuple(map(int, shape))} voxels of {[float(s) for s in spacing]} mm"
                print(f"{identifier}: {sizes}, cropped to {100 * relative_size:.1f} %")
        channel_names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        self.check_number_of_channels([len(r[2]) for r in results], len(channel_names))

        fingerprint = {
            "spacings": [list(r[1]) for r in results],
            "shapes_after_crop": [list(r[0]) for r in results],
            "foreground_intensity_properties_per_channel": {
                str(channel): self.intensity_properties([r[2][channel] for r in results]) for channel in range(len(channel_names))
            },
            "median_relative_size_after_cropping": float(np.median([r[4] for r in results])),
        }
        recursive_fix_for_json_export(fingerprint)
        os.makedirs(preprocessed_folder, exist_ok=True)
        save_json(fingerprint, fingerprint_file, sort_keys=True)
        return fingerprint

    def _number_of_processes(self) -> int:
        """Processes on this machine; says why where they were chosen, or where memory may not suffice."""
        if self.scheduler != LOCAL:
            return 1
        need = bytes_to_read_cases({identifier: case["images"] for identifier, case in self.dataset.items()})
        asked = None if self.fit_processes else self.num_processes
        chosen = choose_workers("fingerprint", need, asked, option="-np, in nnUNetv2_plan_and_preprocess -npfp")
        if chosen.message:
            print(chosen.message)
        return chosen.workers

    def check_number_of_channels(self, found: Sequence[int], expected: int) -> None:
        """Stop where cases have another number of channels than dataset.json."""
        wrong = {case: n for case, n in zip(self.dataset, found, strict=True) if n != expected}
        if wrong:
            listed = ", ".join(f"{case}: {n}" for case, n in list(wrong.items())[:20])
            raise ValueError(
                f"dataset.json of {self.dataset_name} names {expected} channels, but {len(wrong)} of {len(found)} cases have another "
                f"number ({listed}). Every channel is a file CASE_0000, CASE_0001, ... in imagesTr."
            )

    def intensity_properties(self, samples: Sequence[Samples]) -> dict[str, float]:
        """Statistics of the samples of one channel over all cases."""
        if not any(len(s) for s in samples):
            raise ValueError(
                f"Dataset {self.dataset_name} has no foreground: not one of its {len(samples)} segmentations holds a label above 0. "
                "Check that labelsTr holds the segmentations and that the background is 0."
            )
        return intensity_properties(samples)


def foreground_statistics(segmentation: np.ndarray, images: np.ndarray) -> list[dict[str, float]]:
    """By channel, statistics of all voxels whose label is above 0; NaN without any."""
    mask = segmentation[0] > 0
    names = ("mean", "min", "max", "percentile_00_5", "median", "percentile_99_5")
    if not mask.any():
        return [dict.fromkeys(names, float("nan")) for _ in images]
    statistics = []
    for image in images:
        voxels = image[mask]
        numbers = (np.mean(voxels), np.min(voxels), np.max(voxels), *np.percentile(voxels, PERCENTILES))
        statistics.append({name: float(number) for name, number in zip(names, numbers, strict=True)})
    return statistics


def check_case_arrays(images: np.ndarray, segmentation: np.ndarray) -> None:
    """Stop on arrays that are not (c, x, y, z) or hold NaN."""
    if images.ndim != 4 or segmentation.ndim != 4:
        raise ValueError(f"Expected arrays of four axes (c, x, y, z), found shapes {images.shape} and {segmentation.shape}.")
    if np.isnan(images).any() or np.isnan(segmentation).any():
        raise ValueError("Image or segmentation holds NaN. Replace it by a number before training.")
