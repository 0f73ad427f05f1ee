"""A preference dataset as a directory for the Hub: parquet files and their card."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from ..utils import atomic_directory, atomic_write_json, atomic_write_text
from .facts import plain, table
from .metadata import LICENSE_FILE, TAGS, licence_fields
from .render import PLACEHOLDER, from_template, terms

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ABOUT_FILE = "preferences.json"
COLUMNS = ("prompt", "chosen", "rejected")
_EXAMPLE_LENGTH = 60
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(
    directory: str | os.PathLike,
    dataset: Dataset | DatasetDict | None = None,
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
    """Write slate preferences as `<split>.parquet`, what they say about themselves, and a card: see `push_dataset`.

    Args:
        directory: where to; replaced as a whole.
        dataset: rows with `prompt`, `chosen` and `rejected` (text), and whatever else explains them, such as
            `objective`. By default what lies there already, as `higr_hf.alignment.save_preferences` left it.
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
        FileNotFoundError: when no dataset is given and none lies there.
        ValueError: for a missing column, or a split without rows; the message names it.

    Example:
        >>> write_dataset_card("runs/preferences", pairs, source=log.info.name, licence=log.info.licence)
        >>> push_dataset("me/movielens-slate-preferences", "runs/preferences", private=True)
    """
    directory = Path(directory)
    splits = _splits(directory, dataset)
    about = _about(directory, splits, given=dataset is not None)
    tokenizer_fingerprint = tokenizer_fingerprint or str(about.get("tokenizer_fingerprint", ""))
    settings = settings or about.get("settings")
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
                "data_files": [{"split": split, "path": f"{split}.parquet"} for split in splits],
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
        "example": {name: _beginning(first[0][name]) for name in COLUMNS},
    }
    card = from_template(DatasetCard, data, "preference_dataset", values, templates)
    with atomic_directory(directory) as folder:
        for split, rows in splits.items():
            rows.to_parquet(folder / f"{split}.parquet")
        if about:
            atomic_write_json(folder / ABOUT_FILE, about)
        atomic_write_text(folder / "README.md", str(card))
        if fields.get("license_link") == LICENSE_FILE:
            atomic_write_text(folder / LICENSE_FILE, terms(values))
    return directory


def _splits(directory: Path, dataset: Dataset | DatasetDict | None) -> dict[str, Dataset]:
    from datasets import Dataset

    if dataset is None:
        paths = sorted(directory.glob("*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{directory} holds no <split>.parquet: save the preferences there, or give them.")
        # In memory, and past the library's cache: the files are about to be replaced.
        return {path.stem: Dataset(pq.read_table(path)) for path in paths}
    return dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "train"): dataset}


def _about(directory: Path, splits: Mapping[str, Dataset], given: bool) -> dict[str, Any]:
    """How the pairs were built, as `build_preferences` leaves it with a dataset and in the file beside its rows."""
    text = next(iter(splits.values())).info.description
    if not given and (directory / ABOUT_FILE).is_file():
        text = (directory / ABOUT_FILE).read_text(encoding="utf-8")
    try:
        about = json.loads(text or "{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _beginning(text: str) -> str:
    """Enough of a text to see how it is written: a card is no place for somebody's whole history."""
    line = " ".join(text.split()).replace("`", "'")
    return line if len(line) <= _EXAMPLE_LENGTH else f"{line[:_EXAMPLE_LENGTH]} …"


def _type_of(feature: Any) -> str:
    inner = getattr(feature, "feature", None)
    return f"list of {_type_of(inner)}" if inner is not None else str(getattr(feature, "dtype", feature))


def _kinds(splits: Mapping[str, Dataset]) -> str:
    """How many pairs of every objective, that is, kind of rejected slate; empty without that column."""
    counts = {split: Counter(rows["objective"]) for split, rows in splits.items() if "objective" in rows.column_names}
    if not counts:
        return ""
    names = sorted({name for count in counts.values() for name in count})
    return table(["objective", *counts], [[name, *(count[name] for count in counts.values())] for name in names])
