"""Patches for the refit of classification heads."""

from __future__ import annotations

import numpy as np

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


class EvidenceCentredLoader(nnUNetDataLoader):
    """A loader whose patches that must show foreground show the evidence of a task, where a case has any."""

    evidence_values: tuple[int, ...] = ()

    def _locations_to_show(self, force_fg, class_locations, overwrite_class, verbose) -> np.ndarray | None:
        if force_fg and overwrite_class is None:
            # A key is a label, or the labels of a region.
            shown = [
                key
                for key, locations in class_locations.items()
                if key != self.annotated_classes_key
                and len(locations) > 0
                and set(np.atleast_1d(key).tolist()) <= set(self.evidence_values)
            ]
            if shown:
                overwrite_class = shown[np.random.choice(len(shown))]
        return super()._locations_to_show(force_fg, class_locations, overwrite_class, verbose)
