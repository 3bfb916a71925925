"""Batch normalisation."""

from __future__ import annotations

from torch import nn

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class nnUNetTrainerBN(nnUNetTrainer):
    """The network of the plans with batch normalisation in place of instance normalisation."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        dimensions = len(configuration_manager.patch_size)
        # A new dict: the plans, which are written beside the checkpoints, stay those of the dataset.
        kwargs = {
            **configuration_manager.network_arch_init_kwargs,
            "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        }
        return get_network_from_plans(
            configuration_manager.network_arch_class_name,
            kwargs,
            {*configuration_manager.network_arch_init_kwargs_req_import, "norm_op"},
            num_input_channels,
            num_output_channels,
            allow_init=True,
            deep_supervision=enable_deep_supervision,
        )
