"""Files from the Python index that pip is configured with, against a loopback index."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile

import pytest

from higr_hf.data.sources import python_index
from higr_hf.data.sources.checksums import ChecksumError
from higr_hf.data.sources.fetch import DownloadError
from higr_hf.data.sources.python_index import fetch_distribution, index_urls

from .http_server import serve

BODY = b"a source package"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
NAME = "some_pkg-1.0.tar.gz"


@pytest.fixture
def index(monkeypatch):
    with serve() as server:
        server.files[f"/files/{NAME}"] = BODY
        server.kinds["/simple/some-pkg/"] = "text/html"
        server.files["/simple/some-pkg/"] = f'<a href="../../files/{NAME}#sha256=0">{NAME}</a>'.encode()
        configure(monkeypatch, f"global.index-url='{server.url}/simple'")
        yield server


def configure(monkeypatch, *lines):
    monkeypatch.setattr(python_index, "_pip", lambda *arguments: "\n".join(lines))


def fetch(path):
    return fetch_distribution("Some_Pkg", "1.0", NAME, path, checksum=SHA256)


def test_a_source_package_is_found_on_an_html_page(index, tmp_path):
    assert fetch(tmp_path / "package").read_bytes() == BODY
    assert [path for path, _ in index.requests] == ["/simple/some-pkg/", f"/files/{NAME}"]


def test_a_source_package_is_found_on_a_json_page(index, tmp_path):
    page = {"files": [{"filename": NAME, "url": f"{index.url}/files/{NAME}"}]}
    index.files["/simple/some-pkg/"] = json.dumps(page).encode()
    index.kinds["/simple/some-pkg/"] = "application/vnd.pypi.simple.v1+json"
    assert fetch(tmp_path / "package").read_bytes() == BODY


def test_another_file_than_the_pinned_one_is_refused(index, tmp_path):
    index.files[f"/files/{NAME}"] = b"something else"
    with pytest.raises(ChecksumError, match="not the pinned one"):
        fetch(tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_the_next_index_is_asked_and_all_are_named(index, monkeypatch, tmp_path):
    configure(monkeypatch, f"global.index-url='{index.url}/empty'", f":env:.extra-index-url='{index.url}/simple'")
    assert fetch(tmp_path / "package").read_bytes() == BODY
    configure(monkeypatch, f"global.index-url='{index.url}/empty'", f":env:.extra-index-url='{index.url}/none'")
    with pytest.raises(DownloadError, match=rf"{NAME} is on no configured Python index: .*/empty/.*/none/"):
        fetch(tmp_path / "other")


def test_credentials_of_the_index_are_sent_but_never_shown(index, monkeypatch, tmp_path):
    address = index.url.replace("http://", "http://user:se%40cret@")
    configure(monkeypatch, f"global.index-url='{address}/simple'")
    fetch(tmp_path / "package")
    expected = "Basic " + base64.b64encode(b"user:se@cret").decode()
    assert [headers["Authorization"] for headers in index.headers] == [expected] * 2
    configure(monkeypatch, f"global.index-url='{address}/empty'")
    with pytest.raises(DownloadError) as error:
        fetch(tmp_path / "other")
    assert "cret" not in str(error.value)


def test_the_order_of_settings_and_pips_own_default(monkeypatch):
    configure(monkeypatch, "global.index-url='http://a'", ":env:.index-url='http://b'", "install.index-url='http://c'")
    assert index_urls(python_index._pip_config()) == ["http://b"]
    configure(monkeypatch, "  -i, --index-url <url>  Base URL (default http://d/simple). More.")
    assert index_urls({"extra-index-url": "http://e"}) == ["http://d/simple", "http://e"]
    assert index_urls({"no-index": "true"}) == []


def test_pip_itself_states_a_default():
    (default,) = index_urls({})
    assert default.startswith("https://") and default.endswith("/simple")


def test_a_wheel_is_fetched_by_pip(monkeypatch, tmp_path):
    name = "some_pkg-1.0-py3-none-any.whl"
    wheel = tmp_path / "links" / name
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_pkg/data", b"rows")
        archive.writestr("some_pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-pkg\nVersion: 1.0\n")
        archive.writestr(
            "some_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_pkg-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = fetch_distribution("some-pkg", "1.0", name, tmp_path / name, checksum=f"sha256:{digest}")
    assert path.read_bytes() == wheel.read_bytes()
    with pytest.raises(ChecksumError):
        fetch_distribution("some-pkg", "1.0", name, tmp_path / "other", checksum=f"sha256:{'0' * 64}")
    with pytest.raises(DownloadError, match="pip download failed"):
        fetch_distribution("some-pkg", "2.0", name, tmp_path / "other", checksum=SHA256)
