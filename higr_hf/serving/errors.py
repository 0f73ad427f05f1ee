"""How an engine says no."""

from __future__ import annotations


class EngineOverloaded(RuntimeError):
    """The queue is full; nothing was computed, and the same request may be sent again later.

    Attributes:
        retry_after: seconds after which the queue may have room, an estimate.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine was closed and takes no more requests."""


class UnknownUserError(LookupError):
    """A user of whom the engine holds no history: never told, forgotten, or dropped as the least recently used."""


__all__ = ["EngineClosed", "EngineOverloaded", "UnknownUserError"]
