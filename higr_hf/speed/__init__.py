"""How fast slates are decoded, what bounds it, and the systems that are compared."""

from __future__ import annotations

from .clock import Timing, interleaved, own_clock, peak_memory
from .machine import Ceilings, measure_ceilings
from .work import Work, decoding_work

__all__ = [
    "Ceilings",
    "Timing",
    "Work",
    "decoding_work",
    "interleaved",
    "measure_ceilings",
    "own_clock",
    "peak_memory",
]
