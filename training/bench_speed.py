"""How fast slates are decoded: HiGR's modes, the flat decoder, transformers' own `generate` and a next-item scorer.

    python -m training.bench_speed --recipe training/recipes/bench_speed.yaml
    python -m training.bench_speed --recipe training/recipes/bench_speed.yaml --quick true --results runs/speed
    python -m training.bench_speed --recipe training/recipes/bench_speed_growth.yaml
    python -m training.bench_speed --recipe training/recipes/bench_speed_cuda.yaml

Random weights, one thread by default, all systems timed in turn inside one run. For every shape a row a system goes to
`<results>/speed.jsonl` (`speed-cuda.jsonl` from a GPU), each with medians, spreads, memory and the gain over the flat
beam for all batch sizes. Run again to go on after a kill: shapes whose rows of this commit are there are skipped. What
fails is printed and left out; the others go on.

With `growth` the first shape is measured with one thing changed at a time, for the flat beam and HiGR's sequential and
plan-once decoding; the rows go to `<results>/speed-growth.jsonl`, and `plot` draws them.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from higr_hf.evaluation import append_rows, make_row
from higr_hf.evaluation.plots import plot_growth
from higr_hf.evaluation.results import read_rows
from higr_hf.speed import Ceilings, Timing, interleaved, measure_ceilings, peak_memory
from higr_hf.speed.growth import SYSTEMS, growth_of, one_at_a_time
from higr_hf.speed.systems import Bench, Shape, System, all_systems
from higr_hf.utils import keep_freed_memory
from higr_hf.utils.environment import git_commit

from ._args import check_output, mapping, parse_recipe, parsed, run

_SHAPE = {entry.name for entry in dataclasses.fields(Shape)}
REFERENCE = "flat beam"


@dataclass
class SpeedArguments:
    """What is timed."""

    _argument_group_name = "speed"

    shapes: str = field(
        default="[{}]",
        metadata={"help": "List of shapes, each a mapping such as '{preset: small, history: 200}', as YAML or JSON."},
    )
    batches: str = field(default="[1, 8, 32, 128]", metadata={"help": "Batch sizes."})
    variants: str = field(
        default="[float32]",
        metadata={
            "help": "How HiGR and the flat model are prepared: float32, input-major, bfloat16, int8, "
            "int8-products, compiled, cuda-graph, cuda-graph-bfloat16."
        },
    )
    llama_batches: str = field(
        default="{}",
        metadata={
            "help": "Largest batch that transformers' generate is asked for by preset, such as '{tiny: 32, base: 0}'; "
            "presets that are not named have no limit."
        },
    )
    systems: str = field(default="", metadata={"help": "Comma-separated parts of systems' names; all when empty."})
    leave_out: str = field(default="", metadata={"help": "Comma-separated parts of names that are not timed."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    budget: float = field(default=3.0, metadata={"help": "Seconds a system and batch size, about."})
    min_repeats: int = field(default=5, metadata={"help": "Calls of each at least."})
    max_seconds: float = field(default=20.0, metadata={"help": "A system this slow is not asked for larger batches."})
    wall: float = field(
        default=0.0, metadata={"help": "Seconds after which no further batch size begins; 0 for no limit."}
    )
    quick: bool = field(default=False, metadata={"help": "The first shape, its first and third batch, little time."})
    growth: str = field(
        default="{}",
        metadata={
            "help": "Fields of the first shape and the values each takes in turn, such as '{history: [50, 200]}'."
        },
    )
    plot: str = field(default="", metadata={"help": "Picture of the growth; none when empty."})
    seed: int = field(default=0, metadata={"help": "Of weights, catalogue and prompts."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})

    def __post_init__(self) -> None:
        if self.threads < 1 or self.min_repeats < 1:
            raise ValueError("--threads and --min_repeats must be at least 1")


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; returns the rows written."""
    (options,) = parse_recipe((SpeedArguments,), argv, description=__doc__ or "")
    shapes = [Shape(**mapping("shapes", shape, _SHAPE)) for shape in parsed(options.shapes)]
    batches = [int(batch) for batch in parsed(options.batches)]
    if options.quick:
        shapes, batches = shapes[:1], batches[:3:2]
        options.budget, options.min_repeats = min(options.budget, 0.5), min(options.min_repeats, 3)
    factors = mapping("growth", parsed(options.growth), _SHAPE)
    grown = one_at_a_time(shapes[0], factors)
    if grown:
        shapes = list(dict.fromkeys(shape for values in grown.values() for shape in values))
    check_output(options.results)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `higr serve` has it
    written, began = [], time.perf_counter()
    for shape in shapes:
        prepared = parsed(options.variants)
        models: dict = {}  # a graph is captured of a model that is there already
        benches = {name: Bench(shape, name, options.device, options.seed, models) for name in prepared}
        runs = {
            (name, system.variant): (bench, system)
            for name, bench in benches.items()
            for system in all_systems(shape.num_beams)
            if bench.supports(system) and (system.variant in SYSTEMS if grown else _chosen(system, options))
            if _largest(system, shape, options) >= min(batches)
        }
        if _is_done(shape, runs, options):
            print(f"{shape}: done before", flush=True)
            continue
        stop = began + options.wall if options.wall else float("inf")
        rows = _measure(shape, runs, batches, options, stop)
        append_rows(rows, options.results)
        written += rows
    if grown and options.plot:
        every = read_rows(f"{options.results}/{_study(options)}.jsonl")
        values = {f"ms, batch {batches[0]}": "ms", f"megabytes, batch {batches[0]}": "megabytes"}
        panels = [growth_of(every, grown, f"{metric}@{batches[0]}") for metric in values.values()]
        plot_growth(panels, list(values), options.plot)
    return written


def _study(options: SpeedArguments) -> str:
    study = "speed-growth" if parsed(options.growth) else "speed"
    return study if options.device == "cpu" else f"{study}-cuda"


def _chosen(system: System, options: SpeedArguments) -> bool:
    if system.variant == REFERENCE:
        return True
    wanted, unwanted = (
        [part.strip() for part in parts.split(",") if part.strip()] for parts in (options.systems, options.leave_out)
    )
    named = not wanted or any(part in system.variant for part in wanted)
    return named and not any(part in system.variant for part in unwanted)


def _largest(system: System, shape: Shape, options: SpeedArguments) -> float:
    """The largest batch that a system is asked for."""
    limits = parsed(options.llama_batches) if system.model == "llama" else {}
    return limits.get(shape.preset, float("inf"))


def _label(prepared: str, variant: str) -> str:
    return variant if prepared == "float32" else f"{variant}, {prepared}"


def _is_done(shape: Shape, runs: dict, options: SpeedArguments) -> bool:
    commit = git_commit()
    there = {
        row["variant"]
        for row in read_rows(f"{options.results}/{_study(options)}.jsonl")
        if (row["dataset"], row["seed"], row["commit"]) == (str(shape), options.seed, commit)
    }
    return {_label(*name) for name in runs} <= there


def _measure(
    shape: Shape, runs: dict, batches: list[int], options: SpeedArguments, stop: float = float("inf")
) -> list[dict]:
    """One row a system for one shape; none for a system of which every call failed."""
    began = time.perf_counter()
    ceilings = _ceilings(runs, options)
    for dtype, found in ceilings.items():
        kind = "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
        print(f"{shape}{kind}: {found.flops / 1e9:.1f} GFLOP/s, {found.bandwidth / 1e9:.1f} GB/s", flush=True)
    metrics: dict = {name: {} for name in runs}
    asked = dict(runs)
    for batch in batches:
        if time.perf_counter() > stop:
            print(f"  batch {batch}: no time left (--wall {options.wall})", flush=True)
            break
        calls, memory = {}, {}
        for name, (bench, system) in asked.items():
            if batch > _largest(system, shape, options):
                continue
            with _Going(f"batch {batch}, {_label(*name)}"):
                call = bench.call(system, batch)
                call()  # the first one builds the prefix tree, or compiles, or is captured
                if not bench.captured:
                    memory[name] = peak_memory(call, options.device)
                calls[name] = call
        timings = _timed(calls, options)
        reference = timings["float32", REFERENCE].median if ("float32", REFERENCE) in timings else None
        for name, timing in timings.items():
            bench, system = runs[name]
            metrics[name].update(
                {
                    f"ms@{batch}": 1e3 * timing.median,
                    f"spread_ms@{batch}": 1e3 * timing.spread,
                    f"slates_per_second@{batch}": batch / timing.median,
                    **({f"megabytes@{batch}": memory[name]} if name in memory else {}),
                    **({} if reference is None else {f"gain@{batch}": reference / timing.median}),
                    **_gain_alike(name, timings, batch),
                    **_floor(bench, system, batch, _own(ceilings, bench), timing.median),
                }
            )
            print(f"  batch {batch}, {_label(*name)}: {1e3 * timing.median:.2f} ms", flush=True)
            if timing.median > options.max_seconds:
                del asked[name]
    seconds = time.perf_counter() - began
    rows = []
    for name, values in metrics.items():
        bench, system = runs[name]
        if values:
            own = _own(ceilings, bench)
            machine = {"machine_gflops": own.flops / 1e9, "machine_gb_per_second": own.bandwidth / 1e9}
            rows.append(
                make_row(
                    study=_study(options),
                    dataset=str(shape),
                    system=system.name,
                    variant=_label(*name),
                    metrics={**values, **machine},
                    seed=options.seed,
                    seconds=seconds,
                )
            )
    return rows


def _gain_alike(name: tuple[str, str], timings: Mapping, batch: int) -> dict[str, float]:
    """The gain over the flat beam that was prepared alike, where that is not the one of all gains."""
    alike = timings.get((name[0], REFERENCE))
    if alike is None or name[0] == "float32":
        return {}
    return {f"gain_alike@{batch}": alike.median / timings[name].median}


class _Going:
    """Prints what fails inside it and goes on: the other systems' measurements are worth keeping."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        print(f"  {self.what}: failed", flush=True)
        print("".join(traceback.format_exception(error)), flush=True)
        return True


def _timed(calls: Mapping[tuple[str, str], Callable[[], Any]], options: SpeedArguments) -> dict:
    """Timings of calls in turn; where one of them fails, of each by itself."""
    # Making one system ready, a capture above all, takes from a GPU's allocator what the others had left there.
    warmup = 0 if options.device == "cpu" else 1
    given = {"min_repeats": options.min_repeats, "budget": options.budget, "warmup": warmup}
    with _Going("all in turn"):
        return interleaved(calls, **given)
    timings: dict[tuple[str, str], Timing] = {}
    for name, call in calls.items():
        with _Going(_label(*name)):
            timings.update(interleaved({name: call}, **given))
    return timings


def _ceilings(runs: dict, options: SpeedArguments) -> dict[torch.dtype, Ceilings]:
    """The machine's ceilings by number format: those of float32 on a CPU, on a GPU those of every prepared model."""
    formats = [torch.float32]
    if options.device != "cpu":
        formats += [bench.dtype for bench, _ in runs.values() if bench.dtype != torch.float32]
    return {dtype: measure_ceilings(options.device, dtype) for dtype in dict.fromkeys(formats)}


def _own(ceilings: Mapping[torch.dtype, Ceilings], bench: Bench) -> Ceilings:
    return ceilings.get(bench.dtype, ceilings[torch.float32])


def _floor(bench: Bench, system: System, batch: int, ceilings: Ceilings, median: float) -> dict[str, float]:
    """How many times longer than the machine's floor a call takes, where its work is counted."""
    work = bench.work(system, batch)
    if work is None:
        return {}
    size = {"int8": 1, "int8-products": 1}.get(bench.prepared, bench.dtype.itemsize)
    return {f"times_floor@{batch}": median / ceilings.floor(work.operations, size * work.elements)}


if __name__ == "__main__":
    run(main)
