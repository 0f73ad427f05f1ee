"""The closed loop: who is counted, and how errors come out."""

from __future__ import annotations

import itertools
import math

import pytest

from higr_hf.speed.load import Load, Refused, closed_loop


def test_every_client_asks_one_call_at_a_time():
    active, most = [0, 0, 0], [0, 0, 0]

    def client(number):
        def call():
            active[number] += 1
            most[number] = max(most[number], active[number])
            active[number] -= 1

        return call

    load = closed_loop([client(number) for number in range(3)], seconds=0.05)
    assert most == [1, 1, 1] and load.refused == 0
    assert load.per_second == len(load.latencies) / load.seconds > 0


def test_refusals_are_counted_and_not_timed():
    count = itertools.count()

    def call():
        if next(count) % 2:
            raise Refused

    load = closed_loop([call], seconds=0.02)
    assert load.refused in (len(load.latencies), len(load.latencies) - 1)


def test_an_error_ends_the_loop():
    def call():
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        closed_loop([call, lambda: None], seconds=60)


def test_percentiles():
    load = Load(latencies=tuple(number / 100 for number in range(101)), refused=1, seconds=2.0)
    assert (load.percentile(50), load.percentile(99)) == (0.5, 0.99)
    assert math.isnan(Load((), 3, 1.0).percentile(99))
