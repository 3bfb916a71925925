"""Every patch has the same chance to show foreground."""

from __future__ import annotations

import torch

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_probabilisticOversampling(nnUNetTrainer):
    """Draws for each patch whether it must show foreground, with the share of patches that nnU-Net's rule gives on average.

    nnU-Net forces the last patches of each batch, one of two or three of nine; small batches get more than the 33 % asked for.
    """

    probabilistic_oversampling = True

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        batch_size = self.configuration_manager.batch_size
        forced = batch_size - round(batch_size * (1 - self.oversample_foreground_percent))
        self.oversample_foreground_percent = forced / batch_size

    def _set_batch_size_and_oversample(self) -> None:
        """The share of this process in the batch; a probability is the same in every process."""
        probability = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        self.oversample_foreground_percent = probability


class nnUNetTrainer_probabilisticOversampling_033(nnUNetTrainer_probabilisticOversampling):
    """A third of the patches, whatever the batch size."""

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.oversample_foreground_percent = 0.33


class nnUNetTrainer_probabilisticOversampling_010(nnUNetTrainer_probabilisticOversampling):
    """A tenth of the patches, whatever the batch size."""

    def __init__(
        self, plans: dict, configuration: str, fold: int | str, dataset_json: dict, device: torch.device = torch.device("cuda")
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.oversample_foreground_percent = 0.1
