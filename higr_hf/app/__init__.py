"""A page to look at what a checkpoint recommends; `higr app MODEL` serves it, and it is a Space of the Hub as well.

`build_page` and `serve` stand in `higr_hf.app.page`, which needs gradio; what is here does not.
"""

from __future__ import annotations

from .slates import Slate, SlateModel, SlateRequest

__all__ = ["Slate", "SlateModel", "SlateRequest"]
