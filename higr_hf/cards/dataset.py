"""A preference dataset as a directory for the Hub: parquet files and their card."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..utils import atomic_directory, atomic_write_text
from .facts import plain, table
from .metadata import LICENSE_FILE, TAGS, licence_fields
from .render import PLACEHOLDER, from_template, terms

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

COLUMNS = ("prompt", "chosen", "rejected")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(
    directory: str | os.PathLike,
    dataset: Dataset | DatasetDict,
    *,
    source: str,
    licence: str = "unknown",
    homepage: str = "",
    citation: str = "",
    tokenizer: str | None = None,
    tokenizer_fingerprint: str = "",
    settings: Mapping[str, Any] | None = None,
    commands: tuple[str, ...] = (),
    repo_id: str = PLACEHOLDER,
    templates: str | os.PathLike | None = None,
) -> Path:
    """Write slate preferences as `data/<split>-00000-of-00001.parquet` and a card, ready for `push_dataset`.

    Args:
        directory: where to; replaced as a whole.
        dataset: rows with `prompt`, `chosen` and `rejected` (text), and whatever else explains them, such as `kind`.
        source: the log that they come from.
        licence, homepage, citation: of that log, as `LogInfo` has them.
        tokenizer: id on the Hub, or name, of the tokenizer that wrote the text.
        tokenizer_fingerprint: of it; another tokenizer reads other items in the same text.
        settings: what decided how pairs were made.
        commands: what to type to make them again.
        repo_id: where it will stand; filled in by `push_dataset` when it is left out.
        templates: directory of the templates.

    Returns:
        The directory.

    Raises:
        ValueError: for a missing column, or a split without rows; the message names it.

    Example:
        >>> write_dataset_card("runs/preferences", pairs, source=log.info.name, licence=log.info.licence)
        >>> push_dataset("me/movielens-slate-preferences", "runs/preferences", private=True)
    """
    splits = dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "train"): dataset}
    for split, rows in splits.items():
        missing = [name for name in COLUMNS if name not in rows.column_names]
        if missing:
            raise ValueError(f"Split {split!r} lacks {', '.join(missing)}; it has {', '.join(rows.column_names)}.")
        if not len(rows):
            raise ValueError(f"Split {split!r} has no rows: make more pairs, or leave the split out.")
    total = sum(map(len, splits.values()))
    fields = licence_fields(source, licence, homepage)
    data = DatasetCardData(
        **fields,
        pretty_name=f"Slate preferences on {plain(source)}",
        size_categories=[next((name for limit, name in _SIZES if total < limit), "n>1M")],
        source_datasets=["extended"],
        annotations_creators=["machine-generated"],
        tags=[*TAGS, "preference", "trl"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits],
            }
        ],
    )
    first = next(iter(splits.values()))
    values = {
        "kind": "preference_dataset",
        "repo_id": repo_id,
        "source": plain(source),
        "licence": plain(licence),
        "homepage": plain(homepage),
        "citation": plain(citation),
        "tokenizer": tokenizer or "",
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "splits_table": table(["split", "pairs"], [[split, len(rows)] for split, rows in splits.items()]),
        "columns_table": table(
            ["column", "type"], [[f"`{name}`", _type_of(feature)] for name, feature in first.features.items()]
        ),
        "kinds_table": _kinds(splits),
        "settings_table": table(["setting", "value"], list((settings or {}).items())) if settings else "",
        "commands": list(commands),
        "first_split": next(iter(splits)),
        "example": {name: " ".join(first[0][name].split()).replace("`", "'") for name in COLUMNS},
    }
    card = from_template(DatasetCard, data, "preference_dataset", values, templates)
    with atomic_directory(directory) as folder:
        (folder / "data").mkdir()
        for split, rows in splits.items():
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        atomic_write_text(folder / "README.md", str(card))
        if fields.get("license_link") == LICENSE_FILE:
            atomic_write_text(folder / LICENSE_FILE, terms(values))
    return Path(directory)


def _type_of(feature: Any) -> str:
    inner = getattr(feature, "feature", None)
    return f"list of {_type_of(inner)}" if inner is not None else str(getattr(feature, "dtype", feature))


def _kinds(splits: Mapping[str, Dataset]) -> str:
    """How many pairs of every kind of rejected slate; empty without that column."""
    counts = {split: Counter(rows["kind"]) for split, rows in splits.items() if "kind" in rows.column_names}
    if not counts:
        return ""
    names = sorted({name for count in counts.values() for name in count})
    return table(["kind", *counts], [[name, *(count[name] for count in counts.values())] for name in names])
