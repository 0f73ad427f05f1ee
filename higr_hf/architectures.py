"""The slate models that are trained, judged, saved and loaded alike, by the name their configurations carry."""

from __future__ import annotations

from .configuration_higr import HiGRConfig
from .modeling_higr import HiGRForSlateGeneration

ARCHITECTURES = ("higr", "onerec")


def architecture(name: str) -> tuple[type[HiGRConfig], type[HiGRForSlateGeneration]]:
    """Configuration and model class of a name.

    Raises:
        ValueError: for a name that is no architecture.

    Example:
        >>> architecture("higr")[0].model_type
        'higr'
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {name!r}; choose one of {ARCHITECTURES}.")
    if name == "onerec":
        # Here: importing the package should not import its baselines.
        from .baselines.onerec import OneRecConfig, OneRecForSlateGeneration

        return OneRecConfig, OneRecForSlateGeneration
    return HiGRConfig, HiGRForSlateGeneration
