"""The architecture section of a plan to a network."""

from __future__ import annotations

import inspect
import os
import pydoc
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

if TYPE_CHECKING:
    from torch import nn

    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

# A plan names classes by dotted path. Only these packages are imported on its word; nnUNet_allowed_imports adds more.
ALLOWED_PACKAGES = ("torch.nn", "dynamic_network_architectures", "nnunetv2")
ALLOWED_PACKAGES_VARIABLE = "nnUNet_allowed_imports"

# Parameters of a trainer's build_network_architecture since nnU-Net 2.7, 2.4 and 2.0.
_SINCE_2_7 = ("plans_manager", "configuration_manager", "num_input_channels", "num_output_channels", "enable_deep_supervision")
_SINCE_2_4 = ("architecture_class_name", "arch_init_kwargs", "arch_init_kwargs_req_import", *_SINCE_2_7[2:])
_SINCE_2_0 = ("plans_manager", "dataset_json", "configuration_manager", "num_input_channels", "enable_deep_supervision")
_SIGNATURES = (_SINCE_2_7, _SINCE_2_4, _SINCE_2_0)
_KNOWN_NAMES = frozenset().union(*_SIGNATURES)


def get_network_from_plans(
    arch_class_name: str,
    arch_kwargs: Mapping[str, Any],
    arch_kwargs_req_import: Sequence[str],
    input_channels: int,
    output_channels: int,
    allow_init: bool = True,
    deep_supervision: bool | None = None,
) -> nn.Module:
    """Build the network of a configuration.

    Args:
        arch_class_name: Dotted path of the class.
        arch_kwargs: Its arguments; not modified.
        arch_kwargs_req_import: Arguments that are dotted paths.
        input_channels: Image channels.
        output_channels: Segmentation channels.
        allow_init: Draw weights by the class's ``initialize``.
        deep_supervision: Passed on unless None.

    Raises:
        ImportError: If a class cannot be found, or lies outside the allowed packages.
    """
    kwargs = dict(arch_kwargs)
    for name in arch_kwargs_req_import:
        if kwargs.get(name) is not None:
            kwargs[name] = _locate(kwargs[name])
    network_class = _locate(arch_class_name, search=True)
    if deep_supervision is not None:
        kwargs["deep_supervision"] = deep_supervision
    network = network_class(input_channels=input_channels, num_classes=output_channels, **kwargs)
    if allow_init and hasattr(network, "initialize"):
        network.apply(network.initialize)
    return network


def build_trainers_network(
    build: Callable[..., nn.Module],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool,
) -> nn.Module:
    """Call a trainer's ``build_network_architecture`` in the signature that it has.

    Known are that of nnU-Net 2.7 and later, that of 2.4 to 2.6 (the architecture's parts in place of the managers) and that of 2.0 to
    2.3 (``dataset_json`` in place of the number of outputs). Parameters with these names may come in any order, together with others
    that have defaults. Parameters with other names are told by their number and places, ``*args`` by what comes before them.

    Warns:
        DeprecationWarning: If nnU-Net 2.7 would call it in another way, or not at all.

    Raises:
        TypeError: If it needs a trainer, which there is none of at prediction.
    """
    values = {
        "plans_manager": plans_manager,
        "configuration_manager": configuration_manager,
        "num_input_channels": num_input_channels,
        "num_output_channels": num_output_channels,
        "enable_deep_supervision": enable_deep_supervision,
        "dataset_json": dataset_json,
        "architecture_class_name": configuration_manager.network_arch_class_name,
        "arch_init_kwargs": configuration_manager.network_arch_init_kwargs,
        "arch_init_kwargs_req_import": configuration_manager.network_arch_init_kwargs_req_import,
    }
    parameters = inspect.signature(build).parameters
    if "self" in parameters:
        raise TypeError(f"{build.__qualname__} must be a @staticmethod: prediction builds the network without a trainer.")
    names = [name for name, parameter in parameters.items() if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    passes_on = len(names) < len(parameters)
    # 2.7 and later give arguments by place, and take a function without plans_manager for an older one.
    if not (_fits(names, _SINCE_2_7) and ("plans_manager" in names or passes_on)):
        warnings.warn(
            f"{build.__qualname__} has the signature of nnU-Net before 2.7, or one of its own. Change it to ({', '.join(_SINCE_2_7)}).",
            DeprecationWarning,
            stacklevel=3,
        )
    needs_others = any(parameters[name].default is inspect.Parameter.empty for name in names if name not in _KNOWN_NAMES)
    takes_the_rest = passes_on and not any(set(signature) <= set(names) for signature in _SIGNATURES)
    if needs_others or takes_the_rest:
        return build(*(values[name] for name in _signature_by_places(names)))
    return build(**{name: values[name] for name in names if name in _KNOWN_NAMES})


def _fits(names: Sequence[str], signature: Sequence[str]) -> bool:
    """Whether every parameter with a known name stands where a signature has it."""
    return all(name == place for name, place in zip(names, signature, strict=False) if name in _KNOWN_NAMES)


def _signature_by_places(names: Sequence[str]) -> Sequence[str]:
    """The signature that parameters are meant to be, some of them with names of their own; preferably one of as many."""
    fitting = [signature for signature in _SIGNATURES if _fits(names, signature)] or [_SINCE_2_7]
    return next((signature for signature in fitting if len(signature) == len(names)), fitting[0])


def _locate(path: str, search: bool = False) -> Any:
    """The object of a dotted path in an allowed package; optionally looked for by its last part as older plans need."""
    _check_allowed(path, path)
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise ImportError(f"The plans name {path!r}, which fails to import: {error.value!r}. Install what it needs.") from error.value
    if found is None and search:
        warnings.warn(f"{path} does not exist; looking for {path.split('.')[-1]} in dynamic_network_architectures.", stacklevel=3)
        import dynamic_network_architectures

        folder = Path(dynamic_network_architectures.__file__).parent / "architectures"
        found = recursive_find_python_class(str(folder), path.split(".")[-1], "dynamic_network_architectures.architectures")
    if found is None:
        raise ImportError(f"The plans name {path!r}, which cannot be imported. Install its package, or correct the plans.")
    # torch.nn.x.os.system begins well and ends elsewhere: where the object was defined counts as well.
    home = getattr(found, "__module__", None)
    if not callable(found) or not isinstance(home, str):
        raise ImportError(f"The plans name {path!r}, which is no class or function. Correct the plans.")
    _check_allowed(path, home)
    return found


def _check_allowed(path: str, name: str) -> None:
    """Refuse a dotted name outside the allowed packages; `path` is what the plans say."""
    extra = [package.strip() for package in os.environ.get(ALLOWED_PACKAGES_VARIABLE, "").split(",") if package.strip()]
    allowed = (*ALLOWED_PACKAGES, *extra)
    if not any(name == package or name.startswith(f"{package}.") for package in allowed):
        raise ImportError(
            f"The plans name {path!r}, which is outside {', '.join(allowed)}. If you trust these plans, allow its "
            f"package: export {ALLOWED_PACKAGES_VARIABLE}={name.split('.')[0]}"
        )
