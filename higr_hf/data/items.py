"""The catalogue: an item table checked, typed and cut down to the items that have events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .errors import DataError, shown
from .validation import identifiers, rename

if TYPE_CHECKING:
    from datasets import Dataset

MISSING_ITEM_RULES = ("error", "drop", "add")


def build_items(
    events: pd.DataFrame,
    table: pd.DataFrame | None,
    *,
    columns: dict[str, str] | None = None,
    missing_items: str = "error",
) -> tuple[pd.DataFrame, Dataset, dict[str, int]]:
    """The catalogue of a cleaned interaction table.

    Args:
        events: interactions as `clean_interactions` returns them.
        table: item table with `item_id` and optionally `title`, `text`, `categories`, and anything more; `None` for a
            bare catalogue whose titles are the ids.
        columns: `{schema name: your name}`.
        missing_items: what to do about events whose item has no row: `error`, `drop` them, or `add` a bare row.

    Returns:
        The events (fewer under `drop`), the items with at least one event, and the counts of what was left out.
    """
    if missing_items not in MISSING_ITEM_RULES:
        raise DataError(f"missing_items is {missing_items!r}: use one of {list(MISSING_ITEM_RULES)}")
    if table is None:
        table, missing_items = pd.DataFrame({"item_id": pd.Series([], dtype="str")}), "add"
    table = rename(table, columns, ("item_id",), "items")
    table = table.assign(item_id=identifiers(table["item_id"], "item_id", "items"))
    twice = table["item_id"][table["item_id"].duplicated()]
    if len(twice):
        raise DataError(f"items: item_id {shown(twice.unique())} is listed more than once (row {twice.index[0]})")

    counts = {}
    used = pd.unique(events["item_id"])
    missing = sorted(set(used) - set(table["item_id"]), key=lambda item_id: (len(item_id), item_id))
    if missing and missing_items == "error":
        raise DataError(
            f"items: {len(missing)} items have events but no row, e.g. {shown(missing)}: complete the item table, or "
            "pass missing_items='drop' or 'add'"
        )
    if missing and missing_items == "drop":
        keep = ~events["item_id"].isin(missing)
        counts["events_of_missing_items"] = int((~keep).sum())
        events = events[keep].reset_index(drop=True)
        if events.empty:
            raise DataError("items: no event is left, the item table shares no item_id with the interactions")
    if missing and missing_items == "add":
        table = pd.concat([table, pd.DataFrame({"item_id": missing})], ignore_index=True)
    kept = table["item_id"].isin(events["item_id"].unique())
    counts["unused_items"] = int((~kept).sum())
    return events, _dataset(table[kept].reset_index(drop=True)), counts


def select_rows(items: Dataset, rows: list[int]) -> Dataset:
    """Some rows of an item table as a table of its own, not as a view of the whole one."""
    from datasets import Dataset

    return Dataset(items.with_format("arrow")[rows], info=items.info)


def _dataset(table: pd.DataFrame) -> Dataset:
    from datasets import Dataset, Features, List, Value

    categories = [_categories(value, row) for row, value in enumerate(table.get("categories", [None] * len(table)))]
    title = _text(table, "title", table["item_id"])
    text = _text(table, "text", None)
    if "text" not in table.columns and "title" in table.columns:
        # A bare catalogue gets no text: an encoder would only read the ids, and say nothing about the items.
        text = [
            f"{name}. {', '.join(names)}" if names else name for name, names in zip(title, categories, strict=True)
        ]
    known = {"item_id": table["item_id"].tolist(), "title": title, "text": text, "categories": categories}
    extra = Dataset.from_pandas(table.drop(columns=[name for name in known if name in table]), preserve_index=False)
    features = Features(
        {
            "item_id": Value("string"),
            "title": Value("string"),
            "text": Value("string"),
            "categories": List(Value("string")),
        }
    )
    dataset = Dataset.from_dict(known, features=features)
    for name in extra.column_names:
        dataset = dataset.add_column(name, extra.data.column(name), feature=extra.features[name])
    return dataset


def _text(table: pd.DataFrame, column: str, default: pd.Series | None) -> list[str]:
    values = table.get(column)
    if values is None:
        return [""] * len(table) if default is None else default.tolist()
    values = values.astype(object).where(values.notna(), "" if default is None else default)
    return [str(value) for value in values]


def _categories(value: object, row: int) -> list[str]:
    """Categories as a list: lists stay, a string splits at `|`, nothing is an empty list."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    if isinstance(value, str):
        value = value.split("|")
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise DataError(f"items: categories in row {row} is {value!r}: give a list of strings, or 'a|b'")
    return [str(name).strip() for name in value if name is not None and str(name).strip()]
