"""Real lists: what one request showed, or one receipt holds, as the target slate of the history before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .errors import DataError
from .sequences import Sequences
from .splits import check_sizes

if TYPE_CHECKING:
    from datasets import DatasetDict

    from .schema import InteractionLog


def basket_splits(
    log: InteractionLog,
    *,
    min_items: int = 2,
    max_items: int | None = None,
    min_history: int = 1,
    max_history: int | None = 200,
) -> DatasetDict:
    """Every real list with its history; a user's last list tests, the one before it validates, earlier ones train.

    Args:
        log: a log with `basket_id`. Engaged events without one enter histories only.
        min_items: different items a list must have to be a target.
        max_items: longer lists keep their first so many items, in time and then row order.
        min_history: engaged events that must stand before the list.
        max_history: events kept of each history, the latest ones; `None` keeps all, which repeats long histories once
            a list.

    Returns:
        `DatasetDict` with the columns of `leave_last_out` plus `basket_id`; unlike there, a train row has a target. An
        item that stands twice in a list is in the target once. A history ends before the first event of its list, and
        a training list ends before the first event of its user's validation list. `split_report` reads the counts.

    Users with fewer than three usable lists train only.

    Raises:
        DataError: no `basket_id`, no list long enough, or no user with three lists.

    Example:
        >>> ds = basket_splits(load_source("complete-journey"), max_items=10)
        >>> sorted(ds)
        ['test', 'train', 'validation']
    """
    check_sizes(min_items=min_items, min_history=min_history, max_items=max_items, max_history=max_history)
    if "basket_id" not in log.interactions.columns:
        raise DataError(
            "the log has no basket_id: it does not say which events were shown together. leave_last_out makes "
            "targets of consecutive events instead"
        )
    sequences = Sequences(log)
    events = pd.DataFrame(
        {
            "user": np.repeat(np.arange(len(sequences.users)), sequences.lengths),
            "basket": sequences.events["basket_id"].to_numpy(dtype=object),
            "item": sequences.events["item_id"].to_numpy(dtype=object),
        }
    )
    events["position"] = np.arange(len(events)) - sequences.offsets[events["user"]]
    listed = events[events["basket"].notna()]
    ends = listed.groupby(["user", "basket"], sort=False)["position"].agg(["min", "max"])
    listed = listed.drop_duplicates(["user", "basket", "item"])
    lists = ends.assign(size=listed.groupby(["user", "basket"], sort=False).size()).reset_index()
    total = len(lists)
    lists = lists[(lists["size"] >= min_items) & (lists["min"] >= min_history)]
    lists = lists.sort_values(["user", "min"], kind="stable").reset_index(drop=True)
    if lists.empty:
        raise DataError(f"no list has {min_items} different items and {min_history} events before it")
    by_user = lists.groupby("user")
    from_end = by_user.cumcount(ascending=False)
    evaluated = by_user["user"].transform("size") >= 3
    if not evaluated.any():
        raise DataError("no user has three usable lists: nothing could be held out")
    # Lists may interleave (two devices): one that is still running when the validation list starts would leak it.
    held_out_start = lists["min"].where(from_end == 1).groupby(lists["user"]).transform("max")
    running = evaluated & (from_end >= 2) & (lists["max"] >= held_out_start)
    report = {
        "protocol": "baskets",
        "min_items": min_items,
        "max_items": max_items,
        "max_history": max_history,
        "users_evaluated": int((evaluated & (from_end == 0)).sum()),
        "lists": total,
        "lists_too_short": total - len(lists),
        "lists_interleaved": int(running.sum()),
    }

    # Targets need not be contiguous, so they are given as positions: the distinct items' first events, list by list.
    listed = listed.assign(key=pd.MultiIndex.from_frame(listed[["user", "basket"]]).map(_row_numbers(lists)))
    listed = listed[listed["key"].notna()].sort_values(["key", "position"], kind="stable")
    if max_items is not None:
        listed = listed[listed.groupby("key").cumcount() < max_items]
    targets = listed.groupby("key")["position"].agg(list)

    def part(chosen: pd.Series) -> object:
        rows = lists[chosen]
        start = 0 if max_history is None else np.maximum(rows["min"].to_numpy() - max_history, 0)
        history = np.stack([np.broadcast_to(start, len(rows)), rows["min"].to_numpy()], axis=1)
        return sequences.to_dataset(
            rows["user"].to_numpy(),
            history,
            targets.loc[rows.index].tolist(),
            report,
            basket_id=rows["basket"].tolist(),
        )

    from datasets import DatasetDict

    return DatasetDict(
        train=part(~evaluated | ((from_end >= 2) & ~running)),
        validation=part(evaluated & (from_end == 1)),
        test=part(evaluated & (from_end == 0)),
    )


def _row_numbers(lists: pd.DataFrame) -> dict[tuple[int, object], int]:
    return {key: row for row, key in enumerate(zip(lists["user"], lists["basket"], strict=True))}
