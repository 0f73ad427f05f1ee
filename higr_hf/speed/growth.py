"""One shape, and one thing about it changed at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .systems import Shape

SYSTEMS = ("flat beam", "sequential", "plan-once")
"""Variants whose growth is measured."""


def one_at_a_time(shape: Shape, factors: Mapping[str, Sequence[Any]]) -> dict[str, list[Shape]]:
    """The shape with each value of each factor in turn, all else as it is.

    Args:
        shape: in the middle.
        factors: a field of [`Shape`] -> its values.

    Example:
        >>> grown = one_at_a_time(Shape(slate_size=5), {"slate_size": [5, 10], "history": [50]})
        >>> [shape.slate_size for shape in grown["slate_size"]], [shape.slate_size for shape in grown["history"]]
        ([5, 10], [5])
    """
    return {
        name: [dataclasses.replace(shape, **{name: value}) for value in values] for name, values in factors.items()
    }


def growth_of(
    rows: Iterable[Mapping[str, Any]], grown: Mapping[str, Sequence[Shape]], metric: str
) -> dict[str, dict[str, list[tuple[Any, float]]]]:
    """Factor -> variant -> (value of the factor, metric) of result rows, the later row of a shape counting.

    Args:
        rows: of the study.
        grown: what [`one_at_a_time`] gave.
        metric: such as `ms@8`.

    Example:
        >>> grown = {"history": [Shape(history=9)]}
        >>> row = {"dataset": str(Shape(history=9)), "variant": "plan-once", "metrics": {"ms@8": 2.0}}
        >>> growth_of([row], grown, "ms@8")
        {'history': {'plan-once': [(9, 2.0)]}}
    """
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        if metric in row["metrics"]:
            measured.setdefault(row["dataset"], {})[row["variant"]] = row["metrics"][metric]
    found: dict[str, dict[str, list[tuple[Any, float]]]] = {}
    for factor, shapes in grown.items():
        lines = found.setdefault(factor, {})
        for shape in shapes:
            for variant, value in measured.get(str(shape), {}).items():
                lines.setdefault(variant, []).append((getattr(shape, factor), value))
    return found


__all__ = ["SYSTEMS", "growth_of", "one_at_a_time"]
