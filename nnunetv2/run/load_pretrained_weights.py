"""Start a training from the weights of another one."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import nn

from nnunetv2.network_architecture.joint_network import HEADS_PREFIX
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

# The last convolution of each decoder output has one channel per label, and labels differ between datasets.
NOT_TRANSFERRED = ".seg_layers."


def load_pretrained_weights(
    network: nn.Module, fname: str | os.PathLike, verbose: bool = False, report: Callable[[str], None] = print
) -> None:
    """Copy the weights of a checkpoint into a network, except the segmentation layers.

    Classification heads are taken over where the checkpoint has the same ones; otherwise they keep their initial weights.

    Args:
        network: May be compiled or distributed.
        fname: A checkpoint of this package or of stock nnU-Net.
        verbose: Name every weight that is copied.
        report: Where to say what was done.

    Raises:
        ValueError: If the checkpoint lacks a weight of encoder or decoder, or has it in another shape.
    """
    while isinstance(network, nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network._orig_mod
    checkpoint = load_checkpoint_file(fname, map_location="cpu")
    if "network_weights" not in checkpoint:
        raise ValueError(f"{fname} has no entry network_weights, found {sorted(checkpoint)[:10]}. Give a checkpoint of nnU-Net.")
    pretrained: dict[str, torch.Tensor] = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    own = network.state_dict()

    needed = [key for key in own if NOT_TRANSFERRED not in key and not key.startswith(HEADS_PREFIX)]
    problems = [_problem(key, own, pretrained) for key in needed]
    problems = [problem for problem in problems if problem]
    if problems:
        listed = "\n  ".join(problems[:10]) + ("\n  ..." if len(problems) > 10 else "")
        raise ValueError(
            f"The weights of {fname} do not fit this network: {len(problems)} of {len(needed)} are missing or of another shape.\n  {listed}\n"
            "Both trainings need the same network architecture; nnUNetv2_move_plans_between_datasets takes plans over from one dataset to another."
        )
    heads = [key for key in own if key.startswith(HEADS_PREFIX)]
    heads = heads if heads and all(_problem(key, own, pretrained) is None for key in heads) else []
    taken = [*needed, *heads]
    network.load_state_dict({**own, **{key: pretrained[key] for key in taken}})

    report(f"Pretrained weights of {fname}: {len(taken)} of {len(own)} tensors taken over.")
    kept = [key for key in own if key not in set(taken)]
    if kept:
        kinds = [name for part, name in ((NOT_TRANSFERRED, "segmentation layers"), (HEADS_PREFIX, "classification heads")) if any(part in k for k in kept)]
        report(f"The {' and '.join(kinds)} keep their initial weights.")
    if verbose:
        for key in taken:
            report(f"  {key} {tuple(own[key].shape)}")


def _problem(key: str, own: dict[str, torch.Tensor], pretrained: dict[str, torch.Tensor]) -> str | None:
    """What hinders a weight from being copied."""
    if key not in pretrained:
        return f"{key}: missing"
    if own[key].shape != pretrained[key].shape:
        return f"{key}: {tuple(pretrained[key].shape)} in the checkpoint, {tuple(own[key].shape)} here"
    return None
