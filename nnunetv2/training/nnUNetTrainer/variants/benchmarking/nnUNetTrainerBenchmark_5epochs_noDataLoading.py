"""How long an epoch takes on this machine when batches cost nothing."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs import nnUNetTrainerBenchmark_5epochs


class nnUNetTrainerBenchmark_5epochs_noDataLoading(nnUNetTrainerBenchmark_5epochs):
    """Every batch is the same noise: what is slower than this is slowed by reading, augmenting or the CPU."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        self.settle_seed()
        batch = self.noise_batch()
        return itertools.repeat(batch), itertools.repeat(batch)

    def noise_batch(self) -> dict[str, Any]:
        """A batch of random images and labels, on the device."""
        size = self.configuration_manager.patch_size
        scales = self._get_deep_supervision_scales()
        targets = [self.noise_target([round(n * factor) for n, factor in zip(size, scale)]) for scale in scales or [[1] * len(size)]]
        return {
            "data": torch.rand((self.batch_size, self.num_input_channels, *size), device=self.device),
            "target": targets if self.enable_deep_supervision else targets[0],
            "keys": [f"noise_{sample}" for sample in range(self.batch_size)],
        }

    def noise_target(self, size: list[int]) -> torch.Tensor:
        """Random labels, or one random channel for each region and the ignore label."""
        labels = self.label_manager
        if labels.has_regions:
            channels = len(labels.foreground_regions) + labels.has_ignore_label
            return torch.rand((self.batch_size, channels, *size), device=self.device) < 0.5
        return torch.randint(len(labels.all_labels), (self.batch_size, 1, *size), dtype=torch.int16, device=self.device)
