"""The categories of a catalogue's items: the file beside a model that holds them, and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import cached_file

if TYPE_CHECKING:
    from datasets import Dataset

CATEGORIES_FILE = "item_categories.json"


def categories_file(items: Dataset) -> dict[str, str]:
    """The file for `save_checkpoint(extra_files=...)`; none where no item has a category.

    Args:
        items: a log's item table, with `item_id` and `categories`.

    Returns:
        The file's text by its name: a JSON object of item id: [category, ...].

    Example:
        >>> extra = categories_file(log.items)
        >>> save_checkpoint("runs/model", model, tokenizer, extra_files=extra)
    """
    categories = dict(zip(items["item_id"], items["categories"], strict=True))
    return {CATEGORIES_FILE: json.dumps(categories, ensure_ascii=False)} if any(categories.values()) else {}


def find_categories(place: str, revision: str | None = None) -> dict[str, list[str]] | None:
    """The categories that came with a model.

    Args:
        place: a directory, or an id on the Hub.
        revision: commit, tag or branch on the Hub.

    Returns:
        Categories by item id; None where the model came without.

    Raises:
        ValueError: for a file that is no object of lists.
    """
    if Path(place).is_dir():
        path = Path(place) / CATEGORIES_FILE
        return read_categories(path) if path.is_file() else None
    found = cached_file(
        place,
        CATEGORIES_FILE,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else read_categories(Path(found))


def items_of(categories: Mapping[str, Sequence[str]], wanted: Sequence[str], item_ids: Iterable[str]) -> list[str]:
    """The items that have any of the wanted categories, upper and lower case alike.

    Raises:
        ValueError: when no item has any; the message lists what there is.

    Example:
        >>> items_of({"a": ["Drama"], "b": ["War", "Drama"], "c": ["War"]}, ["drama"], ["a", "b", "c"])
        ['a', 'b']
    """
    folded = {name.casefold() for name in wanted}
    found = [item for item in item_ids if folded & {name.casefold() for name in categories.get(item, ())}]
    if not found:
        names = " or ".join(map(repr, wanted))
        raise ValueError(f"no item has the category {names}; there are {', '.join(names_of(categories)[:40])}.")
    return found


def names_of(categories: Mapping[str, Sequence[str]]) -> list[str]:
    """Every category once, sorted."""
    return sorted({name for names in categories.values() for name in names})


def read_categories(path: Path) -> dict[str, list[str]]:
    """Categories by item id.

    Args:
        path: a JSON object of lists, or a csv, tsv, parquet or JSON-lines table with `item_id` and `categories`
            (lists, or names separated by `|`).

    Raises:
        ValueError: for a file that cannot be read so.
    """
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no valid JSON: {error}") from error
        lists = content.values() if isinstance(content, dict) else [None]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            raise ValueError(f"{path} must be an object of item id: [category, ...].")
        return content
    import pandas as pd  # the one thing here that needs it

    readers = {
        ".csv": lambda: pd.read_csv(path, dtype=str, keep_default_na=False),
        ".tsv": lambda: pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False),
        ".parquet": lambda: pd.read_parquet(path),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: item tables are {', '.join(['.json', *readers])}.")
    table = readers[path.suffix]()
    if not {"item_id", "categories"} <= set(table.columns):
        raise ValueError(f"{path} has the columns {list(table.columns)}; it needs item_id and categories.")
    names = [value.split("|") if isinstance(value, str) else list(value) for value in table["categories"]]
    return {str(item): [name for name in found if name] for item, found in zip(table["item_id"], names, strict=True)}
