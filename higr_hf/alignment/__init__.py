"""Listwise preference alignment: slate preferences from logged feedback, and TRL's trainers on them.

The trainers import TRL, which is only loaded when one of their names is asked for.
"""

from __future__ import annotations

from typing import Any

from .pairs import ALL_OBJECTIVES, OBJECTIVES
from .preferences import PreferenceSettings, build_preferences
from .rendering import PreferenceError, check_preferences, check_texts, ensure_rendered, render
from .storage import dataset_card, load_preferences, preference_report, push_preferences, save_preferences

_WITH_TRL = {
    "METHODS": "factory",
    "SlateOptions": "trainers",
    "StopWhenItHurts": "monitoring",
    "make_config": "factory",
    "make_trainer": "factory",
}

__all__ = [
    "ALL_OBJECTIVES",
    "METHODS",
    "OBJECTIVES",
    "PreferenceError",
    "PreferenceSettings",
    "SlateOptions",
    "StopWhenItHurts",
    "build_preferences",
    "check_preferences",
    "check_texts",
    "dataset_card",
    "ensure_rendered",
    "load_preferences",
    "make_config",
    "make_trainer",
    "preference_report",
    "push_preferences",
    "render",
    "save_preferences",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TRL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_WITH_TRL[name]}", __name__), name)
