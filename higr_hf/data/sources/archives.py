"""Single members read out of zip and tar archives.

Nothing is ever unpacked wholesale: a member is asked for by its exact name and its bytes go to the caller, so that
a hostile archive can neither choose where anything is written nor fill the disk.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import DataError


@contextmanager
def open_member(archive: Path | bytes, member: str, *, max_bytes: int) -> Iterator[IO[bytes]]:
    """Open one regular file of a zip or (compressed) tar archive for reading.

    Args:
        archive: the archive's path, or its bytes (an archive inside another one).
        member: exact name inside the archive.
        max_bytes: largest size the member may announce.

    Raises:
        DataError: not an archive, truncated, no such member, not a regular file, or too large.
    """
    name = "the inner archive" if isinstance(archive, bytes) else str(archive)
    handle: IO[bytes] = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    try:
        with handle:
            if zipfile.is_zipfile(handle):
                handle.seek(0)
                with zipfile.ZipFile(handle) as opened:
                    _check_size(opened.getinfo(member).file_size, max_bytes, name, member)
                    with opened.open(member) as content:
                        yield content
            else:
                handle.seek(0)
                with tarfile.open(fileobj=handle, mode="r:*") as opened:
                    entry = opened.getmember(member)
                    if not entry.isfile():
                        raise DataError(f"{name}: {member} is not a regular file")
                    _check_size(entry.size, max_bytes, name, member)
                    with opened.extractfile(entry) as content:
                        yield content
    except KeyError as error:
        raise DataError(f"{name} has no member {member}") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{name} is not a readable zip or tar archive ({error}): delete it and load again") from error


def read_member(archive: Path | bytes, member: str, *, max_bytes: int = 1 << 28) -> bytes:
    """The bytes of one archive member."""
    with open_member(archive, member, max_bytes=max_bytes) as content:
        data = content.read(max_bytes + 1)
    _check_size(len(data), max_bytes, "the archive", member)
    return data


def _check_size(size: int, max_bytes: int, archive: str, member: str) -> None:
    if size > max_bytes:
        raise DataError(f"{archive}: {member} holds {size} bytes, more than the {max_bytes} expected at most")
