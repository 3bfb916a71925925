"""Small networks of nnU-Net's kind for tests."""

from __future__ import annotations

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn


def small_unet(dimensions: int = 3, n_stages: int = 3, deep_supervision: bool = True, residual: bool = False) -> nn.Module:
    """Four channels in the first stage, doubling; one input channel, three outputs; always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        depth = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
        return (ResidualEncoderUNet if residual else PlainConvUNet)(
            input_channels=1,
            n_stages=n_stages,
            features_per_stage=[4 * 2**i for i in range(n_stages)],
            conv_op=(nn.Conv2d, nn.Conv3d)[dimensions - 2],
            kernel_sizes=3,
            strides=[1] + [2] * (n_stages - 1),
            num_classes=3,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 2],
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=deep_supervision,
            **depth,
        )
