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


def build_network_of_trainer(
    trainer_class: type,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool,
) -> nn.Module:
    """Call a trainer's ``build_network_architecture``, in whatever signature some version of nnU-Net v2 gave it.

    ====== =================================================================================================================
    since  parameters
    ====== =================================================================================================================
    2.7    plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
    2.4    architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels, num_output_channels,
           enable_deep_supervision
    2.0    plans_manager, dataset_json, configuration_manager, num_input_channels, enable_deep_supervision
    ====== =================================================================================================================

    Parameters of these names may come in any order, together with others that have defaults. A function with other names is called like
    that of 2.7 if one of them is ``plans_manager``, else like that of 2.4.
    """
    build = trainer_class.build_network_architecture
    architecture = (
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
    )
    current = {
        "plans_manager": plans_manager,
        "configuration_manager": configuration_manager,
        "num_input_channels": num_input_channels,
        "num_output_channels": num_output_channels,
        "enable_deep_supervision": enable_deep_supervision,
    }
    older = dict(zip(("architecture_class_name", "arch_init_kwargs", "arch_init_kwargs_req_import"), architecture, strict=True))
    parameters = inspect.signature(build).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    is_open = len(names) < len(parameters)  # takes anything, to pass it on
    if names[:5] == list(current) or (is_open and set(names) <= set(current)):
        return build(*current.values())
    arguments = _arguments_by_name(build, current | older | {"dataset_json": dataset_json})
    if arguments is None and "plans_manager" in names:
        return build(*current.values())
    warnings.warn(
        f"{trainer_class.__name__}.build_network_architecture has a signature of nnU-Net before 2.7; it still works. "
        f"Change it to ({', '.join(current)}).",
        DeprecationWarning,
        stacklevel=3,
    )
    if arguments is None:
        return build(*architecture, num_input_channels, num_output_channels, enable_deep_supervision)
    return build(**arguments)


def _arguments_by_name(function: Callable, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of the values that a function takes by name; None if it also needs others, or takes none by name."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    complete = all(p.name in values or p.default is not p.empty for p in named) and all(p.kind != p.POSITIONAL_ONLY for p in parameters)
    arguments = {p.name: values[p.name] for p in named if p.name in values}
    return arguments if complete and arguments else None


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
