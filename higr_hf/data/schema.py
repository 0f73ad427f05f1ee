"""The interaction log: one table of events, one table of items, and what is known about where they come from.

Interaction columns (`user_id`, `item_id`, `timestamp` are required, everything else optional):

| column | dtype | meaning |
|---|---|---|
| `user_id`, `item_id` | string | identifiers; integers are read as their decimal text |
| `timestamp` | int64 | seconds since 1970 UTC |
| `rating` | float32 | explicit rating |
| `watch_ratio` | float32 | time watched / duration |
| `click`, `like`, `dislike` | float32 0 / 1 | feedback flags, NaN when unknown |
| `exposed_only` | float32 0 / 1 | shown and ignored: never enters a history or a target slate |
| `basket_id` | string | events with one id were shown, or bought, together |

Any other column is kept under its own name and may be used in a rule. Three flags are derived from the rules of the
source (`LogInfo`): `engaged` (the event enters histories and targets), `view` (an effective view) and `negative`.

Item columns: `item_id`, `title`, `text` (what a text encoder reads), `categories` (strings), and anything more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from .errors import DataError
from .items import build_items, select_rows
from .readers import read_table
from .rules import apply_rule
from .validation import clean_interactions

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class LogInfo:
    """Where a log comes from, and how its feedback is read.

    Args:
        name: short name of the source.
        licence, citation, homepage: as its publishers state them; logged when the source is loaded.
        description: what a reader must know about the log.
        feedback: the column whose raw value accompanies history events (`rating`, `watch_ratio`, ...), if any.
        view_rule: effective views, e.g. `rating >= 4`. `None`: every engaged event is one.
        negative_rule: negative feedback, e.g. `rating <= 2`. `None`: the log has none.
        engaged_rule: what enters histories and targets, e.g. `click`. `None`: every event but the `exposed_only` ones.
    """

    name: str = "log"
    licence: str = "unknown"
    citation: str = ""
    homepage: str = ""
    description: str = ""
    feedback: str | None = None
    view_rule: str | None = None
    negative_rule: str | None = None
    engaged_rule: str | None = None


@dataclass(frozen=True)
class InteractionLog:
    """A validated log; make one with `read_log` or `load_source`.

    Attributes:
        interactions: pandas frame of the columns above, users in order of first appearance, each user's events in
            time order (events of equal time keep the order of their rows).
        items: `datasets.Dataset` of the catalogue: every item with at least one event in the log, in the order of the
            item table. An item's row is its *item index* everywhere else in the library.
        info: licence, citation, homepage and the feedback rules.
        counts: what reading the log did, e.g. `events`, `duplicate_events`, `unsorted_events`, `unused_items`.
    """

    interactions: pd.DataFrame
    items: Dataset
    info: LogInfo = field(default_factory=LogInfo)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        known = set(self.items["item_id"])
        unknown = set(self.interactions["item_id"].unique()) - known
        if unknown:
            raise DataError(f"{len(unknown)} items have events but no row among the items, e.g. {min(unknown)!r}")

    @property
    def item_ids(self) -> list[str]:
        """The catalogue's item ids in item-index order."""
        return list(self.items["item_id"])

    def replace(self, interactions: pd.DataFrame, **counts: int) -> InteractionLog:
        """The log of a subset of its events; the catalogue shrinks to the items that are left."""
        if interactions.empty:
            raise DataError("no event is left after filtering: relax the filter")
        used = set(interactions["item_id"].unique())
        rows = [row for row, item_id in enumerate(self.items["item_id"]) if item_id in used]
        items = self.items if len(rows) == len(self.items) else select_rows(self.items, rows)
        interactions = interactions.reset_index(drop=True)
        return dataclasses.replace(self, interactions=interactions, items=items, counts={**self.counts, **counts})


def read_log(
    interactions: Any,
    items: Any = None,
    *,
    columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    time_unit: str = "s",
    split: str = "train",
    missing_items: str = "error",
    info: LogInfo | None = None,
) -> InteractionLog:
    """Build a validated `InteractionLog` from your own tables.

    Args:
        interactions: anything `read_table` reads: pandas/polars frame, csv or parquet path, folder, Hub dataset id,
            `datasets.Dataset`.
        items: the item table, the same kinds; `None` makes a bare catalogue of the ids in the log.
        columns, item_columns: `{schema name: your name}`, e.g. `{"user_id": "uid", "timestamp": "when"}`.
        time_unit: `s`, `ms`, `us` or `ns`, for numeric timestamps; dates and date strings carry their own.
        split: split of a Hub dataset or `DatasetDict`.
        missing_items: items with events but no row in `items`: `error`, `drop` (the events) or `add` (a bare row).
        info: the source and its feedback rules. Without one, `rating` or else `watch_ratio` is taken as the feedback
            column when there is one, and the rules stay open: every event engaged, every event a view.

    Documented results: exact duplicate rows are dropped and counted; unsorted events are sorted, stably, and counted.

    Raises:
        DataError: a missing column, a missing id or time, a time that is not finite or plainly in another unit, a
            flag that is not 0/1, an item listed twice ... The message names the column and the rows.

    Example:
        >>> log = read_log(pd.DataFrame({"uid": [1, 1], "item_id": ["a", "b"], "timestamp": [20, 10]}),
        ...                columns={"user_id": "uid"})
        >>> log.interactions["item_id"].tolist(), log.items["item_id"][:]
        (['b', 'a'], ['a', 'b'])
    """
    events, counts = clean_interactions(read_table(interactions, split=split), columns=columns, time_unit=time_unit)
    if info is None:
        info = LogInfo(feedback=next((name for name in ("rating", "watch_ratio") if name in events.columns), None))
    table = None if items is None else read_table(items, split=split)
    events, catalogue, item_counts = build_items(events, table, columns=item_columns, missing_items=missing_items)
    if info.feedback is not None and info.feedback not in events.columns:
        raise DataError(f"the feedback column {info.feedback!r} is not among {list(events.columns)}")
    events = _flag(events, info)
    counts = (
        {"events": len(events), "users": events["user_id"].nunique(), "items": len(catalogue)} | counts | item_counts
    )
    return InteractionLog(interactions=events, items=catalogue, info=info, counts=counts)


def _flag(events: pd.DataFrame, info: LogInfo) -> pd.DataFrame:
    ignored = apply_rule("exposed_only", events) if "exposed_only" in events.columns else False
    engaged = (apply_rule(info.engaged_rule, events) if info.engaged_rule else True) & ~pd.Series(
        ignored, index=events.index
    ).astype(bool)
    view = engaged & (apply_rule(info.view_rule, events) if info.view_rule else True)
    negative = apply_rule(info.negative_rule, events) if info.negative_rule else False
    if not engaged.any():
        raise DataError(f"no event is engaged under the rule {info.engaged_rule!r}: histories would be empty")
    return events.assign(engaged=engaged.astype(bool), view=view.astype(bool), negative=negative)
