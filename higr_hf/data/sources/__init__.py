"""Public interaction logs by name."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from ..cache import cache_root
from ..errors import DataError
from ..schema import InteractionLog

logger = logging.getLogger(__name__)

_LOADERS = {
    "movielens-100k": "movielens",
    "movielens-1m": "movielens",
    "complete-journey": "complete_journey",
    "kuairand-pure": "kuairand",
    "amazon-reviews-2023": "amazon",
    "lastfm-1k": "lastfm",
}


def list_sources() -> list[str]:
    """Names that `load_source` knows."""
    return sorted(_LOADERS)


def load_source(
    name: str, *, cache_dir: str | Path | None = None, local_path: str | Path | None = None, **options: Any
) -> InteractionLog:
    """Load a public log by name: from `local_path`, from the cache, or by downloading it.

    A download happens only here, only because this was called; it is resumable, checked against a pinned checksum
    (or one recorded at the first download) and then kept. The licence and the citation are logged, and stand in
    `log.info`.

    Args:
        name: one of `list_sources()`.
        cache_dir: where downloads are kept; by default `$HIGR_CACHE`, else `~/.cache/higr_hf`.
        local_path: a file or folder you already have; nothing is downloaded then.
        **options: of the one source, e.g. `category` of `amazon-reviews-2023`.

    Raises:
        DataError: an unknown name, or local files that are not this source's.
        DownloadError: no site that holds the source can be reached; every attempt and its error is listed.

    Example:
        >>> log = load_source("movielens-100k")
        >>> log.items[0]["title"], len(log.interactions)
        ('Toy Story (1995)', 100000)
    """
    if name not in _LOADERS:
        raise DataError(f"no source is called {name!r}: choose one of {list_sources()}")
    module = importlib.import_module(f".{_LOADERS[name]}", __name__)
    if local_path is not None and not Path(local_path).exists():
        raise DataError(f"local_path {local_path} does not exist")
    folder = cache_root(cache_dir) / "sources" / name
    log = module.load(name, folder=folder, local_path=None if local_path is None else Path(local_path), **options)
    logger.info("%s: licence %s. Cite: %s", name, log.info.licence, " ".join(log.info.citation.split()))
    return log
