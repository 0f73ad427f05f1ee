"""What a caller says, checked and turned into what a batch is made of; no queue and no user in sight."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .contexts import HistoryEncoder, HistoryTokens
from .histories import History
from .settings import SETTINGS, SlateSettings

if TYPE_CHECKING:
    from ..pipeline_higr import SlateRecommendationPipeline


@dataclasses.dataclass(frozen=True)
class SlateJob:
    """A request that has been read.

    Attributes:
        inputs: what the pipeline made of it.
        prompt: the tokens of its history.
        settings: how its slate is decoded.
        user: whose it is, where the user is kept.
    """

    inputs: dict[str, torch.Tensor]
    prompt: HistoryTokens
    settings: SlateSettings
    user: str | None = None


class RequestReader:
    """Reads requests, from any thread.

    Args:
        pipeline: whose reading of names, features and exclusions counts.
        encoder: which cuts prompts into units.
        settings: what requests do not choose themselves.
        max_slate_size, max_beams: what they may choose at most.
    """

    def __init__(
        self,
        pipeline: SlateRecommendationPipeline,
        encoder: HistoryEncoder,
        settings: SlateSettings,
        max_slate_size: int,
        max_beams: int,
    ) -> None:
        self.settings = settings
        self._pipeline, self._encoder = pipeline, encoder
        self._most = {"slate_size": max_slate_size, "num_beams": max_beams}
        self._lock = threading.Lock()  # tokenizers of Rust cannot be borrowed twice

    def choose(self, given: Mapping[str, Any]) -> SlateSettings:
        """The settings of a request that gives some.

        Raises:
            ValueError: for one that does not exist or is out of range.
        """
        unknown = set(given) - SETTINGS
        if unknown:
            raise ValueError(f"A request has no setting {sorted(unknown)}; there are {sorted(SETTINGS)}.")
        chosen = dataclasses.replace(self.settings, **given) if given else self.settings
        for name, most in self._most.items():
            if (getattr(chosen, name) or 0) > most:
                raise ValueError(f"{name} may be at most {most} here; got {getattr(chosen, name)}.")
        if chosen.rerank_weight and not self._pipeline.model.config.dense_head:
            raise ValueError("rerank_weight needs a model trained with dense_head=True.")
        return chosen

    def read(
        self,
        history: History,
        settings: SlateSettings,
        user: str | None = None,
        wanted: Mapping[str, Any] | None = None,
    ) -> SlateJob:
        """Read a request.

        Args:
            history: the events it is about.
            settings: from [`RequestReader.choose`].
            user: whose it is.
            wanted: `exclude`, `allowed` and `wish` as in the pipeline, where given.

        Raises:
            ValueError: for an unknown item (with the nearest names), or a value of another type or out of range.
        """
        wanted = wanted or {}
        for name in ("exclude", "allowed"):
            if not isinstance(wanted.get(name, []), (list, tuple)):
                raise ValueError(f"{name} must be a list of items; got {wanted[name]!r}.")
        wish = wanted.get("wish", 0)
        if isinstance(wish, bool) or not isinstance(wish, int):
            raise ValueError(f"wish must be a feedback level, a whole number; got {wish!r}.")
        with self._lock:
            inputs = self._pipeline.preprocess({**history.entry(), **wanted}, exclude_history=settings.exclude_history)
        return SlateJob(inputs, self._encoder.split(inputs["input_ids"][0]), settings, user)


__all__ = ["RequestReader", "SlateJob"]
