"""What the benchmark's units say together: paired comparisons, tables and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from higr_hf.evaluation import EvaluationResult, make_row, paired_bootstrap, read_rows
from higr_hf.evaluation.plots import plot_growth, plot_scores
from higr_hf.evaluation.results import Row
from higr_hf.evaluation.tables import render_file

from ._benchmark_plan import DECODING, BenchmarkPlan

PAIRED = "{dataset}-paired"
"""Dataset field of the rows that hold a difference instead of a figure."""

_COMPARED = ("ndcg", "recall", "view_ndcg", "view_recall")


def comparison_rows(dataset: str, plan: BenchmarkPlan, results: Mapping[str, Sequence[EvaluationResult]]) -> list[Row]:
    """Ours minus theirs, a paired bootstrap over users; a user's value is the mean over the seeds.

    With a `reference` in the plan, every other system minus that one; else every HiGR minus every system that is none.

    Args:
        dataset: its name in the plan.
        plan: the benchmark.
        results: system -> the test results of its seeds.

    Returns:
        One row a pair, with `<metric>_gain@M` and the bounds `_low`, `_high` and `_p` of its interval.
    """
    metrics = [f"{name}@{plan.datasets[dataset].list_size}" for name in _COMPARED]
    return [
        make_row(
            study="benchmark",
            dataset=PAIRED.format(dataset=dataset),
            system=plan.systems[named].system,
            variant=variant,
            metrics=paired_metrics(results[first], results[second], metrics),
            seed=plan.tuned_on,
            seconds=0.0,
            n_users=len(results[first][0].user_ids),
        )
        for named, variant, first, second in _pairs(plan, list(results))
    ]


def _pairs(plan: BenchmarkPlan, measured: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Of every pair: the system that its row is named after, the row's variant, and whose figures less whose."""
    variants = {name: plan.systems[name].variant for name in measured}
    if plan.reference is not None:
        for name in measured if plan.reference in measured else ():
            if name != plan.reference:
                yield name, variants[name], name, plan.reference
        return
    # Other ways of decoding the same models stand in the table alone.
    compared = [name for name in measured if plan.systems[name].kind != DECODING]
    for ours in (name for name in compared if plan.systems[name].system == "higr"):
        for other in (name for name in compared if plan.systems[name].system != "higr"):
            yield other, f"{variants[other]} (HiGR: {variants[ours]})", ours, other


def paired_metrics(
    ours: Sequence[EvaluationResult], others: Sequence[EvaluationResult], metrics: Sequence[str]
) -> dict[str, float]:
    """Differences of metrics, a paired bootstrap over users; a user's value is the mean over the seeds.

    Args:
        ours, others: results of the same users, one a seed.
        metrics: names such as `ndcg@5`; those that were not measured, or that no user has, are left out.

    Returns:
        Of `ndcg@5`: `ndcg_gain@5`, the bounds `ndcg_low@5` and `ndcg_high@5` of its interval, and `ndcg_p@5`.
    """
    named: dict[str, float] = {}
    for metric in metrics:
        values = [_over_seeds(results, metric) for results in (ours, others)]
        if any(value is None for value in values) or np.isnan(values[0] - values[1]).all():
            continue
        found = paired_bootstrap(*values)
        kind, at, size = metric.partition("@")
        for part, value in (
            ("gain", found.difference),
            ("low", found.low),
            ("high", found.high),
            ("p", found.p_value),
        ):
            named[f"{kind}_{part}{at}{size}"] = value
    return named


def unwritten(rows: Sequence[Row], results: str | Path) -> list[Row]:
    """The rows whose figures do not stand in their study's file already: what is run again adds none."""
    names = ("dataset", "system", "variant", "seed")
    written = {
        (study, *(row[name] for name in names)): row
        for study in {row["study"] for row in rows}
        for row in read_rows(Path(results) / f"{study}.jsonl")
    }
    found = [(row, written.get((row["study"], *(row[name] for name in names)))) for row in rows]
    return [row for row, old in found if old is None or old["metrics"] != row["metrics"]]


def render_report(document: str | Path, plan: BenchmarkPlan, results: str | Path) -> None:
    """Fill in a document's tables, and draw those plots of the plan's datasets that it shows.

    They stand beside it in `docs/plots/`: `benchmark_<dataset>.png` has the systems' scores, `scaling_<dataset>.png`
    what the models' sizes make of validation loss and score.
    """
    rows = read_rows(Path(results) / "benchmark.jsonl")
    folder = Path(document).parent / "docs" / "plots"
    text = Path(document).read_text(encoding="utf-8")
    for dataset, protocol in plan.datasets.items():
        metric = f"ndcg@{protocol.list_size}"
        # The later row of one run stands for it, as in the tables.
        latest = {
            (row["system"], row["variant"], row["seed"]): row["metrics"]
            for row in rows
            if row["dataset"] == dataset and metric in row["metrics"]
        }
        scores: dict[str, list[float]] = {}
        for (system, variant, _), metrics in latest.items():
            scores.setdefault(system if variant == "none" else f"{system}: {variant}", []).append(metrics[metric])
        plot = f"benchmark_{dataset}.png"
        if scores and f"(docs/plots/{plot})" in text:
            plot_scores(scores, folder / plot, f"{metric} on {dataset}, test split")
        plot = f"scaling_{dataset}.png"
        if scores and f"(docs/plots/{plot})" in text:
            values = ("validation_loss", metric)
            plot_growth([{"million parameters": by_size(latest, value)} for value in values], values, folder / plot)
    render_file(document, results)


def by_size(
    latest: Mapping[tuple[str, str, int], Mapping[str, float]], value: str
) -> dict[str, list[tuple[float, float]]]:
    """System -> (million parameters, mean of the value over seeds) of its variants, the smallest first."""
    found: dict[str, dict[float, list[float]]] = {}
    for (system, _, _), metrics in latest.items():
        if value in metrics:
            found.setdefault(system, {}).setdefault(metrics["million_parameters"], []).append(metrics[value])
    return {
        system: [(size, float(np.mean(values))) for size, values in sorted(sizes.items())]
        for system, sizes in found.items()
    }


def _over_seeds(results: Sequence[EvaluationResult], metric: str) -> np.ndarray | None:
    """A user's mean over seeds, float64 `[U]`, `None` where the metric was not measured."""
    if any(metric not in result.per_user for result in results):
        return None
    return np.mean([result.per_user[metric] for result in results], axis=0)
