"""Filters that come before a split: minimum counts, and repeated items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from .errors import DataError

if TYPE_CHECKING:
    from .schema import InteractionLog


def k_core(log: InteractionLog, *, min_user_events: int = 5, min_item_events: int = 5) -> InteractionLog:
    """Drop users and items with too few engaged events, again and again until none is left.

    `exposed_only` events are not counted; they stay where both their user and their item stay.

    Raises:
        DataError: nothing survives the thresholds.

    Example:
        >>> core = k_core(load_source("movielens-100k"), min_user_events=5, min_item_events=5)
        >>> core.counts["k_core_items"] < 1682
        True
    """
    if min_user_events < 1 or min_item_events < 1:
        raise DataError(f"thresholds must be at least 1, got {min_user_events} a user and {min_item_events} an item")
    table = log.interactions
    engaged = table[table["engaged"]]
    while True:
        users, items = engaged["user_id"].value_counts(), engaged["item_id"].value_counts()
        users, items = users[users >= min_user_events], items[items >= min_item_events]
        kept = engaged[engaged["user_id"].isin(users.index) & engaged["item_id"].isin(items.index)]
        if len(kept) == len(engaged):
            break
        engaged = kept
    kept = table[table["user_id"].isin(users.index) & table["item_id"].isin(items.index)]
    return log.replace(kept, k_core_users=len(users), k_core_items=len(items), events=len(kept))


def drop_repeats(log: InteractionLog, *, keep: str = "first") -> InteractionLog:
    """Keep one engaged event of each user and item, so that a target slate never holds an item twice.

    Args:
        log: an interaction log, e.g. of plays or purchases, where users come back to items.
        keep: `first` or `last` event in time.
    """
    if keep not in ("first", "last"):
        raise DataError(f"keep is {keep!r}: use 'first' or 'last'")
    table = log.interactions
    repeated = table[table["engaged"]].duplicated(["user_id", "item_id"], keep=keep)
    dropped = repeated.reindex(table.index, fill_value=False)
    kept: pd.DataFrame = table[~dropped]
    return log.replace(kept, repeated_events=int(dropped.sum()), events=len(kept))
