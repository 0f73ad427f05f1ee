"""What the benchmark's units say together: paired comparisons, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from higr_hf.evaluation import EvaluationResult, make_row, paired_bootstrap, read_rows
from higr_hf.evaluation.plots import plot_scores
from higr_hf.evaluation.results import Row
from higr_hf.evaluation.tables import render_file

from ._benchmark_plan import BenchmarkPlan

PAIRED = "{dataset}-paired"
"""Dataset field of the rows that hold a difference instead of a figure."""


def comparison_rows(dataset: str, plan: BenchmarkPlan, results: Mapping[str, Sequence[EvaluationResult]]) -> list[Row]:
    """HiGR minus every other system, a paired bootstrap over users; a user's value is the mean over the seeds.

    Args:
        dataset: its name in the plan.
        plan: the benchmark.
        results: system -> the test results of its seeds.

    Returns:
        One row a pair, with `<metric>_gain@M` and the bounds `_low`, `_high` and `_p` of its interval.
    """
    size = plan.datasets[dataset].list_size
    rows = []
    for ours in (name for name in results if plan.systems[name].system == "higr"):
        for other in (name for name in results if plan.systems[name].system != "higr"):
            metrics: dict[str, float] = {}
            for metric in (f"{prefix}{kind}" for prefix in ("", "view_") for kind in ("ndcg", "recall")):
                values = [_over_seeds(results[name], f"{metric}@{size}") for name in (ours, other)]
                if any(value is None for value in values):
                    continue
                found = paired_bootstrap(*values)
                metrics |= {
                    f"{metric}_gain@{size}": found.difference,
                    f"{metric}_low@{size}": found.low,
                    f"{metric}_high@{size}": found.high,
                    f"{metric}_p@{size}": found.p_value,
                }
            rows.append(
                make_row(
                    study="benchmark",
                    dataset=PAIRED.format(dataset=dataset),
                    system=plan.systems[other].system,
                    variant=f"{plan.systems[other].variant} (HiGR: {plan.systems[ours].variant})",
                    metrics=metrics,
                    seed=plan.tuned_on,
                    seconds=0.0,
                    n_users=len(results[ours][0].user_ids),
                )
            )
    return rows


def unwritten(rows: Sequence[Row], results: str | Path) -> list[Row]:
    """The rows whose figures do not stand in the file already: a benchmark that is run again adds none."""
    names = ("dataset", "system", "variant", "seed")
    written = {tuple(row[name] for name in names): row for row in read_rows(Path(results) / "benchmark.jsonl")}
    found = [(row, written.get(tuple(row[name] for name in names))) for row in rows]
    return [row for row, old in found if old is None or old["metrics"] != row["metrics"]]


def render_report(document: str | Path, plan: BenchmarkPlan, results: str | Path) -> None:
    """Fill in the document's tables, and draw a plot a dataset beside it, in `docs/plots/`."""
    rows = read_rows(Path(results) / "benchmark.jsonl")
    folder = Path(document).parent / "docs" / "plots"
    for dataset, protocol in plan.datasets.items():
        metric = f"ndcg@{protocol.list_size}"
        # The later row of one run stands for it, as in the tables.
        latest = {
            (row["system"], row["variant"], row["seed"]): row["metrics"][metric]
            for row in rows
            if row["dataset"] == dataset and metric in row["metrics"]
        }
        scores: dict[str, list[float]] = {}
        for (system, variant, _), value in latest.items():
            scores.setdefault(system if variant == "none" else f"{system}: {variant}", []).append(value)
        if scores:
            plot_scores(scores, folder / f"benchmark_{dataset}.png", f"{metric} on {dataset}, test split")
    render_file(document, results)


def _over_seeds(results: Sequence[EvaluationResult], metric: str) -> np.ndarray | None:
    """A user's mean over seeds, float64 `[U]`, `None` where the metric was not measured."""
    if any(metric not in result.per_user for result in results):
        return None
    return np.mean([result.per_user[metric] for result in results], axis=0)
