"""What a file's content adds up to, and the list of it beside a checkpoint: a flipped bit is found, not loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
_CHUNK = 1 << 20


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_sums(directory: str | os.PathLike, names: Sequence[str]) -> Path:
    """Write `SHA256SUMS` over files of a directory, as `sha256sum -c` reads it.

    Example:
        >>> folder = Path("runs/summed")
        >>> folder.mkdir(parents=True)
        >>> (folder / "model.safetensors").write_bytes(b"weights")
        >>> write_sums(folder, ["model.safetensors"]).name
        'SHA256SUMS'
        >>> check_sums(folder)
    """
    folder = Path(directory)
    target = folder / SUMS_FILE
    target.write_text("".join(f"{file_digest(folder / name)}  {name}\n" for name in sorted(names)), encoding="ascii")
    return target


def check_sums(directory: str | os.PathLike) -> None:
    """Hold the files of a directory against its `SHA256SUMS`; a directory without one passes.

    Files that are gone are passed over: only whoever loads them knows which are needed.

    Raises:
        ValueError: for a file that is not what the list says, or a line that names none beside it.
    """
    folder = Path(directory)
    path = folder / SUMS_FILE
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        expected, _, name = line.partition("  ")
        if len(expected) != 64 or Path(name).name != name or not name:
            raise ValueError(f"{path}, line {number} is no checksum of a file beside it: save or download it again.")
        if (folder / name).is_file() and file_digest(folder / name) != expected:
            raise ValueError(
                f"{folder / name} is not the file that was saved: its content does not match {path.name}. Save or "
                f"download it again; if it was changed on purpose, remove {path}."
            )
