"""The one exception type of the data package."""

from __future__ import annotations

from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used as it is. The message says what, where (column, row, item or file) and the way out."""


def shown(values: Iterable, limit: int = 5) -> str:
    """The first `limit` values, for an error message: `'a', 'b', 'c' and 7 more`."""
    values = list(values)
    text = ", ".join(repr(getattr(value, "item", lambda value=value: value)()) for value in values[:limit])
    return text if len(values) <= limit else f"{text} and {len(values) - limit} more"
