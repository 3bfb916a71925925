"""Draws patches from preprocessed cases, forces some of them onto foreground, and augments them."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunetv2.training.data_augmentation.affine_warp import compiled_kernel
from nnunetv2.training.data_augmentation.device_augmentation import DeviceAugmentedStream, ImageLater, reason_to_stay
from nnunetv2.training.data_augmentation.fast_transforms import first_spatial_transform
from nnunetv2.training.dataloading.batch import Batch, as_batch
from nnunetv2.training.dataloading.class_targets import LABEL_MAP_KEY, EvidenceRule, class_part, with_label_map_kept
from nnunetv2.training.dataloading.random_state import random_seed, restored_random_state, seed_sample, single_torch_thread

if TYPE_CHECKING:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
    from nnunetv2.utilities.label_handling.classification_labels import CaseLabels
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

IMAGE_PAD_VALUE = 0
SEGMENTATION_PAD_VALUE = -1
PARTIAL_READING_FROM_VOXELS = 500_000  # smaller patches are read whole; measured: no gain below about 80 voxels per axis


class nnUNetDataLoader(DataLoader):
    """Batches of augmented patches.

    ``generate_batch(epoch, iteration)`` is a function of ``seed`` and its arguments: every sample has a random state of
    its own. ``next(loader)`` and ``generate_train_batch()`` draw from the global random states, as batchgenerators'
    augmenters expect.

    Args:
        data: Preprocessed cases.
        batch_size: Samples per batch.
        patch_size: Voxels to read per axis, before augmentation; two axes for 2D.
        final_patch_size: Voxels per axis that the transforms leave.
        label_manager: Tells the labels and whether there is an ignore label.
        oversample_foreground_percent: Share of the samples, the last of each batch, whose patch must show foreground.
        sampling_probabilities: How often each case (in the order of ``data.identifiers``) is drawn; None is uniform.
        pad_sides: Voxels by which patches may reach farther beyond the image.
        probabilistic_oversampling: Decide by chance for every sample instead of by its position in the batch.
        transforms: Augmentation of one sample; None leaves patches as they are read.
        case_labels: Class labels by identifier; None or without tasks gives batches without classes.
        evidence_weights: By task, which labels show the class (:func:`class_targets.evidence_rules`).
        seed: Base of every random state of ``generate_batch``; None draws one, kept as ``seed``.
        sample_offset: Number of the first sample within the batch over all ranks of a distributed training.
        global_batch_size: Samples of that batch; None if the last one is the last of this loader.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        patch_size: Sequence[int] | np.ndarray,
        final_patch_size: Sequence[int] | np.ndarray,
        label_manager: LabelManager,
        oversample_foreground_percent: float = 0.0,
        sampling_probabilities: Sequence[float] | np.ndarray | None = None,
        pad_sides: Sequence[int] | None = None,
        probabilistic_oversampling: bool = False,
        transforms: BasicTransform | None = None,
        *,
        case_labels: CaseLabels | None = None,
        evidence_weights: Mapping[str, EvidenceRule] | None = None,
        seed: int | None = None,
        sample_offset: int = 0,
        global_batch_size: int | None = None,
    ) -> None:
        super().__init__(data, batch_size, 1, None, True, shuffle=False, infinite=True, sampling_probabilities=sampling_probabilities)
        self.indices = list(data.identifiers)
        _check_sampling(self.indices, sampling_probabilities)
        self.patch_size_was_2d = len(patch_size) == 2
        leading = (1,) if self.patch_size_was_2d else ()
        self.patch_size = (*leading, *(int(n) for n in patch_size))
        self.final_patch_size = (*leading, *(int(n) for n in final_patch_size))
        self.pad_sides = pad_sides
        self.need_to_pad = np.array(self.patch_size) - np.array(self.final_patch_size)
        if pad_sides is not None:
            self.need_to_pad = self.need_to_pad + np.array((*leading, *pad_sides) if len(pad_sides) == 2 else pad_sides)
        self.num_channels = None
        self.oversample_foreground_percent = oversample_foreground_percent
        self.annotated_classes_key = (-1, *label_manager.all_labels)
        self.has_ignore = label_manager.has_ignore_label
        self.probabilistic_oversampling = probabilistic_oversampling
        self.get_do_oversample = self._probabilistic_oversampling if probabilistic_oversampling else self._oversample_last_XX_percent
        self.case_labels = case_labels if case_labels is not None and case_labels.tasks else None
        self.evidence_weights = dict(evidence_weights or {})
        self.transforms = transforms
        self.image_later = False  # see leaving_images()
        self._extended_transforms: tuple[Any, Any] = (None, None)
        self.seed = random_seed() if seed is None else int(seed)
        self.sample_offset = sample_offset
        self.global_batch_size = sample_offset + batch_size if global_batch_size is None else global_batch_size

    # --- which patch

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        """Whether a sample is among the last ones of the batch, those that must show foreground."""
        return not sample_idx < round(self.batch_size * (1 - self.oversample_foreground_percent))

    def _probabilistic_oversampling(self, sample_idx: int) -> bool:
        """The same decided by chance."""
        return np.random.uniform() < self.oversample_foreground_percent

    def get_bbox(
        self,
        data_shape: Sequence[int] | np.ndarray,
        force_fg: bool,
        class_locations: Mapping[int | tuple[int, ...], np.ndarray] | None,
        overwrite_class: int | tuple[int, ...] | None = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Corners of a patch, which may reach beyond the image.

        Args:
            data_shape: Spatial shape of the case, three axes.
            force_fg: Centre the patch on a voxel of some class.
            class_locations: Voxels by class; the last three columns are coordinates.
            overwrite_class: With ``force_fg``, the class to centre on instead of a random one.
            verbose: Say so when a case has no foreground.

        Returns:
            Lower corner (inclusive) and upper corner (exclusive).
        """
        shape = [int(n) for n in data_shape]
        padding = [max(int(pad), size - n) for pad, size, n in zip(self.need_to_pad, self.patch_size, shape)]
        lowest = [-pad // 2 for pad in padding]
        highest = [n + pad // 2 + pad % 2 - size for n, pad, size in zip(shape, padding, self.patch_size)]

        locations = self._locations_to_show(force_fg, class_locations or {}, overwrite_class, verbose)
        if locations is None or len(locations) == 0:
            lower = [int(np.random.randint(low, high + 1)) for low, high in zip(lowest, highest)]
        else:
            voxel = locations[np.random.choice(len(locations))][-len(shape) :]
            # No upper limit: the voxel lies within the image, so more than half of the patch may be padding but never all.
            lower = [max(low, int(v) - size // 2) for low, v, size in zip(lowest, voxel, self.patch_size)]
        return lower, [low + size for low, size in zip(lower, self.patch_size)]

    def _locations_to_show(self, force_fg, class_locations, overwrite_class, verbose) -> np.ndarray | None:
        """Voxels out of which one has to be in the patch; None when any patch will do."""
        if not force_fg:
            if not self.has_ignore:
                return None
            annotated = class_locations.get(self.annotated_classes_key, ())
            if len(annotated) == 0:
                warnings.warn("A case has an ignore label but no annotated voxel; its patches are drawn anywhere.", stacklevel=2)
            return annotated
        eligible = [key for key, locations in class_locations.items() if len(locations) > 0]
        if self.annotated_classes_key in eligible and len(eligible) > 1:
            eligible.remove(self.annotated_classes_key)
        if not eligible:
            if verbose:
                print("case does not contain any foreground classes")
            return None
        if overwrite_class is None:
            return class_locations[eligible[np.random.choice(len(eligible))]]
        if overwrite_class not in eligible:
            raise ValueError(f"overwrite_class {overwrite_class!r} has no voxel in this case; present: {eligible}.")
        return class_locations[overwrite_class]

    # --- samples and batches

    def generate_train_batch(self) -> Batch:
        """A batch drawn from the global random states of numpy and torch."""
        identifiers = self.get_indices()
        samples = [self._generate_sample(identifier, position) for position, identifier in enumerate(identifiers)]
        return self._collate(identifiers, samples)

    def generate_batch(self, epoch: int, iteration: int) -> Batch:
        """The batch at a position of the training: always the same one, in every process.

        The global random states are left as they were.
        """
        with restored_random_state(), single_torch_thread():
            if type(self).generate_train_batch is not nnUNetDataLoader.generate_train_batch:  # a user's own way
                self._seed(epoch, iteration, 0)
                return as_batch(self.generate_train_batch())
            identifiers, samples = [], []
            for position in range(self.batch_size):
                self._seed(epoch, iteration, position)
                identifiers.append(self._draw_identifier(position))
                samples.append(self._generate_sample(identifiers[-1], position))
            return self._collate(np.array(identifiers), samples)

    def prepare_for_workers(self) -> None:
        """What is better done once, before worker processes start, than by each of them."""
        transform, _ = first_spatial_transform(self.transforms)
        if transform is not None:
            compiled_kernel(len(transform.patch_size))

    def identifiers_of_batch(self, epoch: int, iteration: int) -> list[str]:
        """The cases of :meth:`generate_batch` at the same position, without reading anything."""
        identifiers = []
        with restored_random_state():
            for position in range(self.batch_size):
                self._seed(epoch, iteration, position)
                identifiers.append(str(self._draw_identifier(position)))
        return identifiers

    def _draw_identifier(self, position: int) -> str:
        """The case of a sample. A whole global batch is drawn, so that every number of ranks gives the same cases and random states."""
        own, self.batch_size = self.batch_size, self.global_batch_size
        try:
            return self.get_indices()[self.sample_offset + position]
        finally:
            self.batch_size = own

    def _seed(self, epoch: int, iteration: int, position: int) -> None:
        seed_sample(self.seed, epoch, iteration, self.sample_offset + position)

    def _generate_sample(self, identifier: str, position: int) -> dict[str, Any]:
        """One augmented patch: ``image``, ``segmentation`` and, with classes, ``label_map``."""
        try:
            image, segmentation = self._read_patch(identifier, self.get_do_oversample(position))
            sample = {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(segmentation)}
            if self.patch_size_was_2d:
                sample = {key: tensor[:, 0] for key, tensor in sample.items()}
            transforms = self._sample_transforms()
            if transforms is not None:
                with torch.no_grad():
                    return transforms(**sample)
            return {**sample, LABEL_MAP_KEY: sample["segmentation"][:1]}
        except Exception as error:
            spatial, _ = first_spatial_transform(self._sample_transforms())
            if spatial is not None:
                spatial.forget_drawn()
            raise RuntimeError(f"Case {identifier}: no training sample could be made: {type(error).__name__}: {error}") from error

    def _read_patch(self, identifier: str, force_fg: bool) -> tuple[np.ndarray, np.ndarray]:
        """Image ``(C, *patch_size)`` float32 and segmentation ``(1 or 2, *patch_size)`` int16 at a random place.

        Only the part of the patch that the transforms will look at, if they can tell.
        """
        image, segmentation, previous, properties = self._data.load_case(identifier)
        lower, upper = self.get_bbox(image.shape[1:], force_fg, properties.get("class_locations"))
        needed = self._needed_part()
        if needed is not None:
            lower, upper = [low + part.start for low, part in zip(lower, needed)], [low + part.stop for low, part in zip(lower, needed)]

        def patch_of(array, pad_value, dtype) -> np.ndarray:
            return crop_with_padding(array, lower, upper, pad_value, dtype)

        image_patch = patch_of(image, IMAGE_PAD_VALUE, np.float32)
        label_patch = patch_of(segmentation, SEGMENTATION_PAD_VALUE, np.int16)
        if previous is not None:
            previous_patch = patch_of(previous, SEGMENTATION_PAD_VALUE, np.int16)
            # stored with or without a channel axis
            label_patch = np.concatenate((label_patch, previous_patch.reshape(1, *label_patch.shape[1:])))
        return image_patch, label_patch

    def _needed_part(self) -> tuple[slice, ...] | None:
        """The part of the patch that the transforms will look at; None if it is not worth asking or cannot be told."""
        spatial, in_planes = first_spatial_transform(self._sample_transforms())
        if spatial is None or math.prod(self.patch_size) < PARTIAL_READING_FROM_VOXELS:
            return None
        leading = self.patch_size[: int(self.patch_size_was_2d or in_planes)]
        part = spatial.draw_ahead(self.patch_size[len(leading) :])
        return None if part is None else (*(slice(0, size) for size in leading), *part)

    def _sample_transforms(self) -> BasicTransform | None:
        """The transforms, which with classes also keep the label map that weights are taken from, and may leave the image for later."""
        if self.case_labels is None and not self.image_later:
            return self.transforms
        source, extended = self._extended_transforms
        if source is not self.transforms:
            extended = self.transforms if self.case_labels is None else with_label_map_kept(self.transforms)
            if self.image_later:
                extended = ImageLater(extended.transforms)
            self._extended_transforms = (self.transforms, extended)
        return extended

    def leaving_images(self) -> nnUNetDataLoader:
        """The same loader, whose batches have ``image_later`` in place of ``data``: what a :class:`DeviceAugmentedStream` makes it from.

        Not for all loaders; see :func:`reason_to_augment_here`.
        """
        other = copy.copy(self)
        other.image_later, other._extended_transforms = True, (None, None)
        return other

    def device_stream(self, stream: Any, device: torch.device) -> DeviceAugmentedStream:
        """A stream of this loader's batches with images finished on a device; for what :meth:`leaving_images` returns."""
        return DeviceAugmentedStream(stream, self._sample_transforms(), device)

    def _collate(self, identifiers: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Stacks samples to a batch."""
        channels = {sample["image"].shape[0] for sample in samples}
        if len(channels) > 1:
            found = ", ".join(f"{name}: {sample['image'].shape[0]}" for name, sample in zip(identifiers, samples))
            raise RuntimeError(f"The cases of a batch differ in their number of channels ({found}). Preprocess the dataset again.")
        targets = [sample["segmentation"] for sample in samples]
        if isinstance(targets[0], (list, tuple)):
            target: Any = [torch.stack(scale) for scale in zip(*targets)]
        else:
            target = torch.stack(targets)
        classes = {}
        if self.case_labels is not None:
            label_maps = [sample.get(LABEL_MAP_KEY) for sample in samples]
            classes = class_part([str(name) for name in identifiers], self.case_labels, self.evidence_weights, label_maps)
        rest = {"target": target, "keys": identifiers, "class": classes}
        if self.image_later:
            kept = ("image", "image_work", "large", "more_channels")
            return Batch({"data": None, **rest, "image_later": [{key: sample[key] for key in kept} for sample in samples]})
        return Batch({"data": torch.stack([sample["image"] for sample in samples]), **rest})


def reason_to_augment_here(loader: Any) -> str | None:
    """Why a loader cannot leave its images to a device; None if it can."""
    if not isinstance(loader, nnUNetDataLoader) or type(loader).generate_train_batch is not nnUNetDataLoader.generate_train_batch:
        return f"{type(loader).__name__} makes batches in its own way"
    return reason_to_stay(loader.transforms)


def crop_with_padding(array: Any, lower: Sequence[int], upper: Sequence[int], pad_value: float, dtype: np.dtype | type) -> np.ndarray:
    """A box out of the last axes of an array, in memory of its own.

    Args:
        array: Whatever slices to a numpy array (numpy, memory map, blosc2); leading axes are kept whole.
        lower: First index per axis; may be negative.
        upper: Last index + 1 per axis; may lie beyond the array. A box outside of it altogether is all padding.
        pad_value: Value of what is not in the array.
        dtype: Of the result.
    """
    leading = tuple(array.shape[: array.ndim - len(lower)])
    shape = array.shape[array.ndim - len(lower) :]
    first = [min(max(low, 0), n) for low, n in zip(lower, shape)]
    last = [max(min(up, n), start) for up, n, start in zip(upper, shape, first)]
    box = (*(slice(None) for _ in leading), *(slice(start, stop) for start, stop in zip(first, last)))
    size = tuple(up - low for low, up in zip(lower, upper))
    if tuple(stop - start for start, stop in zip(first, last)) == size:
        inside = array[box]
        if isinstance(array, np.ndarray):
            return np.array(inside, dtype=dtype, order="C")
        return np.asarray(inside, dtype=dtype, order="C")  # numpy before 2 does not know copy=None
    patch = np.full((*leading, *size), pad_value, dtype=dtype)
    if all(stop > start for start, stop in zip(first, last)):
        target = (slice(start - low, stop - low) for low, start, stop in zip(lower, first, last))
        patch[(*(slice(None) for _ in leading), *target)] = array[box]
    return patch


def _check_sampling(identifiers: Sequence[str], probabilities: Sequence[float] | np.ndarray | None) -> None:
    """Raises ValueError if there is nothing to draw from, or the probabilities are none."""
    if len(identifiers) == 0:
        raise ValueError("The dataset has no cases to draw patches from. Check the split of this fold and the preprocessed folder.")
    if probabilities is None:
        return
    if len(probabilities) != len(identifiers) or np.min(probabilities) < 0 or not np.isclose(np.sum(probabilities), 1):
        raise ValueError(
            f"sampling_probabilities must be {len(identifiers)} numbers from 0 that sum to 1, one per case; "
            f"found {len(probabilities)} that sum to {np.sum(probabilities):g}."
        )
