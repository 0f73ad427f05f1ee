"""Warm and cold apart: what a split looks like without some items, and its targets among some items only."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_PER_EVENT = ("item_ids", "timestamps", "feedback", "views")


def hide_items(split: Dataset, items: Collection[str]) -> Dataset:
    """The split as if nobody had ever met these items: their events are gone from histories and targets.

    Args:
        split: made by `leave_last_out` or `basket_splits`.
        items: item ids.

    Returns:
        As many rows, of which some may be empty now.

    Example:
        >>> from datasets import Dataset
        >>> split = Dataset.from_dict({"history_item_ids": [["a", "b"]], "history_timestamps": [[1, 2]]})
        >>> hide_items(split, {"a"})[0]
        {'history_item_ids': ['b'], 'history_timestamps': [2]}
    """
    return _filtered(split, ("history", "target"), set(items), keep=False)


def restrict_targets(split: Dataset, items: Collection[str]) -> Dataset:
    """The split with only these items as targets, without the rows whose target holds none; histories stay whole.

    Metrics on it say how well these items are found: recall@M is the found share of a user's targets among them.

    Args:
        split: a validation or test split.
        items: item ids.
    """
    restricted = _filtered(split, ("target",), set(items), keep=True)
    return restricted.filter(lambda row: len(row["target_item_ids"]) > 0)


def _filtered(split: Dataset, sides: tuple[str, ...], items: set[str], keep: bool) -> Dataset:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        changed = {}
        for side in sides:
            if f"{side}_item_ids" not in row:
                continue
            kept = [(item in items) == keep for item in row[f"{side}_item_ids"]]
            for column in (f"{side}_{name}" for name in _PER_EVENT):
                if row.get(column):
                    changed[column] = [value for value, wanted in zip(row[column], kept, strict=True) if wanted]
            if f"{side}_negatives" in row:
                changed[f"{side}_negatives"] = [item for item in row[f"{side}_negatives"] if (item in items) == keep]
        return changed

    return split.map(change, features=split.features)
