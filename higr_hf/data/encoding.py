"""From split datasets to what the model reads: item indices, feedback levels, time buckets, token arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tokenization_higr import HiGRTokenizer


@dataclass(frozen=True)
class FeatureEdges:
    """Where raw feedback and time gaps are cut into levels.

    Level k holds the values v with edges[k-1] ≤ v < edges[k], so n edges make n + 1 levels. The levels become the
    tokens `<f_k>` and `<t_k>`; no edges, no tokens.

    Args:
        feedback: ascending cuts of the raw feedback (ratings 1–5: `(1.5, 2.5, 3.5, 4.5)` keeps five levels).
        time: ascending cuts, in seconds, of the gap between an event and the one before it.

    Example:
        >>> FeatureEdges(feedback=(2.5, 3.5)).feedback_levels([1.0, 3.0, 5.0, float("nan")]).tolist()
        [0, 1, 2, -1]
    """

    feedback: tuple[float, ...] = ()
    time: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("feedback", "time"):
            edges = getattr(self, name)
            if any(not low < high for low, high in itertools.pairwise(edges)):
                raise DataError(f"the {name} edges {list(edges)} must ascend")

    @property
    def num_feedback_levels(self) -> int:
        """Feedback tokens the vocabulary needs."""
        return len(self.feedback) + 1 if self.feedback else 0

    @property
    def num_time_buckets(self) -> int:
        """Time tokens the vocabulary needs."""
        return len(self.time) + 1 if self.time else 0

    def feedback_levels(self, values: Any) -> np.ndarray:
        """Level of every raw feedback value, int64 `[n]`, -1 where it is unknown (NaN)."""
        values = np.asarray(values, dtype=np.float64)
        levels = np.searchsorted(np.asarray(self.feedback), values, side="right")
        return np.where(np.isnan(values) | (not self.feedback), -1, levels).astype(np.int64)

    def time_buckets(self, timestamps: Any) -> np.ndarray:
        """Bucket of every event's gap to its predecessor, int64 `[n]`; the first event has none (-1)."""
        stamps = np.asarray(timestamps, dtype=np.float64)
        buckets = np.full(len(stamps), -1, dtype=np.int64)
        if self.time and len(stamps) > 1:
            buckets[1:] = np.searchsorted(np.asarray(self.time), np.diff(stamps), side="right")
        return buckets


@dataclass(frozen=True)
class EncodedSequence:
    """One user's events as arrays of one length n, oldest first.

    Attributes:
        items: int64, catalogue index.
        feedback: int64 feedback level, -1 for none.
        time: int64 time bucket, -1 for none.
        lists: int64, the number of the real list (a receipt, a request) that each event stands in; equal numbers stand
            together. `None` where no lists are known: then every event is a list of its own.
    """

    items: np.ndarray
    feedback: np.ndarray
    time: np.ndarray
    lists: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, window: slice) -> EncodedSequence:
        lists = None if self.lists is None else self.lists[window]
        return EncodedSequence(self.items[window], self.feedback[window], self.time[window], lists)

    def list_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each event's list begins and ends (exclusive) in this sequence, int64 `[n]` each."""
        place = np.arange(len(self))
        if self.lists is None:
            return place, place + 1
        begins = np.flatnonzero(np.diff(self.lists, prepend=-1))
        which = np.searchsorted(begins, place, side="right") - 1
        return begins[which], np.append(begins, len(self))[which + 1]


@dataclass(frozen=True)
class TokenLayout:
    """What is needed to write items as token ids without going through text.

    Attributes:
        codes: int64 `[N, L]`.
        level_offsets: id of code 0 of every level.
        feature_offset: id of `<f_0>`.
        num_feedback_levels: number of feedback tokens before `<t_0>`.
    """

    codes: np.ndarray
    level_offsets: Sequence[int]
    feature_offset: int
    num_feedback_levels: int
    bos: int = field(default=1)
    slate: int = field(default=3)
    pad: int = field(default=0)

    @classmethod
    def of(cls, tokenizer: HiGRTokenizer) -> TokenLayout:
        """The layout of a tokenizer."""
        return cls(
            codes=np.asarray(tokenizer.codes),
            level_offsets=tuple(tokenizer.level_offsets),
            feature_offset=tokenizer.feature_offset,
            num_feedback_levels=tokenizer.num_feedback_levels,
            bos=tokenizer.bos_token_id,
            slate=tokenizer.convert_tokens_to_ids("<slate>"),
            pad=tokenizer.pad_token_id,
        )

    def tokens(self, sequence: EncodedSequence) -> np.ndarray:
        """Token ids of a run of events, features behind each item, int64 `[n·L + features]`."""
        columns = [self.codes[sequence.items] + np.asarray(self.level_offsets)]
        first_time = self.feature_offset + self.num_feedback_levels
        for levels, first in ((sequence.feedback, self.feature_offset), (sequence.time, first_time)):
            columns.append(np.where(levels >= 0, levels + first, -1)[:, None])
        flat = np.concatenate(columns, axis=1).ravel()
        return flat[flat >= 0]

    def prompt(self, history: EncodedSequence, wish: int | None = None) -> np.ndarray:
        """`<bos> history <slate>` and the feedback level asked for, int64."""
        ending = [self.slate] if wish is None else [self.slate, self.feature_offset + wish]
        return np.concatenate([[self.bos], self.tokens(history), ending]).astype(np.int64)


def encode_sequences(
    dataset: Dataset, tokenizer: HiGRTokenizer, edges: FeatureEdges, *, side: str = "history"
) -> list[EncodedSequence]:
    """Turn a split's histories (or targets) into arrays.

    Args:
        dataset: a split made by `leave_last_out` or `basket_splits`.
        tokenizer: whose item table gives the indices.
        edges: where feedback and time gaps are cut.
        side: `"history"` or `"target"`.

    Returns:
        One [`EncodedSequence`] a row. Columns the dataset does not have give -1 throughout.

    Raises:
        UnknownItemError: for an item that is not in the tokenizer's table.
        DataError: for a dataset without `{side}_item_ids`.
    """
    events = _RowEvents(dataset, edges, side)
    return [events.encoded(tokenizer, [events.row(row)]) for row in range(len(dataset))]


def encode_training_sequences(train: Dataset, tokenizer: HiGRTokenizer, edges: FeatureEdges) -> list[EncodedSequence]:
    """Every user's training events once, in order, as the model is trained on them.

    A train row of `leave_last_out` is a whole sequence. The rows of `basket_splits` overlap: there it is the history
    of a user's first row, then the target of each row, which are the sequence's `lists`.

    Args:
        train: the training split.
        tokenizer: whose item table gives the indices.
        edges: where feedback and time gaps are cut.

    Returns:
        One [`EncodedSequence`] a user, in the order of their first rows.

    Raises:
        UnknownItemError: for an item that is not in the tokenizer's table.
        DataError: for a dataset without `history_item_ids` or `target_item_ids`.
    """
    rows_of: dict[str, list[int]] = {}
    for row, user in enumerate(train["user_id"]):
        rows_of.setdefault(user, []).append(row)
    histories, targets = (_RowEvents(train, edges, side) for side in ("history", "target"))
    sequences = []
    for rows in rows_of.values():
        parts = [histories.row(rows[0]), *(targets.row(row) for row in rows)]
        sequence = histories.encoded(tokenizer, parts)
        sizes = [len(part[0]) for part in parts]
        if sum(sizes) > sizes[0]:  # the first history's events are no list that was ever a target
            listed = sizes[0] + np.repeat(np.arange(len(rows)), sizes[1:])
            sequence = replace(sequence, lists=np.concatenate([np.arange(sizes[0]), listed]))
        sequences.append(sequence)
    return sequences


class _RowEvents:
    """The events of a split's rows on one side, read without a Python loop over events.

    Args:
        dataset: the split.
        edges: which of feedback and time are wanted.
        side: `history` or `target`.
    """

    def __init__(self, dataset: Dataset, edges: FeatureEdges, side: str) -> None:
        column = f"{side}_item_ids"
        if column not in dataset.column_names:
            raise DataError(f"the dataset has no column {column!r}, only {dataset.column_names}: split the log first")
        self._table = dataset.data.table if dataset._indices is None else dataset.flatten_indices().data.table
        self._edges = edges
        wanted = {column: True, f"{side}_feedback": edges.feedback, f"{side}_timestamps": edges.time}
        self._columns = [
            self._ragged(name) if need and name in dataset.column_names else None for name, need in wanted.items()
        ]

    def row(self, row: int) -> list[np.ndarray]:
        """Item ids, raw feedback and timestamps of a row; empty where they are not there or not wanted."""
        return [np.empty(0) if column is None else column[row] for column in self._columns]

    def encoded(self, tokenizer: HiGRTokenizer, parts: Sequence[list[np.ndarray]]) -> EncodedSequence:
        """Rows' events, one after the other, as one sequence."""
        ids, feedback, stamps = (np.concatenate(column) for column in zip(*parts, strict=True))
        index = tokenizer.items_to_indices(ids.tolist())
        unknown = np.full(len(index), -1, dtype=np.int64)
        return EncodedSequence(
            items=index,
            feedback=self._edges.feedback_levels(feedback) if self._columns[1] is not None else unknown,
            time=self._edges.time_buckets(stamps) if self._columns[2] is not None else unknown,
        )

    def _ragged(self, name: str) -> list[np.ndarray]:
        array = self._table.column(name).combine_chunks()
        values = array.values.to_numpy(zero_copy_only=False)
        return [values[start:end] for start, end in itertools.pairwise(array.offsets.to_pylist())]
