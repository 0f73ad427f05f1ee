"""Timing several systems in turn, so that whatever the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls.

    Attributes:
        seconds: one entry a call.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Distance between the quartiles, in seconds."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(high - low)

    def gains(self, other: Timing) -> tuple[float, float, float]:
        """How many times longer another call took, round by round: lower quartile, median and upper quartile.

        Example:
            >>> Timing((1.0, 2.0, 4.0)).gains(Timing((2.0, 6.0, 16.0)))
            (2.5, 3.0, 3.5)
        """
        ratios = np.asarray(other.seconds) / np.asarray(self.seconds)
        low, median, high = np.percentile(ratios, [25, 50, 75])
        return float(low), float(median), float(high)


def own_clock(device: str = "cpu", threads: int = 1) -> Callable[[], float]:
    """The process's own seconds for one thread on a CPU, so that what else runs there takes no part; else the wall's.

    Example:
        >>> own_clock("cpu", threads=1) is time.process_time, own_clock("cpu", threads=2) is time.perf_counter
        (True, True)
    """
    return time.process_time if device == "cpu" and threads == 1 else time.perf_counter


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    min_repeats: int = 5,
    max_repeats: int = 50,
    budget: float = 2.0,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time calls in turn: one of each, then again one of each.

    Args:
        calls: name -> what is timed, without arguments.
        min_repeats: rounds at least.
        max_repeats: rounds at most.
        budget: seconds for every name on average, after which no further round begins.
        warmup: calls of each that are not counted.
        clock: what tells the time.

    Returns:
        Name -> [`Timing`].

    Raises:
        ValueError: for counts below one.

    Example:
        >>> timings = interleaved({"a": lambda: None, "b": lambda: None}, min_repeats=3, max_repeats=3)
        >>> {name: len(timing.seconds) for name, timing in timings.items()}
        {'a': 3, 'b': 3}
    """
    if not 1 <= min_repeats <= max_repeats or warmup < 0:
        raise ValueError(f"1 <= min_repeats <= max_repeats must hold; got {min_repeats} and {max_repeats}.")
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    # A collection in the middle of a call would be charged to it.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for number in range(max_repeats):
            if number >= min_repeats and clock() - began > budget * len(calls):
                break
            for name, call in calls.items():
                _wait_for_device()
                start = clock()
                call()
                _wait_for_device()
                seconds[name].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_memory(call: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Memory that the tensors of one call take at its highest, beyond what was there before, in 10^6 bytes.

    Args:
        call: what is measured, without arguments.
        device: whose memory.

    Example:
        >>> round(peak_memory(lambda: torch.ones(1000, 1000).sum()))
        4
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        call()
    # The process's own high-water mark would show what the allocator keeps, not what a call needs.
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / 1e6


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():  # a machine may have a GPU that nothing here uses
        torch.cuda.synchronize()
