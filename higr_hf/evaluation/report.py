"""report.json and report.md: what a run gave, on what, how long it took, and how to do it again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils import atomic_write_json, atomic_write_text, environment_info
from .result import EvaluationResult


@dataclass(frozen=True)
class SlateExample:
    """One user's history beside the slate, by title, for people to judge.

    Attributes:
        user_id: whose.
        history: titles, oldest first.
        slate: titles, best first.
        target: titles of the target slate; those the slate hit are marked.
    """

    user_id: str
    history: Sequence[str]
    slate: Sequence[str]
    target: Sequence[str] = ()


@dataclass
class Report:
    """Everything a run wants to say about itself.

    Args:
        title: first line of the Markdown.
        systems: system name -> its evaluation, or just metric -> value; the first is the run's own.
        seed: of the run.
        seconds: stage -> wall-clock seconds, in the order of the stages.
        commands: what to type to do it again.
        settings: anything else that decided the figures (dataset, sizes, recipe), JSON-able.
        plots: caption -> file, relative to the report.
        examples: slates to look at.
        notes: paragraphs to add.

    Example:
        >>> systems = {"higr": result, "popularity": {"ndcg@5": 0.02}}
        >>> report = Report("Quickstart", systems, seed=0, seconds={"train": 80})
        >>> print(report.metrics_table())
        >>> report.save("runs/quickstart")
    """

    title: str
    systems: Mapping[str, EvaluationResult | Mapping[str, float]]
    seed: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    commands: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[SlateExample] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("A report needs the metrics of at least one system.")
        self.environment = environment_info()

    def _metrics(self, system: str) -> Mapping[str, float]:
        value = self.systems[system]
        return value.metrics if isinstance(value, EvaluationResult) else value

    def _names(self) -> list[str]:
        """Every metric once, in the order they first come."""
        return list(dict.fromkeys(name for system in self.systems for name in self._metrics(system)))

    def metrics_table(self, digits: int = 4) -> str:
        """Systems against metrics as a Markdown table, columns aligned for reading in a terminal too."""
        rows = [["metric", *self.systems]]
        for name in self._names():
            values = (self._metrics(system).get(name, math.nan) for system in self.systems)
            rows.append([name, *("–" if math.isnan(value) else f"{value:.{digits}f}" for value in values)])
        return _markdown_table(rows)

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json; a metric that exists for no user is null."""
        systems = {}
        for name, value in self.systems.items():
            entry: dict[str, Any] = {"metrics": _without_nan(self._metrics(name))}
            if isinstance(value, EvaluationResult):
                entry["intervals"] = {
                    metric: None if any(map(math.isnan, bounds)) else list(bounds)
                    for metric, bounds in value.intervals.items()
                }
                entry |= {"counts": value.counts, "timings": value.timings, "primary_metric": value.primary_metric}
            systems[name] = entry
        return {
            "title": self.title,
            "systems": systems,
            "seed": self.seed,
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "commands": list(self.commands),
            "settings": dict(self.settings),
            "plots": dict(self.plots),
            "examples": [
                {
                    "user_id": example.user_id,
                    "history": list(example.history),
                    "slate": list(example.slate),
                    "target": list(example.target),
                }
                for example in self.examples
            ],
            "notes": list(self.notes),
            **self.environment,
        }

    def to_markdown(self) -> str:
        """The content of report.md."""
        parts = [f"# {self.title}", *self.notes, "## Metrics", self.metrics_table() + self._intervals()]
        parts += [f"![{caption}]({file})" for caption, file in self.plots.items()]
        if self.examples:
            parts += ["## Slates", *(_example(example) for example in self.examples)]
        if self.seconds:
            rows = [["stage", "seconds"], *([stage, f"{value:.1f}"] for stage, value in self.seconds.items())]
            rows.append(["total", f"{sum(self.seconds.values()):.1f}"])
            parts += ["## Time", _markdown_table(rows)]
        if self.commands:
            parts += ["## Commands", "```bash\n" + "\n".join(self.commands) + "\n```"]
        versions = ", ".join(f"{name} {version}" for name, version in self.environment["versions"].items())
        parts += [
            "## Made with",
            f"Seed {self.seed}; {self.environment['machine']}; commit {self.environment['commit'] or 'unknown'}; "
            f"{versions}.",
        ]
        if self.settings:
            rows = [["setting", "value"], *([key, str(value)] for key, value in self.settings.items())]
            parts.append(_markdown_table(rows, numbers=False))
        return "\n\n".join(part.rstrip() for part in parts) + "\n"

    def _intervals(self) -> str:
        lines = []
        for name, value in self.systems.items():
            bounds = value.intervals.get(value.primary_metric) if isinstance(value, EvaluationResult) else None
            if bounds and not any(map(math.isnan, bounds)):
                low, high = bounds
                lines.append(f"- {name}: {value.primary_metric} {value.primary_value:.4f} ({low:.4f} to {high:.4f})")
        heading = "\nPrimary metric with its 95 % interval over users:\n\n"
        return heading + "\n".join(lines) if lines else ""

    def save(self, directory: str | os.PathLike) -> Path:
        """Write `report.json` and `report.md`, each as a whole, and return the directory."""
        folder = Path(directory)
        atomic_write_json(folder / "report.json", self.to_dict())
        atomic_write_text(folder / "report.md", self.to_markdown())
        return folder


def _without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in metrics.items()}


def _markdown_table(rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    if numbers:  # all columns but the first line up at the right
        rule[1:] = [f"{line[1:]}:" for line in rule[1:]]
    lines = (
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (rows[0], rule, *rows[1:])
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _example(example: SlateExample, last: int = 10) -> str:
    """The newest history items beside the slate, one line a rank."""
    history, hits = list(example.history)[-last:], set(example.target)
    slate = [f"{title} ✓" if title in hits else title for title in example.slate]
    height = max(len(history), len(slate), len(example.target))
    columns = [history, slate, *([list(example.target)] if example.target else [])]
    header = [
        f"history (last {len(history)} of {len(example.history)})",
        "slate",
        *(["target"] if example.target else []),
    ]
    padded = [column + [""] * (height - len(column)) for column in columns]
    return f"User {example.user_id}\n\n" + _markdown_table([header, *zip(*padded, strict=True)], numbers=False)
