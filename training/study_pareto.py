"""Quality beside speed on trained checkpoints: HiGR's decoding modes and the flat decoder's, for the same users.

    python -m training.study_pareto --recipe training/recipes/study_pareto.yaml \
        --checkpoints "{higr: runs/pareto/higr/model, onerec: runs/pareto/onerec/model}"

Every setting decodes the test split's slates, which are judged; then `generate` is timed on the prompts of users drawn
from it, all settings in turn inside one run, the same users for all. A row a setting goes to `<results>/pareto.jsonl`,
and `--plot` shows NDCG over milliseconds. When all rows of this command and commit are there, nothing is measured
again: ratios must be of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from higr_hf.evaluation import EvaluationResult, SlateEvaluator, append_rows, make_row
from higr_hf.evaluation.plots import plot_tradeoff
from higr_hf.evaluation.results import SYSTEMS, Row, current_command, read_rows
from higr_hf.speed import interleaved, measure_ceilings, own_clock, peak_memory
from higr_hf.speed.trained import Decoding, TrainedBench
from higr_hf.utils.environment import git_commit

from ._args import check_output, mapping, numbers, parse_recipe, run
from ._benchmark_report import paired_metrics
from ._data import DataArguments, aligned, diversity_vectors, load_splits
from ._model import check_unseen, generation_of

STUDY = "pareto"
_DECODING = {entry.name for entry in fields(Decoding)} - {"name", "options"}
_COMPARED = ("ndcg", "recall", "view_ndcg")


@dataclass
class ParetoArguments:
    """What is decoded, how, and what is timed."""

    _argument_group_name = "study"

    checkpoints: str = field(
        default="{}", metadata={"help": "System -> directory with model and tokenizer, '{higr: DIR, onerec: DIR}'."}
    )
    settings: str = field(
        default="{}",
        metadata={
            "help": "Name -> `system`, arguments of generate, and `prepared` as bench_speed's variants, such as "
            "'{plan-once: {system: higr, slate_mode: plan_once, num_beams: 10}}'."
        },
    )
    reference: str = field(default="flat beam", metadata={"help": "The setting that gains are relative to."})
    batches: str = field(default="[1, 32]", metadata={"help": "Batch sizes."})
    draws: int = field(default=8, metadata={"help": "Batches of different users that are timed, of every size."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    budget: float = field(default=5.0, metadata={"help": "Seconds a setting and batch size, about."})
    max_seconds: float = field(default=20.0, metadata={"help": "A setting this slow is not asked for larger batches."})
    diversity_embeddings: str = field(
        default="text",
        metadata={"help": "What slate diversity is measured on: text, collaborative, both, a .npy file, or none."},
    )
    batch_size: int = field(default=128, metadata={"help": "Users decoded at once to be judged."})
    plot: str = field(default="", metadata={"help": "Picture of quality over time; none when empty."})
    seed: int = field(default=0, metadata={"help": "Of the users drawn, and the checkpoints' own in the rows."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})

    def __post_init__(self) -> None:
        if self.threads < 1 or self.draws < 1:
            raise ValueError("--threads and --draws must be at least 1")


def main(argv: list[str] | None = None) -> list[Row]:
    """Judge and time; returns the rows, those that were there before included."""
    options, data = parse_recipe((ParetoArguments, DataArguments), argv, description=__doc__ or "")
    checkpoints = mapping("checkpoints", options.checkpoints)
    if not checkpoints:
        raise SystemExit(
            "error: --checkpoints is missing: directories that training wrote, '{higr: DIR, onerec: DIR}'"
        )
    check_output(options.results)
    torch.set_num_threads(options.threads)
    bench = TrainedBench(checkpoints, data.slate_size, options.device)
    decodings = _decodings(options, bench)
    batches = [int(batch) for batch in numbers("batches", options.batches)]
    model = bench.model(decodings[0].system, decodings[0].prepared)
    dataset = (
        f"{data.name}, width {model.config.hidden_size}, {data.slate_size} slots, history {model.config.max_history}"
    )
    rows = _rows_there(dataset, decodings, options)
    if rows:
        print(f"{dataset}: done before", flush=True)
    else:
        for system in checkpoints:
            check_unseen(data.slate_size, bench.model(system))
        rows = _measure(dataset, bench, decodings, batches, options, data)
        append_rows(rows, options.results)
    if options.plot:
        _draw(rows, batches, min(5, data.slate_size), options.plot)
    return rows


def _decodings(options: ParetoArguments, bench: TrainedBench) -> list[Decoding]:
    """The settings, with every name checked before anything is decoded."""
    decodings = []
    for name, setting in mapping("settings", options.settings).items():
        own = mapping(f"settings: {name}", setting)
        given = {key: own.pop(key) for key in _DECODING & set(own)}
        system = given.get("system")
        if system not in bench.checkpoints or system not in SYSTEMS:
            raise SystemExit(
                f"error: --settings: {name!r} needs a system with a checkpoint, of {sorted(bench.checkpoints)}; got "
                f"{system!r}"
            )
        model = bench.model(system, given.get("prepared", "float32"))
        decodings.append(Decoding(name=name, options=generation_of(own, type(model)), **given))
    names = [decoding.name for decoding in decodings]
    if options.reference not in names:
        raise SystemExit(f"error: --reference {options.reference!r} is no setting; there are {names}")
    return decodings


def _rows_there(dataset: str, decodings: list[Decoding], options: ParetoArguments) -> list[Row]:
    """The rows of this command and commit, if there is one for every setting."""
    key = (dataset, options.seed, current_command(), git_commit())
    there = {
        (row["system"], row["variant"]): row
        for row in read_rows(f"{options.results}/{STUDY}.jsonl")
        if (row["dataset"], row["seed"], row["command"], row["commit"]) == key
    }
    wanted = [(decoding.system, decoding.name) for decoding in decodings]
    return [there[name] for name in wanted] if set(wanted) <= set(there) else []


def _measure(
    dataset: str,
    bench: TrainedBench,
    decodings: list[Decoding],
    batches: list[int],
    options: ParetoArguments,
    data: DataArguments,
) -> list[Row]:
    """One row a setting."""
    began = time.perf_counter()
    clock = own_clock(options.device, options.threads)
    ceilings = measure_ceilings(options.device, clock=clock)
    print(f"{dataset}: {ceilings.flops / 1e9:.1f} GFLOP/s, {ceilings.bandwidth / 1e9:.1f} GB/s", flush=True)
    whole, top = _evaluators(bench, options, data)
    judged: dict[tuple, EvaluationResult] = {}
    for decoding in decodings:
        if decoding.slates_of not in judged:
            judged[decoding.slates_of] = whole.evaluate(bench.recommender(decoding), desc=decoding.name)
    first = {key: top.score(result.slates[:, : top.slate_size]) for key, result in judged.items()}
    reference = next(decoding for decoding in decodings if decoding.name == options.reference)
    metrics: dict[str, dict[str, float]] = {}
    for decoding in decodings:
        mine = first[decoding.slates_of]
        named = [f"{name}@{top.slate_size}" for name in _COMPARED]
        metrics[decoding.name] = {
            **mine.metrics,
            **judged[decoding.slates_of].metrics,
            **paired_metrics([mine], [first[reference.slates_of]], named),
            "million_parameters": bench.model(decoding.system).num_parameters() / 1e6,
            "machine_gflops": ceilings.flops / 1e9,
            "machine_gb_per_second": ceilings.bandwidth / 1e9,
        }
    asked = list(decodings)
    for batch in batches:
        if not asked:
            break
        slates = {decoding.name: judged[decoding.slates_of].slates for decoding in asked}
        timed = _time(bench, asked, whole, batch, slates, clock, options)
        for name, values in timed.items():
            metrics[name] |= values
        asked = [entry for entry in asked if timed[entry.name][f"ms@{batch}"] <= 1e3 * options.max_seconds]
    return [
        make_row(
            study=STUDY,
            dataset=dataset,
            system=decoding.system,
            variant=decoding.name,
            metrics=metrics[decoding.name],
            seed=options.seed,
            seconds=time.perf_counter() - began,
            n_users=judged[decoding.slates_of].counts["users"],
        )
        for decoding in decodings
    ]


def _evaluators(
    bench: TrainedBench, options: ParetoArguments, data: DataArguments
) -> tuple[SlateEvaluator, SlateEvaluator]:
    """Of whole slates of the test split, and of their first five items, whose NDCG compares with shorter slates'."""
    log, splits = load_splits(data)
    catalogue = bench.tokenizer.item_ids
    vectors = diversity_vectors(log, splits, options.diversity_embeddings)
    whole, top = (
        SlateEvaluator(
            splits["test"],
            catalogue,
            slate_size=size,
            embeddings=None if vectors is None else aligned(vectors, log.item_ids, catalogue),
            exclude_history=True,
            batch_size=options.batch_size,
            num_resamples=0,
            seed=options.seed,
        )
        for size in (data.slate_size, min(5, data.slate_size))
    )
    return whole, top


def _time(
    bench: TrainedBench,
    decodings: list[Decoding],
    evaluator: SlateEvaluator,
    batch: int,
    slates: dict[str, np.ndarray],
    clock: Callable[[], float],
    options: ParetoArguments,
) -> dict[str, dict[str, float]]:
    """Metrics by setting for one batch size; `slates` are those that were judged."""
    users = _draw_users(len(evaluator.user_ids), batch, options)
    rows = [evaluator.rows(drawn) for drawn in users]
    longest = bench.model(decodings[0].system).config.max_history
    lengths = np.concatenate([[min(longest, len(items)) for items in row["history_indices"]] for row in rows])
    print(
        f"batch {batch}, {options.draws} batches of users, items a prompt: least {lengths.min()}, median "
        f"{np.median(lengths):.0f}, most {lengths.max()}",
        flush=True,
    )
    calls = {decoding.name: bench.call(decoding, rows) for decoding in decodings}
    same, memory = {}, {}
    for name, call in calls.items():  # the first calls build the prefix tree, or compile
        same[name] = np.mean([call() == slates[name][drawn] for drawn in users])
        memory[name] = peak_memory(call, options.device)
    # Every call is at the second batch now; all meet the same users in every round.
    timings = interleaved(calls, min_repeats=options.draws, budget=options.budget, warmup=0, clock=clock)
    reference = timings.get(options.reference)
    metrics = {}
    for name, timing in timings.items():
        metrics[name] = {
            f"ms@{batch}": 1e3 * timing.median,
            f"spread_ms@{batch}": 1e3 * timing.spread,
            f"slates_per_second@{batch}": batch / timing.median,
            f"megabytes@{batch}": memory[name],
            f"same@{batch}": float(same[name]),
            f"history@{batch}": float(lengths.mean()),
        }
        if reference is not None:
            low, median, high = timing.gains(reference)
            metrics[name] |= {f"gain@{batch}": median, f"gain_low@{batch}": low, f"gain_high@{batch}": high}
        shown = ", ".join(f"{key} {value:.2f}" for key, value in metrics[name].items())
        print(f"  {name}: {shown}", flush=True)
    return metrics


def _draw_users(number: int, batch: int, options: ParetoArguments) -> list[list[int]]:
    """Rows of the split, one list a batch; no user twice while there are enough of them."""
    wanted = options.draws * batch
    draw = np.random.default_rng(options.seed)
    users = np.concatenate([draw.permutation(number) for _ in range(-(-wanted // number))])[:wanted]
    return users.reshape(options.draws, batch).tolist()


def _draw(rows: list[Row], batches: list[int], size: int, path: str) -> None:
    metric = f"ndcg@{size}"
    panels = {
        f"batch {batch}": {
            row["variant"]: (row["metrics"][f"ms@{batch}"] / batch, row["metrics"][metric])
            for row in rows
            if f"ms@{batch}" in row["metrics"]
        }
        for batch in batches
    }
    groups = {row["variant"]: row["system"] for row in rows}
    plot_tradeoff(panels, path, cost="ms a slate", value=metric.upper(), groups=groups)


if __name__ == "__main__":
    run(main)
