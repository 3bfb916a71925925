"""Raw case to network input: read, crop, normalise, resample, store."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from os.path import join
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.imageio.base_reader_writer import check_values
from nnunetv2.imageio.label_values import (
    check_finite,
    declared_labels,
    undeclared_labels,
    undeclared_message,
    whole_label_values,
)
from nnunetv2.imageio.voxel_grid import check_same_grid, voxel_grid
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.case_records import ENDINGS, CaseRecord, prepare_records, records_of_cases
from nnunetv2.preprocessing.case_storage import comp_blosc2_params, store_case
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.memory_need import bytes_to_preprocess_cases
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.scheduling import LOCAL, run_per_case
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.default_n_proc_DA import usable_cpus
from nnunetv2.utilities.file_io import TEMPORARY_PREFIX, load_json, remove_remains
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from nnunetv2.utilities.worker_numbers import choose_workers

LabelOrRegion = int | tuple[int, ...]
LOCATIONS_SEED = 1234  # nnU-Net's
MIN_LOCATIONS, MIN_LOCATION_SHARE = 10000, 0.01  # of each class: so many voxels, and at least this share of them
STORED_LABELS = np.iinfo(np.int16)
UNPACKED = (".npz", ".npy")  # arrays as older versions store them, and preprocessors of users


class DefaultPreprocessor:
    """nnU-Net's preprocessing. Subclasses change single steps, ``modify_seg_fn`` first of all.

    Args:
        verbose: Print shapes and spacings of every case.
    """

    show_progress_bar: bool = True
    start_over: bool = False  # run() makes every case again, also those that are there and have not changed
    fit_processes: bool = False  # run() takes as many processes as CPUs and memory carry, instead of the number it is given
    scheduler: str = LOCAL  # where run() works: here, or the address of a Dask scheduler
    part_id: int = 0  # run() makes the cases of one part
    num_parts: int = 1

    def __init__(self, verbose: bool = True) -> None:
        self.verbose = verbose

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Preprocess arrays.

        Args:
            data: Image ``(C, X, Y, Z)`` in the reader's axis order; not modified.
            seg: Segmentation ``(1, X, Y, Z)`` or None; not modified.
            properties: With ``spacing`` in mm; receives the crop box, shapes and class locations.
            plans_manager: Plans.
            configuration_manager: Configuration.
            dataset_json: Content of dataset.json, or its path.

        Returns:
            float32 image, int8 or int16 segmentation (-1 outside the non-zero region; without a segmentation 0 inside it),
            and the properties.
        """
        if isinstance(dataset_json, str):
            dataset_json = load_json(dataset_json)
        if seg is not None and data.shape[1:] != seg.shape[1:]:
            raise ValueError(
                f"Image and segmentation have different shapes, {data.shape[1:]} and {seg.shape[1:]}. "
                "Both must lie on the same voxel grid; --verify_dataset_integrity lists every affected case."
            )
        check_finite(data, "given as array")
        forward = [0, *(axis + 1 for axis in plans_manager.transpose_forward)]
        # The only copy: everything up to normalization works on views of it. Its memory layout decides the last bit of the
        # float32 sums of z-scores, so the axes are permuted after copying, as nnU-Net does.
        data = data.astype(np.float32).transpose(forward)
        seg = None if seg is None else _as_stored_labels(seg).transpose(forward)
        original_spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]

        properties["shape_before_cropping"] = data.shape[1:]
        has_label = seg is not None
        data, seg, bbox = crop_to_nonzero(data, seg)
        properties["bbox_used_for_cropping"] = bbox
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]

        target_spacing = list(configuration_manager.spacing)
        if len(target_spacing) < len(data.shape[1:]):
            target_spacing = [original_spacing[0], *target_spacing]  # 2D: slices stay as they are
        new_shape = compute_new_shape(data.shape[1:], original_spacing, target_spacing)

        # Before resampling: interpolated values would shift the statistics.
        data = self._normalize(data, seg, configuration_manager, plans_manager.foreground_intensity_properties_per_channel)
        old_shape = data.shape[1:]
        data = configuration_manager.resampling_fn_data(data, new_shape, original_spacing, target_spacing)
        seg = configuration_manager.resampling_fn_seg(seg, new_shape, original_spacing, target_spacing)
        if self.verbose:
            print(f"old shape: {old_shape}, new shape: {tuple(new_shape)}, old spacing: {original_spacing}, new spacing: {target_spacing}")

        if has_label:
            label_manager = plans_manager.get_label_manager(dataset_json)
            wanted = list(label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels)
            if label_manager.has_ignore_label:
                wanted.append([-1, *label_manager.all_labels])
            properties["class_locations"] = self._sample_foreground_locations(seg, wanted, verbose=self.verbose)
            seg = self.modify_seg_fn(seg, plans_manager, dataset_json, configuration_manager)
            _check_declared(seg, label_manager)
        return data, seg.astype(np.int16 if seg.max() > 127 else np.int8), properties

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Read and preprocess one case; see :meth:`run_case_npy`.

        Raises:
            ValueError: If the image has voxels that are not finite, the segmentation values that dataset.json does not declare, or the two
                do not lie on the same voxel grid.
        """
        if isinstance(dataset_json, str):
            dataset_json = load_json(dataset_json)
        reader = plans_manager.image_reader_writer_class()
        data, properties = reader.read_images(image_files)
        check_values(reader, data, image_files)
        seg = None
        if seg_file is not None:
            seg, seg_properties = reader.read_seg(seg_file)
            check_same_grid(voxel_grid(image_files[0], data, properties), voxel_grid(seg_file, seg, seg_properties))
            check_values(reader, seg, [seg_file], "segmentation")
            seg = whole_label_values(seg, os.path.basename(seg_file))
            declared = declared_labels(dataset_json["labels"])
            undeclared = undeclared_labels(seg, declared)
            if undeclared:
                raise ValueError(f"{os.path.basename(seg_file)}: {undeclared_message(undeclared, declared)}.")
        return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: Sequence[str],
        seg_file: str,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> None:
        """Read, preprocess and store one training case; an older version of it stays until the new one is complete."""
        data, seg, properties = self.run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        data, seg = data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
        patch_size = configuration_manager.patch_size
        store_case(
            output_filename_truncated,
            data,
            seg,
            properties,
            comp_blosc2_params(data.shape, patch_size, data.itemsize),
            comp_blosc2_params(seg.shape, patch_size, seg.itemsize),
        )

    @staticmethod
    def _sample_foreground_locations(
        seg: np.ndarray,
        classes_or_regions: Sequence[LabelOrRegion | list[int]],
        seed: int = LOCATIONS_SEED,
        verbose: bool = False,
        min_num_samples: int = MIN_LOCATIONS,
        min_percent_coverage: float = MIN_LOCATION_SHARE,
    ) -> dict[LabelOrRegion, np.ndarray | list]:
        """Random voxels of every class, for patches that shall show it.

        Args:
            seg: ``(1, X, Y, Z)``.
            classes_or_regions: Labels, or tuples of labels.
            seed: Of the draw.
            verbose: Unused.
            min_num_samples: Voxels drawn, if there are as many.
            min_percent_coverage: Share of the class drawn at least.

        Returns:
            By label (int) or region (tuple) int64 rows ``(0, x, y, z)``, or an empty list.
        """
        random = np.random.RandomState(seed)
        keys = [tuple(int(v) for v in c) if isinstance(c, (tuple, list)) else int(c) for c in classes_or_regions]
        labels_of = {key: key if isinstance(key, tuple) else (key,) for key in keys}
        runs = _voxels_by_label(seg, sorted({label for labels in labels_of.values() for label in labels}))
        locations: dict[LabelOrRegion, np.ndarray | list] = {}
        for key in keys:
            voxels = [runs[label] for label in labels_of[key]]
            total = sum(map(len, voxels))
            if total == 0:
                locations[key] = []
                continue
            number = max(min(min_num_samples, total), int(np.ceil(total * min_percent_coverage)))
            drawn = np.concatenate(voxels)[random.choice(total, number, replace=False)]
            locations[key] = np.stack((np.zeros(number, dtype=np.int64), *np.unravel_index(drawn, seg.shape[1:])), axis=1)
        return locations

    def _normalize(
        self,
        data: np.ndarray,
        seg: np.ndarray,
        configuration_manager: ConfigurationManager,
        foreground_intensity_properties_per_channel: dict[str, dict[str, float]],
    ) -> np.ndarray:
        """Normalize every channel by its scheme, in place."""
        schemes = configuration_manager.normalization_schemes
        if len(schemes) != len(data):
            raise ValueError(
                f"The image has {len(data)} channels, but the plans describe {len(schemes)} (normalization schemes {', '.join(schemes)}). "
                "Every case needs one file for each channel of dataset.json; plan again if dataset.json changed."
            )
        for channel, name in enumerate(schemes):
            normalizer = _normalization_scheme(name)(
                use_mask_for_norm=configuration_manager.use_mask_for_norm[channel],
                intensityproperties=foreground_intensity_properties_per_channel[str(channel)],
            )
            data[channel] = normalizer.run(data[channel], seg[0])
        return data

    def run(self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int) -> None:
        """Preprocess every case of one configuration; a case is replaced when its new files are whole.

        Cases that an earlier run made from the same files with the same settings and code are kept, see
        :mod:`nnunetv2.preprocessing.case_records`, unless ``start_over`` is set.

        Raises:
            FileNotFoundError: If the raw dataset or the plans are missing.
            CaseErrors: Naming every case that failed; the others are done.
        """
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        # absolute: workers on other machines start elsewhere
        raw_folder, preprocessed_folder = (os.path.abspath(join(root, dataset_name)) for root in (nnUNet_raw, nnUNet_preprocessed))
        plans_file = join(preprocessed_folder, plans_identifier + ".json")
        for path, step in ((raw_folder, "Put the raw dataset there"), (plans_file, "Run nnUNetv2_plan_experiment first")):
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path} does not exist. {step}.")
        plans_manager = PlansManager(plans_file)
        configuration_manager = plans_manager.get_configuration(configuration_name)
        dataset_json = load_json(join(preprocessed_folder, "dataset.json"))
        dataset = get_filenames_of_train_images_and_targets(raw_folder, dataset_json)

        output_folder = join(preprocessed_folder, configuration_manager.data_identifier)
        os.makedirs(output_folder, exist_ok=True)
        _remove_other_files(output_folder, dataset, is_alone=self.num_parts == 1)
        prepare_records(output_folder, dataset)
        records = records_of_cases(self, output_folder, dataset, plans_manager, configuration_manager, dataset_json)
        identifiers = list(dataset)[self.part_id :: self.num_parts]
        if not self.start_over:
            identifiers = _not_current(identifiers, records)
        shared = (plans_manager, configuration_manager, dataset_json)
        cases = [(join(output_folder, i), dataset[i]["images"], dataset[i]["label"], *shared) for i in identifiers]
        if self.scheduler == LOCAL:
            need = bytes_to_preprocess_cases({i: dataset[i]["images"] for i in identifiers}, plans_manager, configuration_manager)
            chosen = choose_workers("preprocessing", need, None if self.fit_processes else num_processes)
            num_processes = min(chosen.workers, len(cases))
            if chosen.message:
                print(chosen.message)
        else:
            num_processes = 1  # each worker of a cluster counts its own threads
        try:
            run_per_case(
                _run_one_of_several,
                [(self, num_processes, records[i], *case) for i, case in zip(identifiers, cases, strict=True)],
                identifiers=identifiers,
                num_processes=num_processes,
                description="preprocessing",
                show_progress=self.show_progress_bar,
                scheduler=self.scheduler,
            )
        finally:  # workers may have been killed
            remove_remains(records[i].output_truncated + ending for i in identifiers for ending in ENDINGS)
            remove_remains(records[i].file for i in identifiers)
        if self.scheduler != LOCAL:  # a worker that was given up but lives on may have been at the same case
            _check_stored(identifiers, records)

    def modify_seg_fn(
        self, seg: np.ndarray, plans_manager: PlansManager, dataset_json: dict, configuration_manager: ConfigurationManager
    ) -> np.ndarray:
        """Hook of subclasses: the resampled segmentation as it will be stored."""
        return seg


@functools.cache
def _normalization_scheme(name: str) -> type:
    """A class by its name in plans; searched once, which takes as long as preprocessing a small image.

    Raises:
        RuntimeError: If there is none.
    """
    import nnunetv2.preprocessing.normalization as package

    scheme = recursive_find_python_class(package.__path__[0], name, package.__name__)
    if scheme is None:
        raise RuntimeError(f"The plans name the normalization {name!r}, which no module of {package.__name__} defines.")
    return scheme


def _run_one_of_several(preprocessor: DefaultPreprocessor, num_processes: int, record: CaseRecord, *case: Any) -> None:
    """Store one case with this process' share of the cores: matrix products of all processes at once would overload them."""
    from threadpoolctl import threadpool_limits

    record.remove()
    with threadpool_limits(max(1, usable_cpus() // num_processes)) if num_processes > 1 else nullcontext():
        preprocessor.run_case_save(*case)
    record.write()


def _check_stored(identifiers: Sequence[str], records: Mapping[str, CaseRecord]) -> None:
    """Raise RuntimeError if cases that were just written are not there as a whole."""
    missing = [identifier for identifier in identifiers if not records[identifier].is_made()]
    if missing:
        raise RuntimeError(
            f"{len(missing)} cases were written, but their files are not there or other ones: {', '.join(missing[:20])}. Check that all "
            "workers see the same folders and that nothing else writes there, and run the command again: the other cases are kept."
        )


def _not_current(identifiers: Sequence[str], records: Mapping[str, CaseRecord]) -> list[str]:
    """The cases that have to be made; says how many need not."""
    todo = [identifier for identifier in identifiers if not records[identifier].is_current()]
    if len(todo) < len(identifiers):
        print(
            f"{len(identifiers) - len(todo)} of {len(identifiers)} cases are there already, made from the same files with the same "
            "settings and code, and are kept (--start_over makes them again)."
        )
    return todo


def _as_stored_labels(seg: np.ndarray) -> np.ndarray:
    """A copy of the labels as int16, the dtype of the stored segmentation.

    Raises:
        ValueError: If a value is no whole number or does not fit.
    """
    seg = whole_label_values(seg, "given as array")
    if seg.size and (seg.min() < STORED_LABELS.min or seg.max() > STORED_LABELS.max):
        raise ValueError(
            f"The segmentation holds labels from {seg.min():g} to {seg.max():g}, "
            f"but only {STORED_LABELS.min} to {STORED_LABELS.max} can be stored. Renumber the labels from 0 upwards, in the files and in dataset.json."
        )
    return seg.astype(np.int16)


def _check_declared(seg: np.ndarray, label_manager: LabelManager) -> None:
    """Raise ValueError for a label above all declared ones, which no loss could place; gaps are found by the integrity check."""
    declared = [*label_manager.all_labels, *([label_manager.ignore_label] if label_manager.has_ignore_label else [])]
    if seg.size and seg.max() > max(declared):
        unknown = [int(label) for label in np.unique(seg) if label > max(declared)]
        raise ValueError(
            f"The segmentation holds {', '.join(map(str, unknown))}, but dataset.json declares the labels {', '.join(map(str, declared))}. "
            "Correct the file or 'labels' in dataset.json and plan again; --verify_dataset_integrity lists every affected case."
        )


def _voxels_by_label(seg: np.ndarray, labels: Sequence[int]) -> dict[int, np.ndarray]:
    """Flat indices of the voxels of each label in ascending order, found in one pass whatever the number of labels."""
    flat = np.flatnonzero(np.isin(seg, labels))
    values = seg.reshape(-1)[flat]
    order = np.argsort(values, kind="stable")
    flat, values = flat[order], values[order]
    starts, ends = np.searchsorted(values, labels, side="left"), np.searchsorted(values, labels, side="right")
    return {label: flat[start:end] for label, start, end in zip(labels, starts, ends, strict=True)}


def _remove_other_files(folder: str, identifiers: Collection[str], *, is_alone: bool) -> None:
    """Remove cases that the dataset no longer has, unpacked files, and what an interrupted run left over.

    If this run is not alone, others may write at this moment, and unpacked files of a case may be what a preprocessor of the user
    has just stored; both stay.
    """
    usual = {f"{identifier}{ending}" for identifier in identifiers for ending in ENDINGS}
    of_cases = tuple(f"{identifier}{end}" for identifier in identifiers for end in "._")
    for entry in os.scandir(folder):
        is_unpacked = entry.name.endswith(UNPACKED)
        if entry.name in usual or not (is_unpacked or entry.name.endswith((".b2nd", ".pkl"))) or not entry.is_file():
            continue
        of_others = entry.name.startswith(TEMPORARY_PREFIX) or (is_unpacked and entry.name.startswith(of_cases))
        if is_alone or not of_others:
            Path(entry.path).unlink(missing_ok=True)  # another part may have removed it just now
