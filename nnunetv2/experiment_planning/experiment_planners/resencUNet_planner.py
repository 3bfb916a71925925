"""Forwards ResEncUNetPlanner, which plans and users also know by this path."""

from __future__ import annotations

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import ResEncUNetPlanner

__all__ = ["ResEncUNetPlanner"]
