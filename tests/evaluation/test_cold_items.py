"""Splits without some items, and with only some items as targets."""

from __future__ import annotations

import pytest
from datasets import Dataset

from higr_hf.evaluation.cold_items import hide_items, restrict_targets


@pytest.fixture
def split() -> Dataset:
    return Dataset.from_dict(
        {
            "user_id": ["u", "v", "w"],
            "history_item_ids": [["a", "b", "a"], ["c"], []],
            "history_timestamps": [[1, 2, 3], [4], []],
            "history_feedback": [[5.0, 1.0, 4.0], [2.0], []],
            "history_negatives": [["a", "c"], [], []],
            "target_item_ids": [["c", "a"], ["b", "d"], ["a"]],
            "target_views": [[True, False], [True, True], [False]],
            "target_negatives": [["a", "b"], ["d"], []],
        }
    )


def test_hidden_items_are_gone_with_all_they_brought(split):
    hidden = hide_items(split, ["a"])
    assert hidden["history_item_ids"][:] == [["b"], ["c"], []]
    assert hidden["history_timestamps"][:] == [[2], [4], []]
    assert hidden["history_feedback"][:] == [[1.0], [2.0], []]
    assert hidden["history_negatives"][:] == [["c"], [], []]
    assert hidden["target_item_ids"][:] == [["c"], ["b", "d"], []]
    assert hidden["target_views"][:] == [[True], [True, True], []]
    assert hidden["target_negatives"][:] == [["b"], ["d"], []]
    assert hidden.features == split.features


def test_restricted_targets_leave_histories_whole(split):
    restricted = restrict_targets(split, {"a", "d"})
    assert restricted["user_id"][:] == ["u", "v", "w"]
    assert restricted["target_item_ids"][:] == [["a"], ["d"], ["a"]]
    assert restricted["target_views"][:] == [[False], [True], [False]]
    assert restricted["history_item_ids"][:] == [["a", "b", "a"], ["c"], []]
    assert restrict_targets(split, {"c"})["user_id"][:] == ["u"]
    assert len(restrict_targets(split, {"x"})) == 0


def test_warm_and_cold_targets_are_all_targets(split):
    cold = {"a", "c"}
    counts = [sum(map(len, restrict_targets(split, part)["target_item_ids"])) for part in (cold, {"b", "d"})]
    assert sum(counts) == sum(map(len, split["target_item_ids"])) == 5
