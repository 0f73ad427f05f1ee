"""What alignment gives: every method and objective from the same starting models, judged on test over seeds.

    python -m training.study_alignment --datasets movielens-1m
    python -m training.study_alignment --start "runs/{dataset}/model-{seed}" --variants orpo-sum,dpo --seeds "[0]"

The plan (datasets, variants, trials) is one YAML file. A starting model is what the benchmark's plan trains, one a
dataset and seed, or a directory of yours; all variants of a seed begin with it, `none` being the model as it is.
Trials are chosen on validation with one seed, and the test split is read once a variant and seed. Every aligned model
is a directory below `--output_dir`; run again, the study goes on where it stopped. Rows go to
`<results>/alignment.jsonl`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from higr_hf.evaluation import EvaluationResult, append_rows, make_row, read_rows
from higr_hf.evaluation.results import Row
from higr_hf.evaluation.tables import render_file
from higr_hf.utils.digests import file_digest

from . import align
from ._args import check_output, mapping, numbers, parse_recipe, run
from ._benchmark_plan import SLATES, BenchmarkPlan, load_plan
from ._benchmark_report import PAIRED, paired_metrics, unwritten
from ._benchmark_systems import SLATE_BATCH_SIZE, load_system
from ._benchmark_units import Outcome, Unit
from .benchmark import Benchmark, chosen_names

PLAN = Path(__file__).parent / "recipes" / "study_alignment.yaml"
NONE = "none"
"""The variant that is the starting model itself."""

_COMPARED = ("ndcg@{}", "recall@{}", "view_ndcg@{}", "view_recall@{}", "diversity", "held_out_negative_share")


@dataclass
class StudyArguments:
    """Which part of the plan is run, and where results go."""

    _argument_group_name = "study"

    plan: str = field(default=str(PLAN), metadata={"help": "YAML file of datasets, variants and trials."})
    datasets: str = field(default="", metadata={"help": "Comma-separated datasets; the plan's when empty."})
    variants: str = field(default="", metadata={"help": "Comma-separated variants beside none; all when empty."})
    seeds: str = field(default="[0, 1, 2]", metadata={"help": "Seeds of the test figures."})
    start: str | None = field(
        default=None,
        metadata={"help": "Your starting models, 'runs/{dataset}/{seed}/model'; trained when left out."},
    )
    local_paths: str = field(
        default="{}", metadata={"help": "Dataset: the file or folder it is read from, '{kuairand-pure: data/part}'."}
    )
    starts_dir: str = field(
        default="runs/benchmark", metadata={"help": "Where the benchmark keeps, or this trains, the starting models."}
    )
    output_dir: str = field(default="runs/study_alignment", metadata={"help": "Where aligned models are kept."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})
    document: str | None = field(
        default="docs/alignment.md", metadata={"help": "Document whose tables are rendered; None for none."}
    )


@dataclass(frozen=True)
class StudyPlan:
    """What is compared.

    Attributes:
        benchmark: the benchmark's plan, beside this one: datasets, their protocols and the starting models.
        system: which of its systems is aligned.
        datasets: names of datasets there.
        variants: name -> options of `training.align`, its `method` among them; the method's recipe lies below them.
        settings: options common to all variants.
        by_dataset: dataset -> further ones.
        trials: changes of the options, the same for every variant.
        judged_by: dataset -> the metric by which the best checkpoint and trial are chosen, `ndcg` where it has none.
        tuned_on: seed of the trials.
    """

    benchmark: str
    datasets: Sequence[str]
    variants: Mapping[str, Mapping[str, Any]]
    system: str = "higr"
    settings: Mapping[str, Any] = field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ({},)
    judged_by: Mapping[str, str] = field(default_factory=dict)
    tuned_on: int = 0

    def options(self, variant: str, dataset: str, trial: int) -> dict[str, Any]:
        """Options of a variant on a dataset; the trial has the last word."""
        common = {**self.settings, **self.by_dataset.get(dataset, {})}
        return {**common, **self.variants[variant], **self.trials[trial]}


def load_study(path: str | Path, local_paths: Mapping[str, str]) -> tuple[StudyPlan, BenchmarkPlan]:
    """Read and check a plan, and the benchmark's plan that it builds on.

    Raises:
        ValueError: for unknown keys, names that refer to nothing, and a variant without a method.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    known = [entry.name for entry in fields(StudyPlan)]
    if not isinstance(content, dict) or set(content) - set(known):
        odd = sorted(set(content) - set(known)) if isinstance(content, dict) else "no mapping"
        raise ValueError(f"{path}: unknown keys {odd}; a study is a mapping of {', '.join(known)}.")
    missing = {"benchmark", "datasets", "variants"} - set(content)
    if missing:
        raise ValueError(f"{path}: {sorted(missing)[0]!r} is missing.")
    study = StudyPlan(**content)
    plan = load_plan(Path(path).parent / study.benchmark).read_from(local_paths)
    system = plan.systems.get(study.system)
    if system is None or system.kind != SLATES:
        raise ValueError(f"{path}: {study.system!r} is no system of {study.benchmark} that training.train trains.")
    unknown = sorted({*study.datasets, *study.by_dataset, *study.judged_by} - set(plan.datasets))
    if unknown:
        raise ValueError(f"{path}: {study.benchmark} has no dataset {unknown[0]!r}.")
    without = [name for name, options in study.variants.items() if "method" not in options]
    if without or NONE in study.variants or not study.trials:
        told = f"variant {without[0]!r} has no method" if without else f"{NONE!r} is always there, and trials never []"
        raise ValueError(f"{path}: {told}.")
    return study, plan


class Study:
    """The plan of one dataset, unit by unit.

    Args:
        plan: the study.
        benchmark: the benchmark of the dataset, which trains starting models.
        root: directory of the aligned models.
        start: pattern of directories of starting models, with `{dataset}` and `{seed}`; trained for `None`.
        results: directory of the result rows.
    """

    def __init__(self, plan: StudyPlan, benchmark: Benchmark, root: Path, start: str | None, results: str) -> None:
        self.plan, self.benchmark, self.root, self.pattern, self.results = plan, benchmark, root, start, results
        self.bench, self.dataset = benchmark.bench, benchmark.dataset
        self.system = benchmark.plan.systems[plan.system]
        self.start = cache(self._start)

    def _start(self, seed: int) -> Path:
        """Directory of a seed's starting model; trained now where it was not before."""
        if self.pattern is None:
            return self.benchmark.fit(self.system, self.benchmark.tune(self.system), seed)[0].model
        path = Path(self.pattern.format(dataset=self.dataset, seed=seed))
        if not path.is_dir():
            raise SystemExit(f"error: --start: there is no starting model {path} for {self.dataset}, seed {seed}")
        return path

    @property
    def metric(self) -> str:
        """By which checkpoints and trials are chosen, such as `ndcg@5`."""
        return f"{self.plan.judged_by.get(self.dataset, 'ndcg')}@{self.bench.protocol.list_size}"

    @property
    def judging(self) -> dict[str, Any]:
        """How slates are decoded and judged: as the benchmark does."""
        settings = self.system.settings_of(self.dataset, 0)
        return {name: settings[name] for name in ("generation", "wish") if settings.get(name) is not None} | {
            "exclude_history": self.bench.protocol.exclude_history,
            "diversity_embeddings": self.benchmark.plan.diversity_embeddings,
        }

    def tune(self, variant: str) -> int:
        """The trial with the best slates on validation, all of them with the plan's one seed."""
        if variant == NONE or len(self.plan.trials) == 1:
            return 0
        metric, trials = self.metric, range(len(self.plan.trials))
        scores = [self.fit(variant, trial, self.plan.tuned_on)[1].validation[metric] for trial in trials]
        best = max(trials, key=scores.__getitem__)
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"{self.dataset} {variant}: {metric} of the trials {listed}; trial {best} is taken", flush=True)
        return best

    def fit(self, variant: str, trial: int, seed: int) -> tuple[Unit, Outcome]:
        """A unit and its outcome; aligned now where it was not before."""
        start = self.start(seed)
        options = {}
        if variant != NONE:
            options = {
                **self.plan.options(variant, self.dataset, trial),
                "metric_for_best_model": f"eval_{self.metric}",
            }
        facts = {"start": file_digest(start / "model.safetensors"), **self.bench.protocol_facts}
        unit = Unit(self.root, self.dataset, variant, {**facts, **self.judging, **options}, seed)
        if unit.outcome is not None:
            return unit, unit.outcome
        began, path = time.perf_counter(), start
        if variant != NONE:
            path = unit.work / "model"
            files = {"model": str(start), "output_dir": str(unit.work), "resume_from_checkpoint": True}
            words = self.bench.command(**self.judging, **options, **files, seed=seed, pair_seed=seed)
            record = align.align(*align.parse(words), start=self.fit(NONE, 0, seed)[1].validation)
            metrics = record["metrics"]
        seconds = time.perf_counter() - began
        system = load_system(self.bench, self.system, self.judging, path)
        if variant == NONE:
            metrics = self.bench.evaluator("validation", SLATE_BATCH_SIZE).evaluate(system.recommend).metrics

        def save(folder: Path) -> None:
            system.save(folder)
            if variant != NONE:
                shutil.copy(unit.work / "alignment.json", folder.parent)

        figures = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{unit.folder}: validation {figures}, {seconds:.0f} s", flush=True)
        return unit, unit.finish(save, Outcome(unit.settings, metrics, seconds, system.parameters))

    def test(self, variant: str, seed: int) -> EvaluationResult:
        """Judge the tuned variant on the test split, once; the judgement and its result row are kept together."""
        unit, outcome = self.fit(variant, self.tune(variant), seed)
        done = unit.test_result
        if done is not None:
            return done
        system = load_system(self.bench, self.system, self.judging, unit.model)
        judged = self.bench.evaluator("test", SLATE_BATCH_SIZE).evaluate(system.recommend)
        start = judged if variant == NONE else self.test(NONE, seed)
        name = f"start_{start.primary_metric}"
        check_start(self.results, self.dataset, seed, name, start.primary_value)
        row = make_row(
            study="alignment",
            dataset=self.dataset,
            system=self.system.system,
            variant=variant,
            metrics={**judged.metrics, name: start.primary_value},
            seed=seed,
            seconds=outcome.seconds,
            n_users=judged.counts["users"],
        )
        append_rows([row], self.results)
        judged.save(unit.test)
        figure = f"{judged.primary_metric} {judged.primary_value:.4f} (start {start.primary_value:.4f})"
        print(f"{self.dataset} {variant} seed {seed}: test {figure}", flush=True)
        return judged


def check_start(results: str | Path, dataset: str, seed: int, name: str, value: float) -> None:
    """No table may mix starting points: every row carries the figure of the model that it began with.

    Raises:
        SystemExit: when rows of this dataset and seed began with another model.
    """
    for row in read_rows(Path(results) / "alignment.jsonl"):
        if (row["dataset"], row["seed"]) == (dataset, seed) and row["metrics"].get(name, value) != value:
            raise SystemExit(
                f"error: {results}/alignment.jsonl has a row of {dataset}, seed {seed} ({row['variant']}) that began "
                f"with another model ({name} {row['metrics'][name]:.4f}, now {value:.4f}): remove those rows, or give "
                "the model that they began with"
            )


def gain_rows(study: Study, results: Mapping[str, Sequence[EvaluationResult]]) -> list[Row]:
    """Every variant minus `none`, paired by user, and the relative gain of the means in per cent."""
    size, rows = study.bench.protocol.list_size, []
    for variant in (name for name in results if name != NONE):
        names = [name.format(size) for name in _COMPARED]
        metrics = paired_metrics(results[variant], results[NONE], names)
        for kind in ("ndcg", "recall", "view_ndcg", "view_recall"):
            ours, start = (_total(results[name], f"{kind}@{size}") for name in (variant, NONE))
            if start:
                metrics[f"{kind}_percent@{size}"] = 100 * (ours / start - 1)
        rows.append(
            make_row(
                study="alignment",
                dataset=PAIRED.format(dataset=study.dataset),
                system=study.system.system,
                variant=variant,
                metrics={**metrics, "num_seeds": len(results[variant])},
                seed=study.plan.tuned_on,
                seconds=0.0,
                n_users=len(results[variant][0].user_ids),
            )
        )
    return rows


def _total(results: Sequence[EvaluationResult], metric: str) -> float:
    return sum(result.metrics[metric] for result in results)


def main(argv: list[str] | None = None) -> dict[str, dict[str, list[EvaluationResult]]]:
    """Run the chosen part of the plan; returns dataset -> variant -> the test results of its seeds."""
    (options,) = parse_recipe((StudyArguments,), argv, description=__doc__ or "")
    plan, benchmark_plan = load_study(options.plan, mapping("local_paths", options.local_paths))
    datasets = chosen_names(options.datasets, plan.datasets)
    variants = chosen_names(options.variants, plan.variants)
    seeds, root = numbers("seeds", options.seeds), check_output(options.output_dir)
    results: dict[str, dict[str, list[EvaluationResult]]] = {}
    for dataset in datasets:
        benchmark = Benchmark(benchmark_plan, dataset, check_output(options.starts_dir))
        study = Study(plan, benchmark, root, options.start, options.results)
        results[dataset] = {name: [study.test(name, seed) for seed in seeds] for name in (NONE, *variants)}
        append_rows(unwritten(gain_rows(study, results[dataset]), options.results), options.results)
    if options.document and Path(options.document).is_file():
        render_file(options.document, options.results)
    return results


if __name__ == "__main__":
    run(main)
