"""Downloads over a loopback server: resumed, checked, and never half there."""

from __future__ import annotations

import hashlib

import pytest

from higr_hf.data.sources.checksums import ChecksumError, Manifest
from higr_hf.data.sources.fetch import DownloadError, download
from higr_hf.data.sources.places import first_available

from .http_server import serve

BODY = bytes(range(256)) * 40
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def server():
    with serve() as state:
        state.files["/data.zip"] = BODY
        yield state


def fetch(server, path, **options):
    return download(f"{server.url}/data.zip", path, checksum=SHA256, timeout=5, **options)


def leftovers(folder):
    return sorted(child.name for child in folder.iterdir())


def test_download(server, tmp_path):
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY
    assert leftovers(tmp_path) == ["data.zip"]


def test_a_broken_connection_is_continued_where_it_stopped(server, tmp_path):
    server.break_after = [1000, 500]
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-", "bytes=1500-"]


def test_a_later_call_continues_and_nothing_half_written_has_the_final_name(server, tmp_path):
    path = tmp_path / "data.zip"
    server.break_after = [1000]
    with pytest.raises(DownloadError, match=r"1000 of 10240 bytes.*run again to continue"):
        fetch(server, path, attempts=1)
    assert not path.exists()
    assert fetch(server, path).read_bytes() == BODY
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_changed_file_is_not_glued_to_an_old_part(server, tmp_path):
    path = tmp_path / "data.zip"
    server.files["/data.zip"], server.etag, server.break_after = b"x" * 5000, '"old"', [1000]
    with pytest.raises(DownloadError):
        fetch(server, path, attempts=1)
    server.files["/data.zip"], server.etag = BODY, '"new"'
    assert fetch(server, path).read_bytes() == BODY


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_or_ranges_the_file_is_fetched_anew(server, tmp_path, etag):
    server.etag, server.break_after = etag, [1000]
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, None]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges, server.break_after = False, [1000]
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY


def test_a_complete_part_that_was_never_renamed_is_used(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(BODY)
    (tmp_path / "data.zip.part.version").write_text('"v1"')
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY
    assert leftovers(tmp_path) == ["data.zip"]


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(BODY + b"tail")
    (tmp_path / "data.zip.part.version").write_text('"v1"')
    assert fetch(server, tmp_path / "data.zip").read_bytes() == BODY


def test_a_corrupt_file_is_refused_and_not_kept(server, tmp_path):
    server.files["/data.zip"] = BODY[:-1] + b"!"
    with pytest.raises(ChecksumError, match=r"data\.zip: sha256 is .* expected"):
        fetch(server, tmp_path / "data.zip")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_tried_again(server, tmp_path, status):
    server.statuses["/data.zip"] = status
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        fetch(server, tmp_path / "data.zip")
    assert len(server.requests) == 1


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.statuses["/data.zip"] = 503
    with pytest.raises(DownloadError, match="503"):
        fetch(server, tmp_path / "data.zip", attempts=2)
    assert len(server.requests) == 2


def test_a_larger_file_than_expected_is_refused_before_it_fills_the_disk(server, tmp_path):
    with pytest.raises(DownloadError, match="more than the 100"):
        fetch(server, tmp_path / "data.zip", max_bytes=100)
    assert not (tmp_path / "data.zip").exists()


def test_an_unreachable_site_fails_over_to_the_next_place_and_says_so(server, tmp_path, caplog):
    places = [
        ("gone.invalid", "a.zip", None, lambda path: download("http://127.0.0.1:9/a.zip", path)),
        ("mirror", "data.zip", SHA256, lambda path: fetch(server, path)),
    ]
    name, path = first_available(tmp_path / "cache", places)
    assert (name, path.read_bytes()) == ("mirror", BODY)
    assert "gone.invalid is out of reach" in caplog.text
    first_available(tmp_path / "cache", places)
    assert len(server.requests) == 1, "the second load reads the cache"
    with pytest.raises(DownloadError, match=r"(?s)no place could give.*gone\.invalid.*local_path"):
        first_available(tmp_path / "empty", places[:1])


def test_a_cached_file_that_was_damaged_is_refused(server, tmp_path):
    places = [("site", "data.zip", checksum, lambda path: fetch(server, path)) for checksum in (SHA256, None)]
    for place in places:  # pinned, then recorded at the first download
        folder = tmp_path / str(place[2])[:3]
        _, path = first_available(folder, [place])
        path.write_bytes(BODY[:100])
        with pytest.raises(ChecksumError, match=r"Delete .*data\.zip to fetch it again"):
            first_available(folder, [place])
        path.unlink()
        first_available(folder, [place])


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON: delete it"):
        Manifest(tmp_path)
