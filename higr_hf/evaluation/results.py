"""Measured results: one JSON-lines file a study, one row a measurement, appended by the command that measures."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils import atomic_write_text, environment_info

STUDIES = (
    "tokenizers", "benchmark", "alignment", "speed", "speed-growth", "speed-cuda", "speed-growth-cuda",
    "time-to-quality", "pareto", "serving", "scale", "faults", "ab_test",
)  # fmt: skip
SYSTEMS = ("higr", "onerec", "tiger", "hstu", "bert4rec", "sasrec", "listcvae", "item-item", "ease", "popularity")
# field -> accepted types; bool is an int to Python and is refused separately
FIELDS: dict[str, tuple[type, ...]] = {
    "study": (str,),
    "dataset": (str,),
    "system": (str,),
    "variant": (str,),
    "seed": (int,),
    "metrics": (dict,),
    "n_users": (int, type(None)),
    "seconds": (int, float),
    "command": (str,),
    "commit": (str, type(None)),
    "machine": (str,),
    "versions": (dict,),
}
_METRIC = re.compile(r"[a-z][a-z0-9_]*(@\d+)?")

Row = dict[str, Any]


def current_command() -> str:
    """The command line of this process, as a person would type it in the repository's root."""
    arguments = list(getattr(sys, "orig_argv", sys.argv))
    if arguments:
        arguments[0] = Path(arguments[0]).name  # `python`, not where this machine keeps it
    return shlex.join(arguments)


def make_row(
    *,
    study: str,
    dataset: str,
    system: str,
    metrics: Mapping[str, float],
    seed: int,
    seconds: float,
    n_users: int | None = None,
    variant: str = "none",
    command: str | None = None,
    machine: str | None = None,
) -> Row:
    """A row with commit, machine and versions of this process filled in.

    Metrics that are NaN (no user counted) are left out.

    Args:
        study: one of `STUDIES`; the file it goes to.
        dataset: the source's name.
        system: one of `SYSTEMS`.
        metrics: metric name -> value.
        seed: of the run.
        seconds: what the measured step took.
        n_users: evaluated users; None where users have no part (tokenizers, speed).
        variant: the rest that tells rows apart, such as `orpo` or `plan-once`.
        command: this process's command line by default.
        machine: that the seconds were taken on, as `machine_name` says it there; this one by default.
    """
    environment = environment_info()
    row = {
        "study": study,
        "dataset": dataset,
        "system": system,
        "variant": variant,
        "seed": int(seed),
        "metrics": {name: float(value) for name, value in metrics.items() if not math.isnan(value)},
        "n_users": None if n_users is None else int(n_users),
        "seconds": round(float(seconds), 3),
        "command": current_command() if command is None else command,
        "commit": environment["commit"],
        "machine": environment["machine"] if machine is None else machine,
        "versions": environment["versions"],
    }
    return validate_row(row)


def validate_row(row: Any, where: str = "row") -> Row:
    """Return the row, or raise a `ValueError` that names the field."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}.")
    if row.keys() != FIELDS.keys():
        missing, extra = sorted(FIELDS.keys() - row.keys()), sorted(row.keys() - FIELDS.keys())
        raise ValueError(f"{where}: fields missing {missing}, unknown {extra}.")
    for field, types in FIELDS.items():
        if not isinstance(row[field], types) or isinstance(row[field], bool):
            raise ValueError(f"{where}: {field} is {row[field]!r}, expected {' or '.join(t.__name__ for t in types)}.")
    for field, known in (("study", STUDIES), ("system", SYSTEMS)):
        if row[field] not in known:
            raise ValueError(f"{where}: {field} is {row[field]!r}, expected one of {', '.join(known)}.")
    if not row["metrics"]:
        raise ValueError(f"{where}: metrics is empty.")
    for name, value in row["metrics"].items():
        if not isinstance(name, str) or not _METRIC.fullmatch(name):
            raise ValueError(f"{where}: {name!r} is no metric name (lower case, like `ndcg@5` or `view_hit@5`).")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}: metric {name} is {value!r}, expected a finite number.")
    if not math.isfinite(row["seconds"]) or row["seconds"] < 0 or (row["n_users"] or 0) < 0:
        raise ValueError(f"{where}: seconds and n_users must not be negative.")
    return row


def read_rows(path: str | os.PathLike) -> list[Row]:
    """All rows of a study's file; none when it does not exist.

    Raises:
        ValueError: naming file and line, for a line that is cut or a row that does not hold.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(validate_row(json.loads(line), where=f"{path}:{number}"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error}): remove or repair the line.") from error
    return rows


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two commands that append at the same time must not lose each other's rows."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows; the write itself is atomic there too
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def append_rows(rows: Iterable[Row], directory: str | os.PathLike = "results") -> list[Path]:
    """Append rows to `<directory>/<study>.jsonl`; every row is checked before any file is touched.

    Returns:
        The files that grew. A failed write leaves a file as it was.
    """
    by_study: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        by_study.setdefault(validate_row(row, where=f"row {number}")["study"], []).append(row)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with _locked(folder):
        for study, new in by_study.items():
            path = folder / f"{study}.jsonl"
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in (*read_rows(path), *new)]
            written.append(atomic_write_text(path, "\n".join(lines) + "\n"))
    return written
