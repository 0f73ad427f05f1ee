"""Per-user event sequences as flat arrays, and rows of (history, target) cut out of them without a Python loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset

    from .schema import InteractionLog


class Sequences:
    """The engaged events of every user, in time order, with the negative feedback that stands between them.

    Args:
        log: the interaction log. Users keep the order of the log.

    Attributes:
        users: user ids `[U]`.
        lengths: engaged events of each user, int64 `[U]`.
        offsets: where each user's events start in `events`, int64 `[U]`.
        events: the engaged rows of the log, users contiguous.
    """

    def __init__(self, log: InteractionLog):
        self.info = log.info
        table = log.interactions
        first = np.flatnonzero(np.r_[True, table["user_id"].to_numpy()[1:] != table["user_id"].to_numpy()[:-1]])
        self.users = table["user_id"].to_numpy(dtype=object)[first]
        user = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(table)]))
        engaged = table["engaged"].to_numpy()
        self.lengths = np.bincount(user[engaged], minlength=len(first))
        self.offsets = np.r_[0, np.cumsum(self.lengths)[:-1]]
        self.events = table[engaged]
        self.rows = np.flatnonzero(engaged)  # row of each engaged event in the whole log
        self._first_row, self._log_length = first, len(table)
        self._columns = {
            "item_ids": pa.array(self.events["item_id"].to_numpy(dtype=object), pa.string()),
            "timestamps": pa.array(self.events["timestamp"].to_numpy(), pa.int64()),
            "views": pa.array(self.events["view"].to_numpy(), pa.bool_()),
        }
        if log.info.feedback is not None:
            feedback = self.events[log.info.feedback].to_numpy(dtype=np.float32, na_value=np.nan)
            self._columns["feedback"] = pa.array(feedback, pa.float32())
        self._negatives = _Negatives(table) if log.info.negative_rule else None

    def to_dataset(
        self,
        users: np.ndarray,
        history: np.ndarray,
        target: np.ndarray | list[list[int]],
        report: dict[str, Any],
        **columns: list,
    ) -> Dataset:
        """One row for each of `users` (rows of `self.users`).

        Args:
            users: int64 `[R]`; a user may appear in several rows.
            history: int64 `[R, 2]`, start and end of the row's history among the user's engaged events.
            target: the same, or a list of positions a row where the target is not contiguous.
            report: written into the dataset's description as JSON.
            **columns: further string columns, R values each.
        """
        arrays = {"user_id": pa.array(self.users[users], pa.string())}
        arrays |= {name: pa.array(values, pa.string()) for name, values in columns.items()}
        base = self.offsets[users]
        for prefix, chosen in (("history", history), ("target", target)):
            index, list_offsets = _gather_positions(chosen) if isinstance(chosen, list) else _gather_spans(chosen)
            index = index + np.repeat(base, np.diff(list_offsets))
            for name, values in self._columns.items():
                arrays[f"{prefix}_{name}"] = _lists(values, index, list_offsets)
        if self._negatives is not None:
            last = [max(chosen, default=-1) + 1 for chosen in target] if isinstance(target, list) else target[:, 1]
            ends = [self._cutoff(users, base + end) for end in (history[:, 1], np.maximum(history[:, 1], last))]
            arrays["history_negatives"] = self._negatives.within(self._first_row[users], ends[0])
            arrays["target_negatives"] = self._negatives.within(*ends)
        return _dataset(arrays, self.info, report)

    def _cutoff(self, users: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Log row of the engaged event at each position of `events`; the user's end where there is none."""
        ends = np.r_[self._first_row[1:], self._log_length][users]
        inside = position < self.offsets[users] + self.lengths[users]
        return np.where(inside, self.rows[np.minimum(position, len(self.rows) - 1)], ends)


class _Negatives:
    """Items with negative feedback inside a span of log rows, oldest first, each once.

    An item counts as negative by its last event in the span: one skipped at first and enjoyed later is not.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.items, names = pd.factorize(table["item_id"])
        self.names = pa.array(names, pa.string())
        self.negative = table["negative"].to_numpy(dtype=bool)

    def within(self, starts: np.ndarray, ends: np.ndarray) -> pa.Array:
        """A list of item ids a span, given the int64 `[R]` bounds of half-open spans."""
        spans = np.stack([starts, ends], axis=1)
        index, offsets = _gather_spans(spans)
        span = np.repeat(np.arange(len(spans)), np.diff(offsets))
        key = span * len(self.names) + self.items[index]
        # `unique` tells where a value stands first: read from the end, that is an item's last event.
        last = np.sort(len(key) - 1 - np.unique(key[::-1], return_index=True)[1])
        last = last[self.negative[index[last]]]
        counts = np.bincount(span[last], minlength=len(spans))
        return _lists(self.names, self.items[index[last]], np.r_[0, np.cumsum(counts)])


def _gather_positions(positions: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.r_[0, np.cumsum([len(chosen) for chosen in positions], dtype=np.int64)]
    return np.fromiter((position for chosen in positions for position in chosen), np.int64, offsets[-1]), offsets


def _gather_spans(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all events in `[start, end)` spans, concatenated, and the offsets of each span among them."""
    sizes = spans[:, 1] - spans[:, 0]
    offsets = np.r_[0, np.cumsum(sizes)]
    index = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - spans[:, 0], sizes)
    return index, offsets


def _lists(values: pa.Array, index: np.ndarray, offsets: np.ndarray) -> pa.Array:
    taken = values.take(pa.array(index, pa.int64()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), taken)


def _dataset(arrays: dict[str, pa.Array], info: Any, report: dict[str, Any]) -> Dataset:
    from datasets import Dataset, DatasetInfo

    about = DatasetInfo(
        description=json.dumps({**report, "view_rule": info.view_rule, "negative_rule": info.negative_rule}),
        citation=info.citation,
        homepage=info.homepage,
        license=info.licence,
    )
    return Dataset(pa.table(arrays), info=about)
