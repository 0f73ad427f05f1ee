"""Cards for the Hub, rendered from what a run left behind: its report, its configuration, its tokenizer, its rows."""

from __future__ import annotations

from .check import check_card
from .dataset import write_dataset_card
from .render import KINDS, render_card, write_card

__all__ = ["KINDS", "check_card", "render_card", "write_card", "write_dataset_card"]
