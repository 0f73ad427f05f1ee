"""The systems HiGR is measured against, behind one small interface: `fit`, then `recommend`."""

from __future__ import annotations

from .popularity import Popularity

__all__ = ["Popularity"]
