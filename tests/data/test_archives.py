"""Archives: one named member at a time, of a stated size, to memory only."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from higr_hf.data import DataError
from higr_hf.data.sources.archives import read_member


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path, *entries):
    with tarfile.open(path, "w:gz") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return path


def entry(name, size, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def test_members_of_zip_tar_and_nested_archives(tmp_path):
    inner = zip_of(tmp_path / "inner.zip", table=b"content")
    assert read_member(inner, "table") == b"content"
    data = inner.read_bytes()
    outer = tar_of(tmp_path / "outer.tar.gz", (entry("pkg/inner.zip", len(data)), data))
    assert read_member(read_member(outer, "pkg/inner.zip"), "table") == b"content"


def test_a_path_that_escapes_writes_nothing(tmp_path):
    archive = zip_of(tmp_path / "a.zip", **{"../../escaped": b"x", "good": b"y"})
    assert read_member(archive, "good") == b"y"
    assert [child.name for child in tmp_path.iterdir()] == ["a.zip"]
    assert not (tmp_path.parent.parent / "escaped").exists()


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        archive = tar_of(tmp_path / "a.tar.gz", (entry("table", 0, kind, str(tmp_path / "secret")), b""))
        with pytest.raises(DataError, match="table is not a regular file"):
            read_member(archive, "table")


def test_a_member_larger_than_stated_is_refused(tmp_path):
    archive = zip_of(tmp_path / "bomb.zip", table=bytes(1_000_000))
    with pytest.raises(DataError, match="table holds 1000000 bytes, more than the 1000"):
        read_member(archive, "table", max_bytes=1000)
    packed = tar_of(tmp_path / "bomb.tar.gz", (entry("table", 5000), bytes(5000)))
    with pytest.raises(DataError, match="5000 bytes"):
        read_member(packed, "table", max_bytes=1000)


@pytest.mark.parametrize("size", [0, 10, 60, -10])
def test_truncated_archives_are_named(tmp_path, size):
    archive = zip_of(tmp_path / "a.zip", table=b"content" * 20)
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.zip is not a readable"):
        read_member(archive, "table")


def test_a_truncated_tar_is_named(tmp_path):
    content = bytes(range(256)) * 400
    archive = tar_of(tmp_path / "a.tar.gz", (entry("table", len(content)), content))
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.tar\.gz is not a readable"):
        read_member(archive, "table")


def test_a_missing_member_is_named(tmp_path):
    with pytest.raises(DataError, match="has no member other"):
        read_member(zip_of(tmp_path / "a.zip", table=b""), "other")
