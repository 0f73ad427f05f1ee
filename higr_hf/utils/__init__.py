"""Tools that every stage shares: writing without half-written files, and saying what a number was measured on."""

from __future__ import annotations

from .allocator import keep_freed_memory
from .atomic import atomic_directory, atomic_write_bytes, atomic_write_json, atomic_write_text, recover_directory
from .digests import SUMS_FILE, check_sums, file_digest, write_sums
from .environment import environment_info, machine_name, package_versions

__all__ = [
    "SUMS_FILE",
    "atomic_directory",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "check_sums",
    "environment_info",
    "file_digest",
    "keep_freed_memory",
    "machine_name",
    "package_versions",
    "recover_directory",
    "write_sums",
]
