"""Amazon Reviews 2023: reviews and product data of one category, as the raw files of the dataset on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..errors import DataError
from ..schema import InteractionLog, LogInfo, read_log
from .fetch import DownloadError
from .places import first_available

_REPOSITORY = "McAuley-Lab/Amazon-Reviews-2023"
_REVIEWS, _PRODUCTS = "raw/review_categories/{}.jsonl", "raw/meta_categories/meta_{}.jsonl"

_INFO = LogInfo(
    name="amazon-reviews-2023",
    licence="none stated by the publishers; see the dataset's card for its terms",
    citation="""Yupeng Hou, Jiacheng Li, Zhankui He, An Yan, Xiusi Chen, Julian McAuley. 2024.
Bridging Language and Items for Retrieval and Recommendation. arXiv:2403.03952""",
    homepage="https://amazon-reviews-2023.github.io",
    description=(
        "Reviews with stars; an item is a parent product (its sizes and colours together). Times are the review's."
    ),
    feedback="rating",
    view_rule="rating >= 4",
    negative_rule="rating <= 2",
)


def load(
    name: str,
    *,
    folder: Path,
    local_path: Path | None = None,
    category: str = "All_Beauty",
    revision: str = "main",
) -> InteractionLog:
    """Reviews of one category.

    Args:
        name, folder: given by `load_source`.
        local_path: a folder with `<category>.jsonl` and `meta_<category>.jsonl`.
        category: one of the dataset's categories, e.g. `All_Beauty`, `Video_Games`, `Books`.
        revision: branch, tag or commit of the dataset on the Hub.

    Reviews of products without product data are dropped and counted.
    """
    if not re.fullmatch(r"[A-Za-z_]+", category):
        raise DataError(f"category is {category!r}: use the dataset's own names, e.g. 'All_Beauty' or 'Video_Games'")
    paths = []
    for pattern in (_REVIEWS, _PRODUCTS):
        filename = pattern.format(category)
        if local_path is not None:
            paths.append(local_path / Path(filename).name)
            continue
        fetch = partial(_fetch, filename=filename, folder=folder / revision, revision=revision)
        paths.append(first_available(folder / revision, [("Hugging Face Hub", filename, None, fetch)])[1])
    reviews = pd.DataFrame(_rows(paths[0], ("user_id", "parent_asin", "timestamp", "rating")))
    products = _products(paths[1], set(reviews.get("parent_asin", ())))
    return read_log(
        reviews, products, columns={"item_id": "parent_asin"}, time_unit="ms", missing_items="drop", info=_INFO
    )


def _fetch(path: Path, *, filename: str, folder: Path, revision: str) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:  # resumes by itself; a raw file is only copied, no code of the repository is run
        hf_hub_download(_REPOSITORY, filename, repo_type="dataset", revision=revision, local_dir=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DownloadError(f"{filename} of {_REPOSITORY}: {error}") from error


def _rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with (
            path.open("rb") as lines,
            tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name) as bar,
        ):
            for number, line in enumerate(lines):
                bar.update(len(line))
                try:
                    row = json.loads(line)
                    yield {name: row[name] for name in fields}
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{path}, line {number + 1}: not a row with {list(fields)} ({error!r})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _products(path: Path, used: set[str]) -> pd.DataFrame:
    rows: dict[str, dict[str, Any]] = {}
    for row in _rows(path, ("parent_asin", "title", "store", "categories", "main_category")):
        if row["parent_asin"] in used:
            rows.setdefault(row["parent_asin"], row)
    products = []
    for item_id, row in rows.items():
        title = row["title"] or item_id
        # The first category repeats the file's own; small categories list none.
        categories = list(row["categories"] or [])[1:] or [name for name in [row["main_category"]] if name]
        text = ". ".join(
            part for part in (title, ", ".join(categories), f"By {row['store']}" if row["store"] else "") if part
        )
        products.append({"item_id": item_id, "title": title, "text": text, "categories": categories})
    return pd.DataFrame(products, columns=["item_id", "title", "text", "categories"])
