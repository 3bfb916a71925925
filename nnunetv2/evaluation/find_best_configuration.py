"""nnU-Net's path of :mod:`nnunetv2.model_selection.find_best_configuration`, where the code is: it builds on what lies above evaluation."""

from typing import Any

_NAMES = (
    "default_trained_models",
    "filter_available_models",
    "generate_inference_command",
    "find_best_configuration",
    "print_inference_instructions",
    "dumb_trainer_config_plans_to_trained_models_dict",
    "find_best_configuration_entry_point",
    "accumulate_crossval_results_entry_point",
)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunetv2.model_selection import find_best_configuration

    return getattr(find_best_configuration, name)
