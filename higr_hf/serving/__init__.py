"""Serving: a resident [`SlateEngine`], and `higr_hf.serving.http`, which puts HTTP in front of it."""

from __future__ import annotations

from .engine import SlateEngine
from .errors import EngineClosed, EngineOverloaded, UnknownUserError
from .settings import SlateSettings
from .shapes import Shapes

__all__ = ["EngineClosed", "EngineOverloaded", "Shapes", "SlateEngine", "SlateSettings", "UnknownUserError"]
