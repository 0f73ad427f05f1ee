"""Writes that happen as a whole or not at all, also when the disk is full or the process is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
PREVIOUS = ".previous"


def _fsync_directory(path: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden_sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{kind}")


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file so that a reader sees the old content or the new one, never a part of it.

    Args:
        path: the file; its directory is made when it does not exist.
        data: the whole content.

    Raises:
        OSError: when the write fails (full disk, no permission); the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _hidden_sibling(path, PARTIAL)
    try:
        with open(staging, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)
    return path


def atomic_write_text(path: str | os.PathLike, text: str) -> Path:
    """[`atomic_write_bytes`] of UTF-8 text, line ends as they are."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike, content: Any, *, indent: int | None = 2) -> Path:
    """[`atomic_write_bytes`] of JSON; NaN and infinity, which are no JSON, raise a `ValueError`."""
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the content cannot be written as JSON: {error}") from error
    return atomic_write_text(path, text + "\n")


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        _fsync_directory(Path(folder))


def recover_directory(path: str | os.PathLike) -> bool:
    """Bring back a directory whose replacement was killed between its two renames.

    Returns:
        True if `path` was missing and its previous version was found and put back.
    """
    path = Path(path)
    if path.exists() or not path.parent.is_dir():
        return False
    left_over = sorted(path.parent.glob(f".{path.name}.*{PREVIOUS}"), key=os.path.getmtime)
    if not left_over:
        return False
    os.rename(left_over[-1], path)
    return True


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Write a whole directory in place of `path`, which appears only when it is complete.

    The body writes into a hidden sibling. If it raises, the sibling is deleted and `path` stays as it was; if the
    process is killed, a `.partial` sibling is left that nobody takes for the result. A directory that stood at `path`
    is replaced as a whole, not merged; a kill between the two renames leaves it as a `.previous` sibling, which the
    next call (or [`recover_directory`]) puts back.

    Raises:
        OSError: when writing fails; `path` is as it was.
        NotADirectoryError: when `path` is a file.

    Example:
        >>> with atomic_directory("runs/model") as folder:
        ...     model.save_pretrained(folder)
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: choose another place for the directory, or remove the file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    staging = _hidden_sibling(path, PARTIAL)
    staging.mkdir()
    try:
        yield staging
        _fsync_tree(staging)
        previous = _hidden_sibling(path, PREVIOUS)
        if path.exists():
            os.rename(path, previous)
        try:
            os.rename(staging, path)
        except BaseException:
            if previous.exists():
                os.rename(previous, path)
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _fsync_directory(path.parent)
    shutil.rmtree(previous, ignore_errors=True)
