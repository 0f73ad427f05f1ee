"""Checks and repairs of an interaction table: every error names the column and the rows it is about."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .errors import DataError, shown

REQUIRED = ("user_id", "item_id", "timestamp")
NUMBERS = ("rating", "watch_ratio")
FLAGS = ("click", "like", "dislike", "exposed_only")
DERIVED = ("engaged", "view", "negative")

_UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_3000 = 32_503_680_000  # no log reaches it; a time beyond it was written in another unit


def clean_interactions(
    table: pd.DataFrame, *, columns: dict[str, str] | None = None, time_unit: str = "s"
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rename, check, type, sort and de-duplicate an interaction table (see `schema` for its columns).

    Rows in error messages are counted from 0 in the table as it was given.
    """
    table = rename(table, columns, REQUIRED, "interactions")
    if table.empty:
        raise DataError("the interaction table has no rows")
    clash = [name for name in DERIVED if name in table.columns]
    if clash:
        raise DataError(f"the column names {clash} are taken by derived flags: rename yours, or write it as a rule")
    order_key = _times(table["timestamp"], time_unit)
    table = table.assign(
        user_id=identifiers(table["user_id"], "user_id", "interactions"),
        item_id=identifiers(table["item_id"], "item_id", "interactions"),
        timestamp=order_key,
        **{name: _number(table[name], name) for name in NUMBERS if name in table.columns},
        **{name: _flag(table[name], name) for name in FLAGS if name in table.columns},
    )
    if "basket_id" in table.columns:
        known = table["basket_id"].notna().to_numpy()
        baskets = np.full(len(table), None, dtype=object)
        baskets[known] = identifiers(table["basket_id"][known], "basket_id", "interactions").to_numpy(dtype=object)
        table["basket_id"] = pd.Series(baskets, index=table.index, dtype="str")
    # Compared to the microsecond and in every column: two truly distinct events never agree in all of them.
    duplicated = table.duplicated(_comparable(table)).to_numpy()
    table, order_key = table[~duplicated], order_key[~duplicated]
    table = table.assign(timestamp=np.floor_divide(order_key, _UNITS_PER_SECOND["us"]))

    user = pd.factorize(table["user_id"])[0]  # users in order of first appearance
    order = np.lexsort((np.arange(len(table)), order_key, user))  # last key first; row order settles equal times
    moved = _out_of_order(user, order_key)
    counts = {"duplicate_events": int(duplicated.sum()), "unsorted_events": moved}
    return table.iloc[order].reset_index(drop=True), counts


def _comparable(table: pd.DataFrame) -> list[str]:
    """Columns that can be compared: an extra column of lists cannot."""
    return [name for name in table.columns if not isinstance(table[name].iloc[0], (list, dict, np.ndarray))]


def _out_of_order(user: np.ndarray, time: np.ndarray) -> int:
    """Number of events that come, in row order, after a later event of the same user."""
    by_user = np.argsort(user, kind="stable")
    frame = pd.Series(time[by_user])
    latest = frame.groupby(user[by_user]).cummax()
    return int((frame < latest).sum())


def rename(table: pd.DataFrame, columns: dict[str, str] | None, required: tuple[str, ...], what: str) -> pd.DataFrame:
    """Apply a `{schema name: your name}` mapping and check that the required columns are there."""
    columns = columns or {}
    absent = sorted(set(columns.values()) - set(table.columns))
    if absent:
        raise DataError(f"{what}: the mapped column {absent[0]!r} does not exist; the table has {list(table.columns)}")
    # A column that the mapping supersedes (its name is wanted by another) is dropped rather than doubled.
    superseded = [name for name, source in columns.items() if name in table.columns and name != source]
    swapped = set(columns.values())
    table = table.drop(columns=[name for name in superseded if name not in swapped])
    table = table.rename(columns={source: name for name, source in columns.items()})
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise DataError(f"{what}: the column {repeated[0]!r} appears twice")
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise DataError(
            f"{what}: the column {missing[0]!r} is missing; the table has {list(table.columns)}. "
            f"Name yours with the mapping {{{missing[0]!r}: 'your column'}}"
        )
    return table


def identifiers(values: pd.Series, column: str, what: str) -> pd.Series:
    """Ids as strings; integers, and floats that hold integers, become their decimal text."""
    _fail(values.isna(), f"{what}: {column} is missing")
    if pd.api.types.is_bool_dtype(values):
        raise DataError(f"{what}: {column} holds booleans, not ids")
    if pd.api.types.is_float_dtype(values):
        _fail(~np.isfinite(values) | (values % 1 != 0), f"{what}: {column} is not a whole number", values)
        values = values.astype(np.int64)
    text = values.astype("str")
    _fail(text.str.len() == 0, f"{what}: {column} is an empty string")
    return text


def _times(values: pd.Series, unit: str) -> np.ndarray:
    """Microseconds since 1970 UTC, int64 `[rows]`."""
    if unit not in _UNITS_PER_SECOND:
        raise DataError(f"time_unit is {unit!r}: use one of {list(_UNITS_PER_SECOND)}")
    _fail(values.isna(), "interactions: timestamp is missing")
    if not pd.api.types.is_numeric_dtype(values):
        times = pd.to_datetime(values, utc=True, errors="coerce", format="ISO8601" if _is_text(values) else None)
        _fail(times.isna(), "interactions: timestamp is not a date (ISO 8601)", values)
        return times.dt.tz_localize(None).to_numpy(dtype="datetime64[us]").astype(np.int64)
    if pd.api.types.is_bool_dtype(values):
        raise DataError("interactions: timestamp holds booleans, not times")
    per_second = _UNITS_PER_SECOND[unit]
    numbers = values.to_numpy()
    _fail(~np.isfinite(numbers.astype(np.float64)), "interactions: timestamp is not finite", values)
    _fail(
        np.abs(numbers.astype(np.float64)) >= _YEAR_3000 * float(per_second),
        f"interactions: timestamp is beyond the year 3000 when read in {unit!r}; pass time_unit='ms', 'us' or 'ns'",
        values,
    )
    if unit == "ns":
        return np.floor_divide(numbers, 1000).astype(np.int64)
    scale = _UNITS_PER_SECOND["us"] // per_second
    if np.issubdtype(numbers.dtype, np.integer):
        return numbers.astype(np.int64) * scale  # exact: int64 microseconds reach far beyond the year 3000
    return np.round(numbers.astype(np.float64) * scale).astype(np.int64)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(values) or pd.api.types.is_object_dtype(values)


def _number(values: pd.Series, column: str) -> np.ndarray:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    _fail(np.isnan(numbers) & values.notna().to_numpy(), f"interactions: {column} is not a number", values)
    _fail(np.isinf(numbers), f"interactions: {column} is infinite", values)
    if column == "watch_ratio":
        _fail(numbers < 0, "interactions: watch_ratio is negative", values)
    return numbers.astype(np.float32)


def _flag(values: pd.Series, column: str) -> np.ndarray:
    numbers = _number(values, column)
    _fail(~np.isnan(numbers) & (numbers != 0) & (numbers != 1), f"interactions: {column} is neither 0 nor 1", values)
    return numbers


def _fail(bad: pd.Series | np.ndarray, what: str, values: pd.Series | None = None) -> None:
    rows = np.flatnonzero(np.asarray(bad, dtype=bool))
    if len(rows):
        found = f" (found {shown(values.iloc[rows[:3]].tolist())})" if values is not None else ""
        raise DataError(f"{what} in row {shown(rows)}{found}")
