"""Weight initialisation."""

from __future__ import annotations

from torch import nn


class InitWeights_He:
    """Kaiming-normal weights and zero biases for convolutions; for ``network.apply``."""

    def __init__(self, neg_slope: float = 0.01) -> None:
        self.neg_slope = neg_slope

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=self.neg_slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
