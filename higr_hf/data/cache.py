"""Where downloads and computed embeddings are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$HIGR_CACHE`, else `~/.cache/higr_hf`."""
    return Path(cache_dir or os.environ.get("HIGR_CACHE") or Path.home() / ".cache" / "higr_hf").expanduser()
