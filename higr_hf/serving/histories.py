"""A user's events as a request tells them, and what is added to them later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_EVENTS = 10_000
"""Events a user may have: every one of them is excluded from slates, so that none can be forgotten in silence."""

_EVENT_KEYS = frozenset({"item", "feedback", "timestamp"})


@dataclass(frozen=True)
class History:
    """Events, oldest first, in the form in which the pipeline takes them.

    Attributes:
        items: ids or titles.
        feedback, timestamps: raw values, one an item, None where unknown; None where no event has any.
    """

    items: tuple[str, ...] = ()
    feedback: tuple[float | None, ...] | None = None
    timestamps: tuple[float | None, ...] | None = None

    @classmethod
    def of(
        cls,
        items: Sequence[str],
        feedback: Sequence[float | None] | None = None,
        timestamps: Sequence[float | None] | None = None,
    ) -> History:
        """Check the form of a history; its items are checked when it is read.

        Raises:
            ValueError: for something that is no list, lists of unequal length, or more than `MAX_EVENTS` events.
        """
        columns = []
        for name, values in (("history", items), ("feedback", feedback), ("timestamps", timestamps)):
            if values is None and name != "history":
                columns.append(None)
                continue
            if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
                raise ValueError(f"{name} must be a list; got {values!r}.")
            if len(values) != len(items):
                raise ValueError(f"{name} has {len(values)} values for {len(items)} items of the history.")
            columns.append(tuple(values))
        if len(items) > MAX_EVENTS:
            raise ValueError(f"A history may hold {MAX_EVENTS} events; got {len(items)}. Give the newest.")
        return cls(*columns)

    def extended(self, events: Sequence[str | Mapping[str, Any]]) -> History:
        """This history with newer events behind it.

        Args:
            events: an item each, or a dictionary of `item` and, where known, `feedback` and `timestamp`.

        Raises:
            ValueError: for an event of another form.

        Example:
            >>> History.of(["a"]).extended(["b", {"item": "c", "feedback": 4.0}]).entry()
            {'history': ['a', 'b', 'c'], 'feedback': [None, None, 4.0]}
        """
        if isinstance(events, (str, bytes, Mapping)) or not isinstance(events, Sequence):
            raise ValueError(f"events must be a list; got {events!r}.")
        rows = []
        for number, event in enumerate(events):
            row = {"item": event} if isinstance(event, str) else event
            if not isinstance(row, Mapping) or "item" not in row or set(row) - _EVENT_KEYS:
                raise ValueError(
                    f"events[{number}] must be an item, or have 'item' and perhaps 'feedback' and 'timestamp'; got "
                    f"{event!r}."
                )
            rows.append(row)
        return History.of(
            (*self.items, *(row["item"] for row in rows)),
            _extended(self.feedback, len(self.items), [row.get("feedback") for row in rows]),
            _extended(self.timestamps, len(self.items), [row.get("timestamp") for row in rows]),
        )

    def entry(self) -> dict[str, list]:
        """As an input of the pipeline."""
        columns = {"history": self.items, "feedback": self.feedback, "timestamps": self.timestamps}
        return {name: list(values) for name, values in columns.items() if values is not None}


def _extended(values: tuple | None, length: int, more: list) -> tuple | None:
    if values is None and all(value is None for value in more):
        return None
    return (*(values or [None] * length), *more)


__all__ = ["MAX_EVENTS", "History"]
