"""Tools that every stage shares: writing without half-written files, and saying what a number was measured on."""

from __future__ import annotations

from .atomic import atomic_directory, atomic_write_bytes, atomic_write_json, atomic_write_text, recover_directory
from .environment import environment_info, machine_name, package_versions

__all__ = [
    "atomic_directory",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "environment_info",
    "machine_name",
    "package_versions",
    "recover_directory",
]
