"""Which normalization a channel name in dataset.json asks for."""

from __future__ import annotations

from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ImageNormalization,
    NoNormalization,
    RescaleTo01Normalization,
    RGBTo01Normalization,
    ZScoreNormalization,
)

channel_name_to_normalization_mapping: dict[str, type[ImageNormalization]] = {
    "ct": CTNormalization,
    "nonorm": NoNormalization,
    "zscore": ZScoreNormalization,
    "rescale_to_0_1": RescaleTo01Normalization,
    "rgb_to_0_1": RGBTo01Normalization,
}


def get_normalization_scheme(channel_name: str) -> type[ImageNormalization]:
    """Scheme for a channel name, compared without regard to case; any other name means z-score.

    Raises:
        ValueError: If ``channel_name`` is no text.
    """
    if not isinstance(channel_name, str):
        raise ValueError(f"Channel names in dataset.json must be text, found {channel_name!r} ({type(channel_name).__name__}).")
    return channel_name_to_normalization_mapping.get(channel_name.casefold(), ZScoreNormalization)
