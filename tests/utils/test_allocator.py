from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from higr_hf.utils import allocator

PAGES = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("allocator", sys.argv[1])
allocator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocator)
def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * 50_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before, told, _, after = fresh_pages(), allocator.keep_freed_memory(), fresh_pages(), fresh_pages()
print(before, told, after)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again():
    command = [sys.executable, "-c", PAGES, allocator.__file__]  # the setting holds for a whole process
    before, told, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told == "True"
    assert int(before) > 100 > int(after)


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
