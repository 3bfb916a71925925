"""When networks are compiled, and what tells that the compiler failed."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

COMPILE_VARIABLE = "nnUNet_compile"
TRUE_VALUES = ("true", "1", "t")
# Triton, which torch.compile generates code for, supports no older GPUs (P100 is 6.0, V100 is 7.0).
LOWEST_COMPUTE_CAPABILITY = (7, 0)
_EXCLUDED: set[tuple[type, str]] = set()  # classes and their methods that the compiler leaves alone from now on
COMPILER_MODULES = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


def compilation_requested() -> bool:
    """Whether ``nnUNet_compile`` asks for compilation; prediction compiles only then."""
    return os.environ.get(COMPILE_VARIABLE, "").lower() in TRUE_VALUES


def reason_not_to_compile(device: torch.device) -> str | None:
    """Why a training on this device runs without ``torch.compile``; None if it is compiled."""
    if device.type != "cuda":
        return f"it is not used on {device.type}"
    if sys.platform == "win32":
        return "it is not available on Windows"
    if COMPILE_VARIABLE in os.environ and not compilation_requested():
        return f"the environment variable {COMPILE_VARIABLE} is {os.environ[COMPILE_VARIABLE]!r}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST_COMPUTE_CAPABILITY:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, the compiler needs 7.0"
    return None


def compiled(module: nn.Module) -> nn.Module:
    """The module with ``torch.compile``, but for the methods that classes of its parts name in ``not_compiled``."""
    exclude_named_methods(module)
    return torch.compile(module)


def exclude_named_methods(module: nn.Module) -> None:
    """Have the compiler leave the methods alone that classes of the module's parts name in ``not_compiled``.

    ``torch.compiler.disable`` in their place would import the compiler with them, which takes as long as torch itself.
    """
    for part in module.modules():
        for owner in type(part).__mro__:
            for name in vars(owner).get("not_compiled", ()):
                if (owner, name) not in _EXCLUDED:
                    setattr(owner, name, torch.compiler.disable(vars(owner)[name]))
                    _EXCLUDED.add((owner, name))


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` returned this network. Asked without importing the compiler, which takes seconds."""
    return "_orig_mod" in getattr(network, "_modules", {})


def is_compiler_error(error: BaseException) -> bool:
    """Whether an exception came out of the compiler, as opposed to the compiled code."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if type(current).__module__.startswith(COMPILER_MODULES):
            return True
        current = current.__cause__ or current.__context__
    return False


def unwrapped_network(network: nn.Module) -> nn.Module:
    """The network itself, without the shells of distributed training and of the compiler."""
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        elif is_compiled(network):
            network = network._orig_mod
        else:
            return network
