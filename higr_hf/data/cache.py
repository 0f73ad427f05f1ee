"""Where downloads and computed embeddings are kept, and writes that are whole or not there at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$HIGR_CACHE`, else `~/.cache/higr_hf`."""
    return Path(cache_dir or os.environ.get("HIGR_CACHE") or Path.home() / ".cache" / "higr_hf").expanduser()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and is removed when it does not.

    The bytes reach the disk before the name does: after a full disk, a kill or a power cut, `path` is either absent
    (or its former version) or complete.

    Example:
        >>> with whole_file(Path("table.csv")) as temporary:
        ...     temporary.write_text("a,b")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
