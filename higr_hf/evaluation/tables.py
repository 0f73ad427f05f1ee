"""Markdown tables rendered from result rows, and the check that a document's tables are what the rows say.

A document marks a table's place with two comments:

    <!-- table:movielens-1m -->
    <!-- /table -->

and `results/tables.yaml` says what stands there:

    movielens-1m:
      study: benchmark
      where: {dataset: movielens-1m}
      by: [system, variant]
      metrics: [hit@5, recall@5, ndcg@5]
      sort: ndcg@5

`python -m higr_hf.evaluation.tables render README.md` fills the tables in; with `check` it fails when one differs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..utils import atomic_write_text
from .results import FIELDS, STUDIES, Row, read_rows

_MARK = re.compile(r"(?P<open><!-- table:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(?P<close><!-- /table -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- table:([\w.-]+) -->")
_LOWER_IS_BETTER = ("duplicates", "negative_share", "held_out_negative_share", "collision", "seconds")


@dataclass(frozen=True)
class TableSpec:
    """What a table shows.

    Attributes:
        study: whose rows.
        metrics: columns.
        where: field -> the value, or list of values, that rows must have.
        by: fields that name a line; rows that agree in them are averaged over seeds, mean ± sample standard deviation.
            Of rows with the same dataset, system, variant and seed the last one counts.
        sort: metric to order lines by, best first; by default they come in the order of the file.
        ascending: order the smallest first.
        digits: decimals, or metric -> its decimals (four where it is not named).
        bold: mark the best mean of every column (the smallest for `lower_is_better`).
        lower_is_better: metrics that are better when small.
    """

    study: str
    metrics: tuple[str, ...]
    where: Mapping[str, Any] | None = None
    by: tuple[str, ...] = ("system", "variant")
    sort: str | None = None
    ascending: bool = False
    digits: int | Mapping[str, int] = 4
    bold: bool = True
    lower_is_better: tuple[str, ...] = _LOWER_IS_BETTER

    def __post_init__(self) -> None:
        for name in ("metrics", "by", "lower_is_better"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.study not in STUDIES:
            raise ValueError(f"study is {self.study!r}, expected one of {', '.join(STUDIES)}.")
        unknown = [field for field in (*self.by, *(self.where or {})) if field not in FIELDS]
        if unknown or not self.metrics:
            raise ValueError(f"unknown fields {unknown}." if unknown else "metrics is empty.")
        if self.sort is not None and self.sort not in self.metrics:
            raise ValueError(f"sort is {self.sort!r}, which is not among the metrics.")


def load_specs(path: str | os.PathLike) -> dict[str, TableSpec]:
    """Table name -> specification, from a YAML file; a `ValueError` names a table that is wrong."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of table names.")
    known = {field.name for field in fields(TableSpec)}
    specs = {}
    for name, options in content.items():
        try:
            extra = sorted(set(options) - known)
            if extra:
                raise ValueError(f"unknown options {extra}; there are {sorted(known)}.")
            specs[name] = TableSpec(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: table {name!r}: {error}") from error
    return specs


def _matches(row: Row, where: Mapping[str, Any] | None) -> bool:
    wanted = (where or {}).items()
    return all(row[field] in value if isinstance(value, list) else row[field] == value for field, value in wanted)


def render_table(rows: list[Row], spec: TableSpec) -> str:
    """The table as Markdown, ending in a line break; `No rows yet.` where nothing matches.

    Example:
        >>> print(render_table(read_rows("results/benchmark.jsonl"), TableSpec("benchmark", ("ndcg@5",))))
    """
    # Measured again: the later row of one run stands for it, and a seed is never counted twice.
    latest: dict[tuple, Row] = {}
    for row in rows:
        if row["study"] == spec.study and _matches(row, spec.where):
            latest[tuple(row[field] for field in ("dataset", "system", "variant", "seed"))] = row
    groups: dict[tuple, list[Row]] = {}
    for row in latest.values():
        groups.setdefault(tuple(str(row[field]) for field in spec.by), []).append(row)
    if not groups:
        return "No rows yet.\n"
    lines = []
    for label, members in groups.items():
        columns = [[row["metrics"][m] for row in members if m in row["metrics"]] for m in spec.metrics]
        lines.append((label, columns, len({row["seed"] for row in members})))
    means = np.array([[np.mean(values) if values else np.nan for values in columns] for _, columns, _ in lines])
    order = list(range(len(lines)))
    if spec.sort is not None:
        key = means[:, spec.metrics.index(spec.sort)]
        missing_last = np.where(np.isnan(key), np.inf, key if spec.ascending else -key)
        order.sort(key=lambda line: missing_last[line])
    best = [_best(means[:, i], metric in spec.lower_is_better) for i, metric in enumerate(spec.metrics)]

    digits = [spec.digits if isinstance(spec.digits, int) else spec.digits.get(m, 4) for m in spec.metrics]
    header = [*spec.by, *spec.metrics, "seeds"]
    table = [header, ["---"] * len(spec.by) + ["---:"] * (len(spec.metrics) + 1)]
    for line in order:
        label, columns, seeds = lines[line]
        cells = [
            _cell(values, digits[i], bold=spec.bold and len(lines) > 1 and means[line, i] == best[i])
            for i, values in enumerate(columns)
        ]
        table.append([*(text.replace("|", "\\|") for text in label), *cells, str(seeds)])
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def _best(means: np.ndarray, lower: bool) -> float:
    known = means[~np.isnan(means)]
    return float(known.min() if lower else known.max()) if known.size else float("nan")


def _cell(values: list[float], digits: int, bold: bool) -> str:
    if not values:
        return "–"
    text = f"{np.mean(values):.{digits}f}"
    text = f"**{text}**" if bold else text
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def render_document(text: str, specs: Mapping[str, TableSpec], results: str | os.PathLike, where: str = "text") -> str:
    """The text with every marked table rendered again.

    Raises:
        ValueError: for a table that no specification names, or an opening mark without its `<!-- /table -->`.
    """
    rows: dict[str, list[Row]] = {}

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in specs:
            raise ValueError(f"{where}: table {name!r} has no specification; there are {sorted(specs)}.")
        if _OPENING.search(match["body"]):
            raise ValueError(f"{where}: table {name!r} is not closed by <!-- /table -->.")
        study = specs[name].study
        if study not in rows:
            rows[study] = read_rows(Path(results) / f"{study}.jsonl")
        return f"{match['open']}{render_table(rows[study], specs[name])}{match['close']}"

    rendered = _MARK.sub(fill, text)
    opened, closed = len(_OPENING.findall(text)), len(_MARK.findall(text))
    if opened != closed:
        raise ValueError(f"{where}: {opened} tables are opened, {closed} closed by <!-- /table -->.")
    return rendered


def render_file(path: str | os.PathLike, results: str | os.PathLike = "results") -> bool:
    """Fill in a file's tables from `<results>/*.jsonl` and `<results>/tables.yaml`; True if the file changed."""
    text = Path(path).read_text(encoding="utf-8")
    rendered = render_document(text, load_specs(Path(results) / "tables.yaml"), results, where=str(path))
    if rendered != text:
        atomic_write_text(path, rendered)
    return rendered != text


def stale_tables(path: str | os.PathLike, results: str | os.PathLike = "results") -> list[str]:
    """Names of the file's tables that differ from what the rows render; empty when all agree."""
    text = Path(path).read_text(encoding="utf-8")
    rendered = render_document(text, load_specs(Path(results) / "tables.yaml"), results, where=str(path))
    pairs = zip(_MARK.finditer(text), _MARK.finditer(rendered), strict=True)
    return [old["name"] for old, new in pairs if old["body"] != new["body"]]


def main(arguments: list[str] | None = None) -> int:
    """Command line: `render FILE ...` or `check FILE ...`."""
    parser = argparse.ArgumentParser(description="Render result tables into Markdown files, or check them.")
    parser.add_argument("action", choices=("render", "check"))
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--results", default="results", help="directory of the *.jsonl files and tables.yaml")
    options = parser.parse_args(arguments)
    failed = False
    for file in options.files:
        if options.action == "render":
            print(f"{file}: {'rendered' if render_file(file, options.results) else 'unchanged'}")
            continue
        stale = stale_tables(file, options.results)
        failed |= bool(stale)
        print(f"{file}: {'stale: ' + ', '.join(stale) if stale else 'up to date'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
