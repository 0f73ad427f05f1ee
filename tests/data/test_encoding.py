"""Training rows as sequences: overlapping rows of real lists are told apart by hand."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from higr_hf import HiGRTokenizer
from higr_hf.data import DataError
from higr_hf.data.encoding import FeatureEdges, encode_training_sequences

TOKENIZER = HiGRTokenizer.from_codes(
    list("abcdef"),
    np.stack(np.divmod(np.arange(6), 3), axis=1),
    codebook_sizes=(2, 3),
    num_feedback_levels=2,
    num_time_buckets=2,
)
EDGES = FeatureEdges(feedback=(2.5,), time=(60.0,))


def rows(**columns: list) -> Dataset:
    return Dataset.from_dict(columns)


def test_overlapping_rows_of_receipts_become_one_sequence_a_user():
    # u bought a; then b, c; then (not a target: too short a list) d; then e, a. v bought f, then a, b.
    train = rows(
        user_id=["u", "v", "u"],
        history_item_ids=[["a"], ["f"], ["a", "b", "c", "d"]],
        history_timestamps=[[0], [0], [0, 100, 100, 110]],
        history_feedback=[[1.0], [5.0], [1.0, 2.0, 3.0, 4.0]],
        target_item_ids=[["b", "c"], ["a", "b"], ["e", "a"]],
        target_timestamps=[[100, 100], [30, 30], [500, 500]],
        target_feedback=[[2.0, 3.0], [1.0, None], [4.0, 1.0]],
    )
    first, second = encode_training_sequences(train, TOKENIZER, EDGES)
    assert first.items.tolist() == [0, 1, 2, 4, 0]
    assert first.lists.tolist() == [0, 1, 1, 2, 2]
    assert first.feedback.tolist() == [0, 0, 1, 1, 0]
    assert first.time.tolist() == [-1, 1, 0, 1, 0], "gaps between the events as they stand there"
    assert second.items.tolist() == [5, 0, 1]
    assert second.lists.tolist() == [0, 1, 1]
    assert second.feedback.tolist() == [1, 0, -1]
    assert second.time.tolist() == [-1, 0, 0]


def test_rows_without_lists_stay_as_they_are():
    train = rows(user_id=["u", "v"], history_item_ids=[["a", "b"], ["c"]], target_item_ids=[[], []])
    first, second = encode_training_sequences(train, TOKENIZER, EDGES)
    assert (first.items.tolist(), second.items.tolist()) == ([0, 1], [2])
    assert first.lists is None and second.lists is None
    assert first.feedback.tolist() == first.time.tolist() == [-1, -1], "columns that are not there"
    # A selection of rows is read as what it selects.
    (only,) = encode_training_sequences(train.select([1]), TOKENIZER, EDGES)
    assert only.items.tolist() == [2]


def test_a_split_without_targets_is_refused():
    with pytest.raises(DataError, match="target_item_ids"):
        encode_training_sequences(rows(user_id=["u"], history_item_ids=[["a"]]), TOKENIZER, EDGES)
