from __future__ import annotations

import pytest
import torch

from higr_hf.speed import Timing, interleaved, measure_ceilings, peak_memory


def test_calls_take_turns_and_only_they_are_timed():
    order, now = [], [0.0]

    def call(name: str, seconds: float):
        def work() -> None:
            order.append(name)
            now[0] += seconds

        return work

    timings = interleaved(
        {"a": call("a", 1.0), "b": call("b", 3.0)}, min_repeats=2, max_repeats=4, budget=4.0, clock=lambda: now[0]
    )
    assert "".join(order) == "ab" + "abab" + "ab", "a warm-up, two rounds, and one until eight seconds are over"
    assert timings == {"a": Timing((1.0,) * 3), "b": Timing((3.0,) * 3)}


def test_median_and_spread_by_hand():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0))
    assert (timing.median, timing.spread) == (3.0, 2.0)


def test_gains_compare_calls_of_one_round():
    flat, once = Timing((8.0, 30.0, 40.0)), Timing((2.0, 10.0, 8.0))
    assert once.gains(flat) == (3.5, 4.0, 4.5)
    assert flat.gains(flat) == (1.0, 1.0, 1.0)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="min_repeats"):
        interleaved({}, min_repeats=3, max_repeats=2)


def test_memory_at_its_highest_not_in_all():
    kept = torch.ones(10**6)

    def call() -> None:
        first = kept + 1
        second = first + 1
        del first
        third = second + 1
        del second, third
        torch.ones(1000)

    assert peak_memory(call) == pytest.approx(8.0, abs=0.01)


def test_ceilings_are_those_of_a_machine():
    ceilings = measure_ceilings(size=64, megabytes=1, repeats=2)
    assert 1e6 < ceilings.flops < 1e15 and 1e6 < ceilings.bandwidth < 1e14
    assert ceilings.floor(ceilings.flops, 0) == pytest.approx(1)
