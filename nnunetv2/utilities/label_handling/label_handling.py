"""Labels and regions: what a segmentation's values mean, and how network output becomes a segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

LabelOrRegion = int | tuple[int, ...]
REGION_THRESHOLD = 0.5  # probability above which a voxel belongs to a region


class LabelManager:
    """The label section of a ``dataset.json``.

    Args:
        label_dict: Name to value, or to a list of values (a region).
        regions_class_order: Value that each foreground region writes, later ones over earlier ones; needed with regions.
        force_use_labels: Treat regions as if there were none.
        inference_nonlin: Logits ``(C, ...)`` to probabilities; sigmoid for regions, softmax otherwise.

    Raises:
        RuntimeError, AssertionError: If the labels contradict themselves.
    """

    def __init__(
        self,
        label_dict: Mapping[str, Any],
        regions_class_order: Sequence[int] | None,
        force_use_labels: bool = False,
        inference_nonlin: Callable | None = None,
    ) -> None:
        self._sanity_check(label_dict)
        self.label_dict = label_dict
        self.regions_class_order = regions_class_order
        self._force_use_labels = force_use_labels
        self._has_regions = not force_use_labels and any(_is_region(value) for value in label_dict.values())
        self._ignore_label = self._determine_ignore_label()
        self._all_labels = self._get_all_labels()
        self._regions = self._get_regions()
        if self.has_ignore_label and self._ignore_label != max(self._all_labels) + 1:
            raise AssertionError(
                f"The ignore label is {self._ignore_label}, expected {max(self._all_labels) + 1}: one more than the highest other label. "
                "Correct `labels` in dataset.json and the segmentation files."
            )
        self.inference_nonlin = inference_nonlin if inference_nonlin is not None else _sigmoid if self._has_regions else _softmax

    def _sanity_check(self, label_dict: Mapping[str, Any]) -> None:
        """The background is there and is 0."""
        if "background" not in label_dict:
            raise RuntimeError(f'`labels` in dataset.json lacks "background": 0; found {dict(label_dict)}.')
        background = label_dict["background"]
        if isinstance(background, (list, tuple)):
            raise RuntimeError(f"The background must be one value, 0; `labels` in dataset.json gives {background}.")
        if int(background) != 0:
            raise AssertionError(f"The background must have the value 0; `labels` in dataset.json gives {background}.")

    def _get_all_labels(self) -> list[int]:
        """Sorted values of all labels but ``ignore``."""
        values: set[int] = set()
        for name, value in self.label_dict.items():
            if name != "ignore":
                values.update(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        return [int(v) for v in sorted(values)]

    def _get_regions(self) -> list[LabelOrRegion] | None:
        """Regions in order of declaration; None without regions."""
        if not self._has_regions or self._force_use_labels:
            return None
        regions: list[LabelOrRegion] = []
        for name, value in self.label_dict.items():
            values = np.unique(np.atleast_1d(value))
            if name == "ignore" or (len(values) == 1 and values[0] == 0):
                continue
            regions.append(tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value))
        if self.regions_class_order is None:
            raise AssertionError("dataset.json declares regions (labels with several values), so it also needs `regions_class_order`.")
        if len(self.regions_class_order) != len(regions):
            raise AssertionError(
                f"`regions_class_order` in dataset.json has {len(self.regions_class_order)} entries, expected {len(regions)}: "
                f"one for each of the regions {regions}."
            )
        return regions

    def _determine_ignore_label(self) -> int | None:
        """The value of ``ignore``, if declared."""
        ignore = self.label_dict.get("ignore")
        if ignore is not None and not isinstance(ignore, int):
            raise AssertionError(f"The ignore label must be one whole number; `labels` in dataset.json gives {ignore!r}.")
        return ignore

    @property
    def has_regions(self) -> bool:
        """Whether any label has more than one value."""
        return self._has_regions

    @property
    def has_ignore_label(self) -> bool:
        """Whether ``ignore`` is declared."""
        return self._ignore_label is not None

    @property
    def all_regions(self) -> list[LabelOrRegion] | None:
        """Regions in order of declaration, without background and ignore; None without regions."""
        return self._regions

    @property
    def all_labels(self) -> list[int]:
        """Sorted values of all labels, background included, ignore left out."""
        return self._all_labels

    @property
    def ignore_label(self) -> int | None:
        """Value of the ignore label."""
        return self._ignore_label

    @property
    def foreground_regions(self) -> list[LabelOrRegion]:
        """Regions without background."""
        return self.filter_background(self.all_regions)

    @property
    def foreground_labels(self) -> list[int]:
        """Labels without background."""
        return self.filter_background(self.all_labels)

    @property
    def num_segmentation_heads(self) -> int:
        """Channels of the network's segmentation output."""
        return len(self.foreground_regions) if self.has_regions else len(self.all_labels)

    @staticmethod
    def filter_background(classes_or_regions: Sequence[LabelOrRegion]) -> list[LabelOrRegion]:
        """Entries other than 0 and (0,)."""
        return [c for c in classes_or_regions if (any(v != 0 for v in c) if isinstance(c, (list, tuple)) else c != 0)]

    def apply_inference_nonlin(self, logits: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Logits ``(C, ...)`` to float32 probabilities."""
        import torch

        with torch.no_grad():
            return self.inference_nonlin(torch.as_tensor(logits).float())

    def convert_probabilities_to_segmentation(self, predicted_probabilities: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Probabilities ``(C, ...)`` to a label map ``(...)``; numpy in, numpy out."""
        channels = predicted_probabilities.shape[0]
        if channels != self.num_segmentation_heads:
            raise AssertionError(f"Got {channels} channels of probabilities, expected {self.num_segmentation_heads} for these labels.")
        if not self.has_regions:
            return predicted_probabilities.argmax(0)
        if isinstance(predicted_probabilities, np.ndarray):
            segmentation = np.zeros(predicted_probabilities.shape[1:], dtype=np.uint16)
        else:
            import torch

            segmentation = torch.zeros(predicted_probabilities.shape[1:], dtype=torch.int16, device=predicted_probabilities.device)
        for probability, label in zip(predicted_probabilities, self.regions_class_order, strict=True):
            segmentation[probability > REGION_THRESHOLD] = label
        return segmentation

    def convert_logits_to_segmentation(self, predicted_logits: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """Logits ``(C, ...)`` to a label map ``(...)``."""
        # softmax keeps the order of the channels, so that labels need none
        return self.convert_probabilities_to_segmentation(
            self.apply_inference_nonlin(predicted_logits) if self.has_regions else predicted_logits
        )

    def revert_cropping_on_probabilities(
        self, predicted_probabilities: np.ndarray | torch.Tensor, bbox: Sequence[Sequence[int]], original_shape: Sequence[int]
    ) -> np.ndarray | torch.Tensor:
        """Paste probabilities ``(C, ...)`` into the uncropped shape; outside, the background has probability 1."""
        shape = (predicted_probabilities.shape[0], *original_shape)
        if isinstance(predicted_probabilities, np.ndarray):
            reverted = np.zeros(shape, dtype=predicted_probabilities.dtype)
        else:
            import torch

            reverted = torch.zeros(shape, dtype=predicted_probabilities.dtype, device=predicted_probabilities.device)
        if not self.has_regions:
            reverted[0] = 1
        reverted[(slice(None), *(slice(low, high) for low, high in bbox))] = predicted_probabilities
        return reverted


def get_labelmanager_class_from_plans(plans: Mapping[str, Any]) -> type[LabelManager]:
    """The label manager that plans name; ``LabelManager`` if they name none."""
    name = plans.get("label_manager")
    if name is None or name == "LabelManager":
        return LabelManager
    import os

    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = recursive_find_python_class(os.path.dirname(__file__), name, "nnunetv2.utilities.label_handling")
    if found is None:
        raise RuntimeError(f"The plans name the label manager {name!r}, which does not exist in nnunetv2.utilities.label_handling.")
    return found


def convert_labelmap_to_one_hot(
    segmentation: np.ndarray | torch.Tensor, all_labels: Sequence[int], output_dtype: Any = None
) -> np.ndarray | torch.Tensor:
    """Label map ``(...)`` to ``(len(all_labels), ...)`` with 1 where a label is.

    Args:
        segmentation: Label map.
        all_labels: Label of each output channel; need not be consecutive.
        output_dtype: uint8 if None (uint16 where a label needs it).
    """
    if isinstance(segmentation, np.ndarray):
        dtype = output_dtype if output_dtype is not None else np.uint8 if max(all_labels) < 255 else np.uint16
        one_hot = np.zeros((len(all_labels), *segmentation.shape), dtype=dtype)
        for channel, label in zip(one_hot, all_labels, strict=True):
            channel[segmentation == int(label)] = 1
        return one_hot
    import torch

    dtype = output_dtype if output_dtype is not None else torch.uint8 if max(all_labels) < 255 else torch.int16
    one_hot = torch.zeros((len(all_labels), *segmentation.shape), dtype=dtype, device=segmentation.device)
    for channel, label in enumerate(all_labels):
        one_hot[channel][segmentation == int(label)] = 1
    return one_hot


def determine_num_input_channels(
    plans_manager: PlansManager, configuration_or_config_manager: str | ConfigurationManager, dataset_json: Mapping[str, Any]
) -> int:
    """Image channels, plus one for each foreground label when the configuration continues a previous stage."""
    configuration = (
        plans_manager.get_configuration(configuration_or_config_manager)
        if isinstance(configuration_or_config_manager, str)
        else configuration_or_config_manager
    )
    channels = len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])
    if configuration.previous_stage_name is None:
        return channels
    return channels + len(plans_manager.get_label_manager(dataset_json).foreground_labels)


def _is_region(value: Any) -> bool:
    """Whether a label has more than one value."""
    return isinstance(value, (list, tuple)) and len(value) > 1


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the channel axis 0; a function of the module, so that label managers can be sent to other processes."""
    return logits.softmax(0)


def _sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Each channel on its own."""
    return logits.sigmoid()
