"""From split datasets to what the model reads: item indices, feedback levels, time buckets, token arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """

    items: np.ndarray
    feedback: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, window: slice) -> EncodedSequence:
        return EncodedSequence(self.items[window], self.feedback[window], self.time[window])


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
    column = f"{side}_item_ids"
    if column not in dataset.column_names:
        raise DataError(f"the dataset has no column {column!r}, only {dataset.column_names}: split the log first")
    table = dataset.data.table if dataset._indices is None else dataset.flatten_indices().data.table

    def ragged(name: str) -> list[np.ndarray] | None:
        if name not in dataset.column_names:
            return None
        array = table.column(name).combine_chunks()
        values = array.values.to_numpy(zero_copy_only=False)
        return np.split(values[: int(array.offsets[-1].as_py())], array.offsets.to_numpy()[1:-1])

    ids = ragged(column)
    feedback, stamps = ragged(f"{side}_feedback"), ragged(f"{side}_timestamps")
    encoded = []
    for row, items in enumerate(ids or []):
        index = tokenizer.items_to_indices(list(items))
        unknown = np.full(len(index), -1, dtype=np.int64)
        encoded.append(
            EncodedSequence(
                items=index,
                feedback=edges.feedback_levels(feedback[row]) if feedback is not None and edges.feedback else unknown,
                time=edges.time_buckets(stamps[row]) if stamps is not None and edges.time else unknown,
            )
        )
    return encoded
