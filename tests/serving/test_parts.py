"""The engine's small parts: bounded stores, events, settings, shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.serving import Shapes, SlateSettings
from higr_hf.serving.histories import MAX_EVENTS, History
from higr_hf.serving.lru import BoundedLRU


@given(st.lists(st.tuples(st.sampled_from(["get", "put", "pop"]), st.integers(0, 4), st.integers(0, 9))))
def test_the_store_is_a_dictionary_that_forgets_the_oldest(steps):
    store: BoundedLRU[int, int] = BoundedLRU(10, cost=lambda value: value)
    expected: dict[int, int] = {}
    for action, key, value in steps:
        if action == "get":
            assert store.get(key) == expected.get(key)
            if key in expected:
                expected[key] = expected.pop(key)
        elif action == "pop":
            assert store.pop(key) == expected.pop(key, None)
        else:
            assert store.put(key, value)
            expected.pop(key, None)
            expected[key] = value
            while sum(expected.values()) > 10:
                expected.pop(next(iter(expected)))
        assert (len(store), store.cost) == (len(expected), sum(expected.values()))


def test_a_value_that_alone_is_too_large_is_not_kept():
    store: BoundedLRU[str, int] = BoundedLRU(5, cost=lambda value: value)
    assert store.put("a", 5) and not store.put("a", 6)
    assert store.get("a") is None and store.cost == 0
    store.put("b", 1)
    store.clear()
    assert (len(store), store.cost) == (0, 0)
    with pytest.raises(ValueError, match="not be negative"):
        BoundedLRU(-1)


def test_events_carry_what_is_known_of_them():
    history = History.of(["a", "b"])
    assert history.entry() == {"history": ["a", "b"]}
    rated = history.extended([{"item": "c", "feedback": 5.0}])
    assert rated.entry() == {"history": ["a", "b", "c"], "feedback": [None, None, 5.0]}
    timed = rated.extended(["d", {"item": "e", "timestamp": 9.0}])
    assert timed.feedback == (None, None, 5.0, None, None) and timed.timestamps == (None, None, None, None, 9.0)
    assert history.entry() == {"history": ["a", "b"]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: History.of("ab"), "history must be a list"),
        (lambda: History.of(7), "history must be a list"),
        (lambda: History.of(["a"], feedback=5), "feedback must be a list"),
        (lambda: History.of(["a"], timestamps=[1.0, 2.0]), "timestamps has 2 values for 1 items"),
        (lambda: History.of(["a"] * (MAX_EVENTS + 1)), "Give the newest"),
        (lambda: History.of([]).extended("a"), "events must be a list"),
        (lambda: History.of([]).extended([{"feedback": 1}]), r"events\[0\]"),
        (lambda: History.of([]).extended(["a", {"item": "b", "rating": 1}]), r"events\[1\]"),
        (lambda: SlateSettings(slate_size=0), "slate_size"),
        (lambda: SlateSettings(slate_size=True), "slate_size"),
        (lambda: SlateSettings(num_beams="5"), "num_beams"),
        (lambda: SlateSettings(num_alternates=-1), "num_alternates"),
        (lambda: SlateSettings(allow_short=1), "allow_short"),
        (lambda: SlateSettings(slate_mode="best"), "slate_mode"),
        (lambda: SlateSettings(rerank_weight="1"), "rerank_weight"),
        (lambda: Shapes((), (1,)), "rows must hold"),
        (lambda: Shapes((1,), (4, 2)), "units must hold"),
        (lambda: Shapes((1, 4), (8,)).rows_for(5), "5 rows fit none"),
    ],
)
def test_what_cannot_be_meant_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_requests_that_decode_alike_are_batched_together():
    one, two = SlateSettings(slate_size=3), SlateSettings(slate_size=3, exclude_history=False, num_alternates=0)
    assert one.decoding() == two.decoding() == (("slate_size", 3),)
    assert one.decoding() != SlateSettings(slate_size=3, num_beams=2).decoding()


@given(st.integers(1, 300))
def test_the_smallest_shape_that_holds(count):
    shapes = Shapes((1, 8, 300), (3, 301))
    assert shapes.rows_for(count) == min(size for size in shapes.rows if size >= count)
    assert shapes.units_for(count) == min(size for size in shapes.units if size >= count)
