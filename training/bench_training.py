"""How fast models are trained: HiGR and the flat decoder on the same batches of slates.

    python -m training.bench_training --recipe training/recipes/bench_training.yaml

Random weights and sequences, one thread by default, all systems timed in turn inside one run. For every shape a row a
system goes to `<results>/speed.jsonl`: sequences and target items a second, the gain over the flat decoder, the share
of the machine's speed in a large matrix product that the counted operations take, and the share of collating.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from higr_hf.evaluation import append_rows, make_row
from higr_hf.speed import Timing, interleaved, measure_ceilings, own_clock
from higr_hf.speed.training_systems import SYSTEMS, TrainingBench, TrainingShape
from higr_hf.utils import keep_freed_memory

from ._args import check_output, mapping, parse_recipe, parsed, run

_SHAPE = {entry.name for entry in dataclasses.fields(TrainingShape)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class TrainingSpeedArguments:
    """What is timed."""

    _argument_group_name = "speed"

    shapes: str = field(
        default="[{}]",
        metadata={"help": "List of shapes, each a mapping such as '{preset: small, batch: 32}', as YAML or JSON."},
    )
    dtypes: str = field(default="[float32]", metadata={"help": "Of matrix products: float32, bfloat16."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    budget: float = field(default=10.0, metadata={"help": "Seconds a system, about."})
    min_repeats: int = field(default=3, metadata={"help": "Steps of each at least."})
    seed: int = field(default=0, metadata={"help": "Of weights, catalogue and sequences."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})

    def __post_init__(self) -> None:
        if self.threads < 1 or self.min_repeats < 1:
            raise ValueError("--threads and --min_repeats must be at least 1")
        unknown = set(parsed(self.dtypes)) - set(DTYPES)
        if unknown:
            raise ValueError(f"--dtypes must be of {list(DTYPES)}; got {sorted(unknown)}")


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; returns the rows written."""
    (options,) = parse_recipe((TrainingSpeedArguments,), argv, description=__doc__ or "")
    shapes = [TrainingShape(**mapping("shapes", shape, _SHAPE)) for shape in parsed(options.shapes)]
    check_output(options.results)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `SlateTrainer` has it
    clock = own_clock(options.device, options.threads)
    written = []
    for shape in shapes:
        for name in parsed(options.dtypes):
            rows = _measure(TrainingBench(shape, DTYPES[name], options.device, options.seed), name, clock, options)
            append_rows(rows, options.results)
            written += rows
    return written


def _measure(
    bench: TrainingBench, dtype: str, clock: Callable[[], float], options: TrainingSpeedArguments
) -> list[dict]:
    """One row a system."""
    began = time.perf_counter()
    ceiling = measure_ceilings(options.device, bench.dtype, clock=clock).flops
    timings = interleaved(bench.calls(), min_repeats=options.min_repeats, budget=options.budget, clock=clock)
    ceiling = max(ceiling, measure_ceilings(options.device, bench.dtype, clock=clock).flops)
    print(f"{bench.shape}, {dtype}: {ceiling / 1e9:.1f} GFLOP/s", flush=True)
    rows = []
    for system, name in SYSTEMS.items():
        metrics = _metrics(bench, system, timings, ceiling)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
        print(f"  {system}: {shown}", flush=True)
        rows.append(
            make_row(
                study="speed",
                dataset=str(bench.shape),
                system=name,
                variant=system if dtype == "float32" else f"{system}, {dtype}",
                metrics=metrics,
                seed=options.seed,
                seconds=time.perf_counter() - began,
            )
        )
    return rows


def _metrics(bench: TrainingBench, system: str, timings: dict[str, Timing], ceiling: float) -> dict[str, float]:
    step, collate = timings[system], timings["collate"].median
    whole, reference = step.median + collate, timings[next(iter(SYSTEMS))].median + collate
    return {
        "ms": 1e3 * whole,
        "spread_ms": 1e3 * step.spread,
        "sequences_per_second": bench.shape.batch / whole,
        "targets_per_second": bench.targets / whole,
        "gain": reference / whole,
        "gigaflop": bench.work(system) / 1e9,
        "ceiling_share": bench.work(system) / whole / ceiling,
        "collate_share": collate / whole,
        "machine_gflops": ceiling / 1e9,
    }


if __name__ == "__main__":
    run(main)
