"""Start a training from the weights of another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunetv2.network_architecture.joint_network import HEAD_PREFIX, HEADS_PREFIX
from nnunetv2.utilities.checkpoint_io import load_checkpoint_file

# The last convolution of each decoder output has one channel per label, and labels differ between datasets.
NOT_TRANSFERRED = ".seg_layers."
# With less than this share of the values of encoder and decoder, the checkpoint is of another architecture: what fits does so by chance.
SMALLEST_SHARE = 0.5
# What wrappers put before the names of weights.
_WRAPPERS = ("module.", "_orig_mod.")


def load_pretrained_weights(
    network: nn.Module, fname: str | os.PathLike, verbose: bool = False, report: Callable[[str], None] = print
) -> None:
    """Copy the weights of a checkpoint into a network, except the segmentation layers.

    Tensors that the checkpoint lacks or has in another shape keep their initial weights; each is reported. Classification heads are taken
    over task by task, where classes and weights are those of the checkpoint.

    Args:
        network: May be compiled or distributed, on any device.
        fname: A checkpoint of this package or of stock nnU-Net, written on any device.
        verbose: Name every weight that is copied.
        report: Where to say what was done.

    Raises:
        ValueError: If less than half of encoder and decoder (by the number of values) is in the checkpoint. The network is not changed then.
    """
    network = _unwrapped(network)
    checkpoint = load_checkpoint_file(fname, map_location="cpu")
    if "network_weights" not in checkpoint:
        raise ValueError(f"{fname} has no entry network_weights, found {sorted(checkpoint)[:10]}. Give a checkpoint of nnU-Net.")
    pretrained: dict[str, Tensor] = {_without_wrappers(key): value for key, value in checkpoint["network_weights"].items()}
    own = network.state_dict()
    groups = list(_groups_of_names(network, own))

    taken, problems = _match([group for group in groups if _is_transferred(group)], own, pretrained)
    _check_share(fname, groups, own, taken, problems)
    head_names, head_remarks = _matching_heads(network, groups, own, pretrained, checkpoint.get("classification"))
    taken |= head_names
    network.load_state_dict({**own, **{name: pretrained[source] for name, source in taken.items()}})

    report(f"Pretrained weights of {fname}: {len(taken)} of {len(own)} tensors taken over.")
    kept = [key for key in own if key not in taken]
    kinds = {NOT_TRANSFERRED: "segmentation layers", HEADS_PREFIX: "classification heads"}
    named = [name for part, name in kinds.items() if any(part in key for key in kept)]
    if named:
        report(f"The {' and '.join(named)} keep their initial weights.")
    for remark in head_remarks:
        report(f"  {remark}")
    if problems:
        report(f"WARNING: {len(problems)} tensors of encoder and decoder do not fit either and keep their initial weights:")
        for problem in problems:
            report(f"  {problem}")
    if verbose:
        for name in taken:
            report(f"  {name} {tuple(own[name].shape)}")


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, out of the shells of compilation and distribution."""
    while isinstance(network, nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network._orig_mod
    return network


def _without_wrappers(name: str) -> str:
    """The name of a weight as the network itself has it."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _groups_of_names(network: nn.Module, own: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names of every tensor. U-Nets store each under up to four: the encoder is part of the decoder, each block lists its layers."""
    groups: dict[int, list[str]] = {}
    for name, tensor in [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]:
        if name in own:
            groups.setdefault(id(tensor), []).append(name)
    yield from groups.values()


def _is_transferred(group: Sequence[str]) -> bool:
    """Whether a tensor belongs to encoder or decoder."""
    return not any(NOT_TRANSFERRED in name or name.startswith(HEADS_PREFIX) for name in group)


def _match(
    groups: Sequence[Sequence[str]], own: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]
) -> tuple[dict[str, str], list[str]]:
    """For each name that the checkpoint has weights for, their name there; and what hinders the others, one line for each tensor."""
    taken, problems = {}, []
    for group in groups:
        sources = [name for name in group if name in pretrained]
        if not sources:
            problems.append(f"{group[0]}: missing")
        elif pretrained[sources[0]].shape != own[group[0]].shape:
            there, here = (list(weights.shape) for weights in (pretrained[sources[0]], own[group[0]]))
            problems.append(f"{group[0]}: {there} in the checkpoint, {here} here")
        else:
            taken.update(dict.fromkeys(group, sources[0]))
    return taken, problems


def _check_share(
    fname: str | os.PathLike, groups: Sequence[Sequence[str]], own: Mapping[str, Tensor], taken: Mapping[str, str], problems: Sequence[str]
) -> None:
    """Raise ValueError if too little of encoder and decoder fits to be worth anything."""
    sizes = {group[0]: own[group[0]].numel() for group in groups if _is_transferred(group)}
    share = sum(size for name, size in sizes.items() if name in taken) / max(1, sum(sizes.values()))
    if share < SMALLEST_SHARE:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"The weights of {fname} do not fit this network: {len(problems)} of {len(sizes)} tensors of encoder and decoder are missing or of "
            f"another shape, {1 - share:.0%} of the values.\n  {listed}\nBoth trainings need the same network architecture; "
            "nnUNetv2_move_plans_between_datasets takes plans over from one dataset to another."
        )


def _matching_heads(
    network: nn.Module,
    groups: Sequence[Sequence[str]],
    own: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
    entry: Mapping[str, Any] | None,
) -> tuple[dict[str, str], list[str]]:
    """Names of the weights of the heads that are taken over, and a line about each head.

    Args:
        network: Its ``heads`` say which classes they tell apart.
        groups: Names of each tensor of the network.
        own: Its weights.
        pretrained: Weights of the checkpoint.
        entry: ``classification`` of the checkpoint.
    """
    taken, remarks = {}, []
    tasks = (entry or {}).get("tasks", {})
    for task, head in getattr(network, "heads", {}).items():
        prefix = f"{HEADS_PREFIX}{HEAD_PREFIX}{task}."
        names, problems = _match([group for group in groups if group[0].startswith(prefix)], own, pretrained)
        here = list(getattr(getattr(getattr(head, "description", None), "task", None), "classes", ()))
        there = list((tasks.get(task) or {}).get("classes", here))
        if not any(name.startswith(prefix) for name in pretrained):
            remarks.append(f"head {task}: the checkpoint has none")
        elif there != here:
            remarks.append(f"head {task}: the checkpoint's tells {', '.join(there)} apart, this one {', '.join(here)}")
        elif problems:
            remarks.append(f"head {task}: {'; '.join(problem.removeprefix(prefix) for problem in problems)}")
        else:
            taken |= names
            remarks.append(f"head {task}: taken over")
    return taken, remarks
