"""Checksums: pinned where the file is known, recorded at the first download where it is not."""

from __future__ import annotations

import json
from pathlib import Path

from ...utils import atomic_write_json, file_digest
from ..errors import DataError

MANIFEST = "manifest.json"


def check_digest(path: Path, expected: str | None, origin: str = "") -> None:
    """Compare a file with a pinned `sha256:...` or `md5:...`; `None` checks nothing.

    Raises:
        ChecksumError: the file differs.
    """
    if expected is None:
        return
    algorithm, _, digest = expected.partition(":")
    found = file_digest(path, algorithm)
    if found != digest:
        raise ChecksumError(
            f"{origin or path}: {algorithm} is {found}, expected {digest}: the file is not the pinned one"
        )


class ChecksumError(DataError):
    """A file whose bytes are not the ones that were pinned or recorded."""


class Manifest:
    """`manifest.json` of a cache folder: size, sha256 and modification time of every file that was found good.

    A file is hashed again only when its size or time changed, so loading a large cached source stays cheap.

    Args:
        folder: the cache folder of one source.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / MANIFEST
        self._entries: dict[str, dict] = {}
        if self.path.is_file():
            try:
                self._entries = json.loads(self.path.read_text())
            except ValueError as error:
                raise DataError(
                    f"{self.path} is not valid JSON: delete it, the files are then checked anew"
                ) from error

    def verify(self, path: Path, expected: str | None) -> None:
        """Check `path` against the pinned checksum, or against the one recorded when it was first seen.

        Raises:
            ChecksumError: the bytes changed since, or are not the pinned ones.
        """
        name, stat = path.relative_to(self.folder).as_posix(), path.stat()
        entry = self._entries.get(name)
        if entry and (entry["size"], entry["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            if expected is None or entry["pinned"] == expected:
                return
        elif entry:
            check_digest(path, expected or f"sha256:{entry['sha256']}")
        check_digest(path, expected)
        self._entries[name] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": file_digest(path),
            "pinned": expected,
        }
        atomic_write_json(self.path, self._entries)
