"""Time to a fixed validation NDCG: systems of the benchmark's plan, trained and judged alike, beside one of them.

    python -m training.bench_time_to_quality --recipe training/recipes/bench_time_to_quality.yaml

Each system is trained from nothing with its first trial's settings, one thread, and judged on all users of the
validation split. A row a system goes to `<results>/time-to-quality.jsonl`: the seconds of training before it first
reached 90, 95 and 100 % of the best figure of the reference (SASRec). Seconds are those of the processor in the
process that trains; judging, and fitting semantic IDs, stand in columns of their own. A curve is kept below
`--output_dir` when its training has ended, and is not measured again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from higr_hf.baselines.early_stopping import Judgement
from higr_hf.evaluation import append_rows, make_row
from higr_hf.evaluation.plots import plot_learning
from higr_hf.speed.learning import seconds_to
from higr_hf.utils import atomic_write_json

from ._args import check_output, mapping, numbers, parse_recipe, run
from ._benchmark_plan import SLATES, SystemPlan, load_plan
from ._benchmark_systems import Workbench, fit_system
from .benchmark import PLAN, chosen_names
from .fit_tokenizer import FitArguments, vectors


@dataclass
class TimeToQualityArguments:
    """What is trained, and what it is held against."""

    _argument_group_name = "time to quality"

    plan: str = field(default=str(PLAN), metadata={"help": "YAML file of datasets, systems and trials."})
    datasets: str = field(default="movielens-100k", metadata={"help": "Comma-separated datasets of the plan."})
    systems: str = field(default="sasrec,higr", metadata={"help": "Comma-separated systems of the plan."})
    reference: str = field(default="sasrec", metadata={"help": "The system whose best figure is the goal."})
    goals: str = field(default="[90, 95, 100]", metadata={"help": "Percent of the reference's best figure."})
    changes: str = field(
        default="{}",
        metadata={"help": "Changed settings, '{movielens-100k: {sasrec: {eval_every: 1}}}': how often one is judged."},
    )
    seeds: str = field(default="[0]", metadata={"help": "Of the trainings; a goal is the same seed's."})
    local_paths: str = field(
        default="{}", metadata={"help": "Dataset: the file or folder it is read from, '{movielens-1m: ml-1m.zip}'."}
    )
    output_dir: str = field(default="runs/time-to-quality", metadata={"help": "Where curves and tokenizers are kept."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})
    plots: str = field(default="", metadata={"help": "Directory of a picture a dataset; none when empty."})


@dataclass(frozen=True)
class Curve:
    """A whole training.

    Attributes:
        settings: everything that decided it.
        history: its judgements, in order.
        tokenizer_seconds: of the processor, to fit its semantic IDs; 0 without.
        seconds: of the wall, from the first line of the training to the last.
    """

    settings: Mapping[str, Any]
    history: list[Judgement]
    tokenizer_seconds: float
    seconds: float

    @property
    def best(self) -> float:
        """The best score."""
        return max(judgement.score for judgement in self.history)

    @property
    def points(self) -> list[tuple[float, float]]:
        """(seconds of semantic IDs and training, score) of every judgement."""
        return [(self.tokenizer_seconds + entry.training_seconds, entry.score) for entry in self.history]


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; returns the rows written."""
    (options,) = parse_recipe((TimeToQualityArguments,), argv, description=__doc__ or "")
    plan = load_plan(options.plan).read_from(mapping("local_paths", options.local_paths))
    names, goals = chosen_names(options.systems, plan.systems), _percents(options.goals)
    datasets, seeds = chosen_names(options.datasets, plan.datasets), numbers("seeds", options.seeds)
    changes = mapping("changes", options.changes, plan.datasets)
    if options.reference not in names:
        raise SystemExit(f"error: --reference {options.reference} is none of --systems {', '.join(names)}")
    for name in names:
        _check_trained(plan.systems[name])
    if torch.cuda.is_available():
        raise SystemExit("error: seconds of the processor say nothing of a GPU: hide it with CUDA_VISIBLE_DEVICES=''")
    root = check_output(options.output_dir)
    torch.set_num_threads(1)
    written = []
    for dataset in datasets:
        bench = Workbench(plan, dataset, root)
        changed = mapping("changes", changes.get(dataset, {}), plan.systems)
        lines: dict[str, list[tuple[float, float]]] = {}
        scores: list[float] = []
        for seed in seeds:
            curves = {name: measure(bench, plan.systems[name], changed.get(name, {}), seed) for name in names}
            best = curves[options.reference].best
            scores += [goal / 100 * best for goal in goals]
            rows = [_row(bench, plan.systems[name], seed, curves[name], best, goals) for name in names]
            append_rows(rows, options.results)
            written += rows
            lines |= {name if len(seeds) == 1 else f"{name}, seed {seed}": curves[name].points for name in names}
        if options.plots:
            path = Path(options.plots) / f"time_to_quality_{dataset}.png"
            plot_learning(lines, path, metric=f"validation ndcg@{bench.protocol.list_size}", goals=scores)
    return written


def measure(bench: Workbench, system: SystemPlan, changes: Mapping[str, Any], seed: int) -> Curve:
    """A system's curve on a dataset; trained now where it was not before with these settings."""
    settings = {**system.settings_of(bench.name, 0), **changes}
    if system.kind == SLATES:
        settings.pop("eval_users", None)  # all of them, as the others are judged
    decides = {"kind": system.kind, **settings, **bench.protocol_facts}
    if system.tokenizer is not None:
        decides["tokenizer"] = bench.tokenizer_settings(system.tokenizer)
    path = bench.root / bench.name / f"{system.name}-seed{seed}.json"
    known = _read(path)
    if known is not None and known.settings == json.loads(json.dumps(decides)):
        return known
    spent = 0.0 if system.tokenizer is None else tokenizer_seconds(bench, system.tokenizer, seed)
    work = path.with_suffix(".work")
    # A training that goes on from a checkpoint would have a curve without start.
    shutil.rmtree(work, ignore_errors=True)
    began = time.perf_counter()
    history = list(fit_system(bench, system, settings, seed, work, []).history)
    if not history:
        raise ValueError(
            f"{system.name} is not judged while it trains on {bench.name}: set how often in its settings."
        )
    curve = Curve(decides, history, spent, time.perf_counter() - began)
    atomic_write_json(path, asdict(curve))
    shutil.rmtree(work, ignore_errors=True)
    return curve


def tokenizer_seconds(bench: Workbench, name: str, seed: int) -> float:
    """Processor seconds of semantic IDs from a read log: item embeddings, positives, quantiser, collisions."""
    log, splits = bench.data
    kind = bench.tokenizer_settings(name).get("embeddings", FitArguments.embeddings)
    # Embeddings are cached: after this line the fit finds them there; what they cost is measured past the cache.
    vectors(log, splits["train"], kind)
    with tempfile.TemporaryDirectory(prefix="higr_embeddings_") as empty:
        began = time.process_time()
        vectors(log, splits["train"], kind, cache_dir=empty)
        embedding = time.process_time() - began
    report = bench.tokenizer(name, seed).with_name("tokenizer_report.json")
    return embedding + json.loads(report.read_text(encoding="utf-8"))["processor_seconds"]


def _percents(value: str) -> list[int]:
    goals = numbers("goals", value)
    if not all(isinstance(goal, int) and goal > 0 for goal in goals):
        raise SystemExit(f"error: --goals must be whole numbers of percent such as '[90, 100]', got {value!r}")
    return goals


def _check_trained(system: SystemPlan) -> None:
    if system.parts or system.deterministic:
        raise SystemExit(f"error: {system.name} is not trained step by step: leave it out of --systems")


def _read(path: Path) -> Curve | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Curve(**{**content, "history": [Judgement(*row) for row in content["history"]]})


def _row(bench: Workbench, system: SystemPlan, seed: int, curve: Curve, best: float, goals: list[int]) -> dict:
    last = curve.history[-1]
    reached = {f"seconds_to@{goal}": seconds_to(curve.history, goal / 100 * best) for goal in goals}
    metrics = {
        f"ndcg@{bench.protocol.list_size}": curve.best,
        **{name: value for name, value in reached.items() if value is not None},
        "tokenizer_seconds": curve.tokenizer_seconds,
        "training_seconds": last.training_seconds,
        "judging_seconds": last.judging_seconds,
        "judgements": len(curve.history),
    }
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print(f"{bench.name} {system.name}, seed {seed}: {shown}", flush=True)
    return make_row(
        study="time-to-quality",
        dataset=bench.name,
        system=system.system,
        variant=system.variant,
        metrics=metrics,
        seed=seed,
        n_users=len(bench.data[1]["validation"]),
        seconds=curve.seconds,
    )


if __name__ == "__main__":
    run(main)
