"""A dataset of pairs on disk and on the Hub: a parquet file, a card, and how it was built."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml

from ..utils.atomic import atomic_directory, recover_directory
from .rendering import PreferenceError, _described, description

if TYPE_CHECKING:
    from datasets import Dataset

    from ..hub import PushResult

DATA_FILE = "train.parquet"
ABOUT_FILE = "preferences.json"


def preference_report(dataset: Dataset) -> dict[str, Any]:
    """Pairs an objective, users asked, and why users have no pair of an objective.

    Raises:
        PreferenceError: for a dataset that [`build_preferences`] did not make.
    """
    about = description(dataset)
    if "pairs" not in about:
        raise PreferenceError("this dataset carries no report: make it with build_preferences")
    return {name: about[name] for name in ("users", "pairs", "users_without_a_pair", "users_without_any_pair")}


def dataset_card(dataset: Dataset) -> str:
    """The README of a dataset of pairs: its columns, counts and settings."""
    about = description(dataset)
    head = {
        "configs": [{"config_name": "default", "data_files": DATA_FILE}],
        "tags": ["preference", "slate-recommendation", "trl", "higr"],
        "size_categories": ["n<1K" if len(dataset) < 1000 else "1K<n<10K" if len(dataset) < 10_000 else "10K<n<100K"],
    }
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        "# Slate preferences",
        f"{len(dataset)} pairs of a chosen and a rejected slate after a user's history, made from logged feedback "
        "with `higr_hf.alignment.build_preferences`. TRL's preference trainers read `prompt`, `chosen` and `rejected` "
        "as they are, with the tokenizer named below; for another one `higr_hf.alignment.render` writes them anew "
        "from the item ids.",
    ]
    if "pairs" in about:
        lines.append("| objective | pairs | users without one, and why |\n|---|---|---|")
        for name, count in about["pairs"].items():
            reasons = about["users_without_a_pair"].get(name, {})
            lines[-1] += f"\n| {name} | {count} | {', '.join(f'{n} {why}' for why, n in reasons.items()) or 'none'} |"
    lines.append("Columns: " + ", ".join(f"`{name}`" for name in dataset.column_names) + ".")
    if about.get("tokenizer_fingerprint"):
        lines.append(f"Tokenizer fingerprint: `{about['tokenizer_fingerprint']}`.")
    if about.get("licence"):
        lines.append(f"The pairs are derived from a log under this licence: {about['licence']}")
    if "settings" in about:
        lines.append(f"Settings:\n\n```json\n{json.dumps(about['settings'], indent=2)}\n```")
    return "\n\n".join(lines) + "\n"


def save_preferences(dataset: Dataset, directory: str | os.PathLike) -> Path:
    """Write a dataset of pairs into a directory, replacing it as a whole; `load_dataset(directory)` reads it too.

    Returns:
        The directory.
    """
    with atomic_directory(directory) as folder:
        dataset.to_parquet(folder / DATA_FILE)
        (folder / ABOUT_FILE).write_text(json.dumps(description(dataset), indent=2), encoding="utf-8")
        (folder / "README.md").write_text(dataset_card(dataset), encoding="utf-8")
    return Path(directory)


def load_preferences(name_or_path: str | os.PathLike, **kwargs: Any) -> Dataset:
    """Read what [`save_preferences`] wrote, or [`push_preferences`] uploaded.

    Args:
        name_or_path: a directory, or the id of a Hub dataset.
        **kwargs: for `huggingface_hub.snapshot_download`, such as `revision` or `token`.

    Raises:
        PreferenceError: for a directory that holds no dataset of pairs, and for a truncated or corrupt file.
    """
    from datasets import Dataset

    directory = Path(name_or_path)
    recover_directory(directory)
    if not directory.is_dir():
        if directory.is_absolute() or str(name_or_path).count("/") != 1:
            raise PreferenceError(f"there is no directory {name_or_path}, and it is no id of a Hub dataset")
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(str(name_or_path), repo_type="dataset", **kwargs))
    path = directory / DATA_FILE
    if not path.is_file():
        raise PreferenceError(f"{path} is missing: {name_or_path} is no dataset written by save_preferences")
    try:
        dataset = Dataset(pq.read_table(path))  # read past the library's cache, which may know an older file
        about = json.loads((directory / ABOUT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PreferenceError(f"{error.filename} is missing: save or download the preferences again") from None
    except (ValueError, OSError) as error:  # pyarrow's errors are of both kinds
        raise PreferenceError(f"{directory} is truncated or corrupt ({error}): save or download it again") from error
    return _described(dataset, about)


def push_preferences(
    dataset: Dataset, repo_id: str, *, source: str, licence: str | None = None, **options: Any
) -> PushResult:
    """Upload a dataset of pairs, with a full card, as an ordinary Hub dataset in one commit.

    Args:
        dataset: from [`build_preferences`].
        repo_id: `name` or `owner/name`.
        source: the log that the pairs are from.
        licence: of that log; by default what the split said.
        **options: of `higr_hf.hub.push_dataset`, such as `private` or `token`.

    Returns:
        The `PushResult`: where it is, and its commit.

    Raises:
        HubError: for a refusal, with the way out.
    """
    from ..cards import write_dataset_card
    from ..hub import push_dataset

    licence = licence or description(dataset).get("licence") or "unknown"
    with tempfile.TemporaryDirectory() as folder:
        directory = save_preferences(dataset, Path(folder) / "preferences")
        write_dataset_card(directory, source=source, licence=licence)
        return push_dataset(repo_id, directory, **options)
