"""A source's file from the first of several places that can give it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from .checksums import ChecksumError, Manifest
from .fetch import DownloadError

logger = logging.getLogger(__name__)

Place = tuple[str, str, "str | None", Callable[[Path], object]]


def first_available(folder: Path, places: Sequence[Place]) -> tuple[str, Path]:
    """The file of the first place that is cached already or can be downloaded.

    Args:
        folder: cache folder of the source.
        places: `(name, file name, checksum or None, fetch)` in order of preference; `fetch(path)` puts the file there.

    Returns:
        The place's name and the file, verified.

    Raises:
        DownloadError: no place could give its file.
        ChecksumError: a cached file was changed after it was found good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # the processes of a distributed run share one download
        manifest = Manifest(folder)
        for name, filename, checksum, _ in places:
            path = folder / filename
            if path.is_file():
                try:
                    manifest.verify(path, checksum)
                except ChecksumError as error:
                    raise ChecksumError(f"{error}. Delete {path} to fetch it again") from error
                return name, path
        failures = []
        for name, filename, checksum, fetch in places:
            path = folder / filename
            try:
                fetch(path)
            except (DownloadError, ChecksumError) as error:
                failures.append(f"{name}: {error}")
                logger.warning("%s is out of reach (%s)", name, error)
                continue
            manifest.verify(path, checksum)
            logger.info("%s read from %s", filename, name)
            return name, path
    raise DownloadError(
        "no place could give the data.\n  "
        + "\n  ".join(failures)
        + "\nGet it by hand and pass local_path=..., or try again with a network"
    )
