"""The counted work of training against what torch counts, and what is compared."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from higr_hf import HiGRConfig
from higr_hf.speed.training_systems import SYSTEMS, TrainingBench, TrainingShape
from higr_hf.speed.training_work import training_work

SHAPE = TrainingShape(batch=3, num_items=40, codebook_size=4, slate_size=3, history=7, num_starts=4, num_windows=2)


@pytest.fixture(scope="module")
def bench() -> TrainingBench:
    return TrainingBench(SHAPE)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_counted_operations_are_those_of_a_step(bench, system):
    bench.model(system).set_attn_implementation("eager")  # whose products torch counts
    with FlopCounterMode(display=False) as counter:
        bench.step(system)
    found = counter.get_total_flops()
    # The prior scores the catalogue a second time, which is no work, and adds up one product in place, which torch
    # does not count: the same number.
    assert bench.work(system) == found


def test_a_generator_without_context_takes_less():
    sizes = {"batch": 2, "units": 9, "queries": 5}
    with_context, without = (
        training_work(HiGRConfig.from_preset("tiny", generator_context=context), **sizes) for context in (True, False)
    )
    slots, width = 2 * 5 * 3, 64
    assert with_context - without == 3 * (4 * (2 * 9 + slots) * width**2 + 4 * slots * 9 * width)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_the_models_are_of_one_size(preset):
    bench = TrainingBench(dataclasses.replace(SHAPE, preset=preset))
    sizes = {system: sum(weights.numel() for weights in bench.model(system).parameters()) for system in SYSTEMS}
    assert max(sizes.values()) < 1.05 * min(sizes.values()), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_learn_the_batch(dtype):
    bench = TrainingBench(SHAPE, dtype)
    assert bench.targets == int((bench.batch["slate_queries"][..., 4] >= 0).sum()) > 3 * 4
    for system in SYSTEMS:
        losses = [bench.step(system).item() for _ in range(20)]
        assert losses[-1] < losses[0], system
