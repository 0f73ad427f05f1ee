"""Downloads over HTTP: resumed after an interruption, checked, and in place only when whole."""

from __future__ import annotations

import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import DataError
from .checksums import ChecksumError, check_digest

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0  # seconds without a byte; short, so that an unreachable site fails over quickly
MAX_BYTES = 8 << 30
_PIECE = 1 << 18
_USER_AGENT = "higr-hf (dataset download)"


class DownloadError(DataError):
    """A file that no place could give. The message lists every place tried, with its error."""


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    headers: Mapping[str, str] | None = None,
    attempts: int = 3,
    timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
    context: ssl.SSLContext | None = None,
) -> Path:
    """Download `url` to `path`.

    The bytes go to `<path>.part`; an interrupted download continues there with an HTTP range, in the same call or in
    a later one, provided that the server still has the same version of the file (its ETag or date stands in
    `<path>.part.version`). `path` appears in one rename, after the checksum.

    Args:
        url: http(s) address.
        path: destination file.
        checksum: `sha256:...` or `md5:...`.
        headers: further request headers.
        attempts: how often a connection that breaks is taken up again.
        timeout: seconds without a byte before a connection counts as broken.
        max_bytes: a larger file is refused.
        context: TLS settings, where the system's do not serve.

    Raises:
        DownloadError: the server cannot be reached, refuses, or keeps breaking off.
        ChecksumError: the file arrived whole and is not the expected one; nothing of it is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version = Path(f"{path}.part"), Path(f"{path}.part.version")
    for attempt in range(1, attempts + 1):
        try:
            _transfer(url, part, version, headers or {}, timeout, max_bytes, context)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer: the checksum decides, else start over
                if checksum is not None and _matches(part, checksum):
                    break
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from error
            failure: Exception = error
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(f"{url}: {error}") from error
        except urllib.error.URLError as error:
            if not part.exists():  # never connected: another place is a better use of the time than another try
                raise DownloadError(f"{url}: {error.reason}") from error
            failure = error
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            failure = error
        if attempt == attempts:
            raise DownloadError(f"{url}: {failure} ({attempts} attempts; run again to continue)") from failure
        logger.info("%s broke off (%s), continuing", url, failure)
        time.sleep(0.2 * attempt)
    try:
        check_digest(part, checksum, origin=url)
    except ChecksumError:
        part.unlink(missing_ok=True)
        raise
    finally:
        version.unlink(missing_ok=True)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)
    return path


def _matches(path: Path, checksum: str) -> bool:
    try:
        check_digest(path, checksum)
    except (ChecksumError, FileNotFoundError):
        return False
    return True


def _transfer(url, part: Path, version: Path, headers, timeout: float, max_bytes: int, context) -> None:
    """One connection: append to `part` what the server sends; raises when it ends before the announced length."""
    request = urllib.request.Request(
        url, headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
    )
    have = part.stat().st_size if part.exists() else 0
    known = version.read_text() if version.exists() else ""
    if have and known:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)  # another version of the file is then sent whole, from its start
    else:
        have = 0  # a part of an unknown version cannot be continued safely
    with urllib.request.urlopen(request, timeout=timeout, context=context) as response:
        if response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != have:
                part.unlink()
                raise ConnectionError("the server answered with another range than was asked for")
        else:
            have = 0
        announced = response.headers.get("Content-Length")
        total = None if announced is None else have + int(announced)
        if total is not None and total > max_bytes:
            raise DownloadError(f"{url}: {total} bytes are more than the {max_bytes} this source may have")
        etag = response.headers.get("ETag", "")
        # A weak ETag must not be used to continue a file byte for byte.
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        if validator:
            version.write_text(validator)
        else:
            version.unlink(missing_ok=True)
        with (
            part.open("ab" if have else "wb") as target,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False) as bar,
        ):
            while piece := response.read(_PIECE):
                have += len(piece)
                if have > max_bytes:
                    raise DownloadError(f"{url}: more than the {max_bytes} bytes this source may have")
                target.write(piece)
                bar.update(len(piece))
        if total is not None and have < total:
            raise ConnectionError(f"the connection ended after {have} of {total} bytes")
