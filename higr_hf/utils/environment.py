"""What a figure was measured on: versions, machine and commit, without anything that names a person or a host."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "higr_hf",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "trl",
    "evaluate",
    "safetensors",
    "numpy",
)


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by package name, Python's own included; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    import torch  # here: reading versions alone should not cost the import

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def machine_name() -> str:
    """One line for a result row, for example `"2 x Intel(R) Xeon(R) Processor, 1 thread"`."""
    threads = _threads()
    parts = [f"{_usable_cores()} x {cpu_model()}", f"{threads} thread{'s' if threads != 1 else ''}"]
    return ", ".join(parts + _gpus())


def git_commit() -> str | None:
    """The commit this package runs from, `+dirty` behind it when tracked files differ; None outside its repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, whose commit says nothing about this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}+dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def environment_info() -> dict[str, Any]:
    """Versions, machine and commit as one JSON-able dictionary.

    Returns:
        `versions` (name -> version), `machine` (one line), `cpu`, `cores` (usable by this process), `threads` (of
        torch), `gpus` (names), `platform`, `commit` (or None).
    """
    return {
        "versions": package_versions(),
        "machine": machine_name(),
        "cpu": cpu_model(),
        "cores": _usable_cores(),
        "threads": _threads(),
        "gpus": _gpus(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": git_commit(),
    }
