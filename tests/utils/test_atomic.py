"""A failed or killed write leaves the old content, and nothing that could be taken for the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from higr_hf.utils import atomic, atomic_directory, atomic_write_json, atomic_write_text, recover_directory


def names(path):
    return sorted(os.listdir(path))


def test_text_and_json_are_written_and_replaced(tmp_path):
    file = tmp_path / "new" / "file.txt"
    atomic_write_text(file, "één\r\n")
    atomic_write_text(file, "twee\n")
    assert file.read_bytes() == b"twee\n" and names(file.parent) == ["file.txt"]
    atomic_write_json(tmp_path / "a.json", {"é": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'


def test_what_is_no_json_is_refused_before_the_file_is_touched(tmp_path):
    atomic_write_json(tmp_path / "a.json", [1])
    for content in (float("nan"), object()):
        with pytest.raises(ValueError, match=r"a.json: the content cannot be written as JSON"):
            atomic_write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, step):
    file = atomic_write_text(tmp_path / "file", "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(file, "new")
    assert file.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "run"
    for content in ("one", "two"):
        with atomic_directory(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
            assert names(target / "sub") == ["one"] if content == "two" else not target.exists()
    assert names(target / "sub") == ["two"] and names(tmp_path) == ["run"]


def test_a_failure_in_the_body_keeps_the_old_directory(tmp_path):
    target = tmp_path / "run"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old" and names(tmp_path) == ["run"]


def test_a_failed_rename_puts_the_old_directory_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("old")
    rename = os.rename

    def refuse(source, destination):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(atomic.os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), atomic_directory(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old" and names(tmp_path) == ["run"]


def test_a_directory_lost_between_the_renames_comes_back(tmp_path):
    (tmp_path / ".run.1234.previous").mkdir()
    (tmp_path / ".run.1234.previous" / "a").write_text("old")
    assert recover_directory(tmp_path / "run") and not recover_directory(tmp_path / "run")
    assert (tmp_path / "run" / "a").read_text() == "old"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="run is a file"), atomic_directory(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_process_leaves_the_old_directory(tmp_path):
    script = (
        "import os, sys\nfrom higr_hf.utils.atomic import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as f:\n    (f / 'a').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    with atomic_directory(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "a").read_text() == "old"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["run"]
