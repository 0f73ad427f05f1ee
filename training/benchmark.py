"""Every system on the same work: tune on validation, judge on test over seeds, render BENCHMARK.md.

    make benchmark
    python -m training.benchmark --only ease,sasrec --datasets movielens-100k --seeds 0

The plan (datasets, systems, trials) is one YAML file. Every trained system is a directory below `--output_dir`; run
again, the benchmark goes on where it stopped. Test figures are appended to `<results>/benchmark.jsonl`.

With `--fit_only true` the chosen units are trained and nothing is judged on test: several processes, or a machine with
a GPU, train units below one `--output_dir`, which is copied back, and the command without it then finds them done.

    python -m training.benchmark --fit_only true --only bert4rec --datasets movielens-1m --seeds "[0]" --trials "[1]"
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from higr_hf.evaluation import EvaluationResult, append_rows, make_row
from higr_hf.utils.environment import machine_name

from ._args import check_output, mapping, numbers, parse_recipe, run
from ._benchmark_plan import BenchmarkPlan, SystemPlan, load_plan
from ._benchmark_report import comparison_rows, render_report, unwritten
from ._benchmark_systems import Workbench, fit_system, load_system
from ._benchmark_units import Outcome, Unit

PLAN = Path(__file__).parent / "recipes" / "benchmark.yaml"


@dataclass
class BenchmarkArguments:
    """Which part of the plan is run, and where results go."""

    _argument_group_name = "benchmark"

    plan: str = field(default=str(PLAN), metadata={"help": "YAML file of datasets, systems and trials."})
    only: str = field(default="", metadata={"help": "Comma-separated systems; all when empty."})
    datasets: str = field(default="", metadata={"help": "Comma-separated datasets; all when empty."})
    seeds: str = field(default="[0, 1, 2]", metadata={"help": "Seeds of the test figures."})
    fit_only: bool = field(default=False, metadata={"help": "Train the chosen units and judge nothing on test."})
    trials: str = field(default="[]", metadata={"help": "With --fit_only: numbers of the trials; all when empty."})
    diversity_embeddings: str | None = field(
        default=None,
        metadata={"help": "With --fit_only, in place of the plan's: none where their encoder is not at hand."},
    )
    local_paths: str = field(
        default="{}", metadata={"help": "Dataset: the file or folder it is read from, '{movielens-1m: ml-1m.zip}'."}
    )
    output_dir: str = field(default="runs/benchmark", metadata={"help": "Where trained systems are kept."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})
    document: str | None = field(
        default="BENCHMARK.md", metadata={"help": "Document whose tables are rendered; None for none."}
    )

    def __post_init__(self) -> None:
        for name, unset in (("trials", "[]"), ("diversity_embeddings", None)):
            if getattr(self, name) != unset and not self.fit_only:
                raise ValueError(f"--{name} goes with --fit_only: the test figures are the plan's")


class Benchmark:
    """The plan of one dataset, unit by unit.

    Args:
        plan: the benchmark.
        dataset: its name there.
        root: directory of the units.
    """

    def __init__(self, plan: BenchmarkPlan, dataset: str, root: Path) -> None:
        self.plan, self.dataset, self.root = plan, dataset, root
        self.bench = Workbench(plan, dataset, root)
        source = plan.datasets[dataset].trained_on
        self.networks = None if source is None else Benchmark(plan, source, root)

    def tune(self, system: SystemPlan) -> int:
        """The trial with the best figure on validation, all of them with the plan's one seed."""
        trials = self.plan.trials(system, self.dataset)
        if len(trials) == 1:
            return 0
        metric = f"{system.chosen_by}@{self.plan.datasets[self.dataset].list_size}"
        scores = [self.fit(system, trial, self.plan.tuned_on)[1].validation[metric] for trial in trials]
        best = max(trials, key=scores.__getitem__)
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"{self.dataset} {system.name}: {metric} of the trials {listed}; trial {best} is taken", flush=True)
        return best

    def chosen_trials(self, system: SystemPlan, option: str) -> Sequence[int]:
        """Trials that an option names; all that the plan gives the system where it names none.

        Raises:
            SystemExit: for a trial that the system does not have here.
        """
        known = self.plan.trials(system, self.dataset)
        chosen = numbers("trials", option) or known
        for trial in chosen:
            if trial not in known:
                raise SystemExit(
                    f"error: --trials {trial}: {system.name} has {len(known)} trials on {self.dataset}, from 0 on"
                )
        return [int(trial) for trial in chosen]

    def fit(self, system: SystemPlan, trial: int, seed: int) -> tuple[Unit, Outcome]:
        """A unit and its outcome; trained now where it was not before."""
        settings = self._settings(system, trial)
        elsewhere = self._trained_elsewhere(system)
        parts = [self._chosen(self.plan.systems[name], seed) for name in system.parts]
        parts += [elsewhere.fit(system, trial, seed)[0]] if elsewhere else []
        decides = {
            "kind": system.kind,
            **settings,
            "parts": [part.folder.name for part in parts],
            **self.bench.protocol_facts,
        }
        if system.tokenizer is not None:
            decides["tokenizer"] = self.bench.tokenizer_settings(system.tokenizer)
        unit = Unit(self.root, self.dataset, system.name, decides, seed)
        outcome = unit.outcome
        if outcome is not None:
            return unit, outcome
        if elsewhere:
            trained, seconds = load_system(self.bench, system, settings, parts[-1].model), parts[-1].outcome.seconds
        else:
            began = time.perf_counter()
            trained = fit_system(self.bench, system, settings, seed, unit.work, [part.model for part in parts])
            seconds = time.perf_counter() - began
        judged = self.bench.evaluator("validation", trained.batch_size).evaluate(trained.recommend)
        print(
            f"{unit.folder}: validation {judged.primary_metric} {judged.primary_value:.4f}, {seconds:.0f} s",
            flush=True,
        )
        validation = judged.known_metrics
        if trained.validation_loss is not None:
            validation["loss"] = trained.validation_loss
        machine = parts[-1].outcome.machine if elsewhere else machine_name()
        return unit, unit.finish(trained.save, Outcome(decides, validation, seconds, trained.parameters, machine))

    def test(self, system: SystemPlan, seed: int, results: str) -> EvaluationResult:
        """Judge the tuned system on the test split, once; the judgement and its result row are kept together."""
        trial = self.tune(system)
        unit, outcome = self.fit(system, trial, seed)
        done = unit.test_result
        if done is not None:
            return done
        trained = load_system(self.bench, system, self._settings(system, trial), unit.model)
        judged = self.bench.evaluator("test", trained.batch_size).evaluate(trained.recommend)
        metrics = {**judged.known_metrics, "million_parameters": outcome.parameters / 1e6}
        if "loss" in outcome.validation:
            metrics["validation_loss"] = outcome.validation["loss"]
        row = make_row(
            study="benchmark",
            dataset=self.dataset,
            system=system.system,
            variant=system.variant,
            metrics=metrics,
            seed=seed,
            seconds=outcome.seconds,
            n_users=judged.counts["users"],
            machine=outcome.machine,
        )
        append_rows([row], results)
        judged.save(unit.test)
        print(
            f"{self.dataset} {system.name} seed {seed}: test {judged.primary_metric} {judged.primary_value:.4f}",
            flush=True,
        )
        return judged

    def _trained_elsewhere(self, system: SystemPlan) -> Benchmark | None:
        """The dataset whose networks of a system are judged here; `None` where it is trained here."""
        return self.networks if system.trained_once else None

    def _settings(self, system: SystemPlan, trial: int) -> dict[str, Any]:
        return system.settings_of((self._trained_elsewhere(system) or self).dataset, trial)

    def _chosen(self, system: SystemPlan, seed: int) -> Unit:
        """A mixture's part, tuned; of a deterministic one there is one seed."""
        return self.fit(system, self.tune(system), self.plan.tuned_on if system.deterministic else seed)[0]


def main(argv: list[str] | None = None) -> dict[str, dict[str, list[EvaluationResult]]]:
    """Run the chosen part of the plan; returns dataset -> system -> the test results of its seeds."""
    (options,) = parse_recipe((BenchmarkArguments,), argv, description=__doc__ or "")
    plan = load_plan(options.plan).read_from(mapping("local_paths", options.local_paths))
    if options.diversity_embeddings is not None:
        plan = replace(plan, diversity_embeddings=options.diversity_embeddings)
    seeds = numbers("seeds", options.seeds)
    names = {kind: chosen_names(getattr(options, kind), known) for kind, known in
             (("only", plan.systems), ("datasets", plan.datasets))}  # fmt: skip
    root = check_output(options.output_dir)
    results: dict[str, dict[str, list[EvaluationResult]]] = {}
    for dataset in names["datasets"]:
        benchmark = Benchmark(plan, dataset, root)
        results[dataset] = {}
        for name in (name for name in plan.measured(dataset) if name in names["only"]):
            system = plan.systems[name]
            mine = [plan.tuned_on] if system.deterministic else seeds
            if options.fit_only:
                for trial, seed in product(benchmark.chosen_trials(system, options.trials), mine):
                    benchmark.fit(system, trial, seed)
            else:
                results[dataset][name] = [benchmark.test(system, seed, options.results) for seed in mine]
        if not options.fit_only:
            append_rows(unwritten(comparison_rows(dataset, plan, results[dataset]), options.results), options.results)
    if options.document and not options.fit_only and Path(options.document).is_file():
        render_report(options.document, plan, options.results)
    return results


def chosen_names(option: str, known: Any) -> list[str]:
    """Names of a comma-separated option in the plan's order; all where it is empty."""
    wanted = [name.strip() for name in option.split(",") if name.strip()]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise SystemExit(f"error: the plan has no {unknown[0]!r}; there are {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


if __name__ == "__main__":
    run(main)
