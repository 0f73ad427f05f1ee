"""What a request may choose about its slate."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..configuration_higr import SLATE_MODES


@dataclass(frozen=True)
class SlateSettings:
    """How a slate is decoded and told; what is None is the model's own.

    Decoding is deterministic here: what one request gets must not depend on who asks at the same time.

    Attributes:
        slate_size: M, items a slate.
        num_beams: W, hypotheses inside an item.
        slate_mode, rerank_weight: as in `generate`.
        exclude_history: never recommend an item of the history.
        allow_short: a slate ends where the legal items do, instead of an error.
        num_alternates: next best items listed beside every slot's item.

    Raises:
        ValueError: for a value of another type or out of range, naming it.
    """

    slate_size: int | None = None
    num_beams: int | None = None
    slate_mode: str | None = None
    rerank_weight: float | None = None
    exclude_history: bool = True
    allow_short: bool = False
    num_alternates: int = 3

    def __post_init__(self) -> None:
        for name, least in (("slate_size", 1), ("num_beams", 1), ("num_alternates", 0)):
            value = getattr(self, name)
            if value is None and name != "num_alternates":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        for name in ("exclude_history", "allow_short"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")
        if self.slate_mode is not None and self.slate_mode not in SLATE_MODES:
            raise ValueError(f"slate_mode must be one of {SLATE_MODES}; got {self.slate_mode!r}.")
        weight = self.rerank_weight
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float))):
            raise ValueError(f"rerank_weight must be a number; got {weight!r}.")

    def decoding(self) -> tuple[tuple[str, Any], ...]:
        """The arguments of `generate` that are set; requests that agree in them are decoded together."""
        names = ("slate_size", "num_beams", "slate_mode", "rerank_weight")
        return tuple((name, getattr(self, name)) for name in names if getattr(self, name) is not None)


SETTINGS = frozenset(field.name for field in fields(SlateSettings))
"""Names of the settings."""

__all__ = ["SETTINGS", "SlateSettings"]
