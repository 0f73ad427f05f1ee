"""The engine answers as the plain pipeline does, whoever asks at the same time and whatever was kept before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import SlateRecommendationPipeline, UnknownItemError
from higr_hf.serving import EngineClosed, EngineOverloaded, Shapes, SlateEngine, UnknownUserError
from tests.model_tester import ADDED_SCORES, HiGRModelTester
from tests.serving.conftest import same_slates, tokenizer_of, with_features

EVENT = st.fixed_dictionaries(
    {"item": st.integers(0, 23).map(lambda item: f"i{item}")},
    optional={"feedback": st.sampled_from([1.0, 3.0, 5.0]), "timestamp": st.sampled_from([0.0, 30.0, 500.0])},
)


@pytest.fixture(scope="module")
def engine(small):
    model, tokenizer, _ = small
    with SlateEngine(model, tokenizer, max_wait_ms=0) as engine:
        yield engine


def entry(events):
    """The pipeline's input for a list of events."""
    columns = {"history": "item", "feedback": "feedback", "timestamps": "timestamp"}
    columns = {name: [event.get(key) for event in events] for name, key in columns.items()}
    return {
        name: values for name, values in columns.items() if name == "history" or any(v is not None for v in values)
    }


@settings(max_examples=10)  # a slate each, twice
@given(batches=st.lists(st.lists(EVENT, max_size=9), min_size=1, max_size=4))
def test_a_user_s_slates_follow_the_user_s_events(engine, small, batches):
    """Appended event by event, out of order, past `max_history` (12): always what the whole history gives."""
    _, _, pipeline = small
    engine.set_user("ann", [])
    told = []
    for events in batches:
        told += events
        slate = engine.recommend(user="ann", events=events, allow_short=True)
        same_slates(slate, pipeline(entry(told), allow_short=True))


@pytest.mark.parametrize("name", ["prior", "item-item tables", "bidirectional", "no features"])
def test_other_models_keep_users_too(name):
    tester = HiGRModelTester()
    overrides = {
        "prior": with_features(catalog_prior=True, dense_head=False, encoder_layers=2),
        "item-item tables": with_features(**ADDED_SCORES, dense_head=False),  # they read past `max_history`
        "bidirectional": with_features(encoder_attention="bidirectional"),
        "no features": {},
    }[name]
    model, tokenizer = tester.model(**overrides), tokenizer_of(tester)
    pipeline = SlateRecommendationPipeline(model, tokenizer, device="cpu")
    told = [f"i{item}" for item in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7)]  # two more than max_history
    with SlateEngine(model, tokenizer, max_wait_ms=0) as engine:
        engine.set_user("ann", told[:1])
        for count in range(2, len(told) + 1):
            slate = engine.recommend(user="ann", events=[told[count - 1]], slate_size=3)
            same_slates(slate, pipeline(told[:count], slate_size=3))
        stats = engine.stats()
        histories = [told[:count] for count in (0, 3, 14)]  # of unequal length in one batch
        for history, future in zip(histories, [engine.submit(items) for items in histories], strict=True):
            same_slates(future.result(60), pipeline(history))
    # Eleven events encoded beside `<bos>` one by one; from the thirteenth on the window slides and is encoded whole.
    expected = 13 + 2 * 12 if name != "bidirectional" else sum(range(3, 14)) + 2 * 13
    assert stats["encoded_units"] == expected


def test_many_threads_get_their_own_slates(small):
    model, tokenizer, pipeline = small
    requests = [
        {"history": [f"i{item % 24}" for item in range(number, number + number % 11)],
         "slate_size": 1 + number % 3, "num_beams": 1 + 4 * (number % 2), "exclude": [f"i{number % 24}"],
         "slate_mode": ["sequential", "verified", "first_plan"][number % 3]}
        for number in range(24)
    ]  # fmt: skip
    requests[5] |= {"exclude": [], "allowed": ["i1", "i2", "i3", "i12"], "wish": 1}
    # Four of each kind: a batch is full before it starts.
    with (
        SlateEngine(model, tokenizer, max_batch_size=4, max_wait_ms=60_000) as engine,
        ThreadPoolExecutor(len(requests)) as pool,
    ):
        slates = list(pool.map(lambda request: engine.recommend(**request), requests))
        stats = engine.stats()
    assert (stats["answered"], stats["batches"], stats["largest_batch"]) == (24, 6, 4)
    for request, slate in zip(requests, slates, strict=True):
        inputs = {key: request[key] for key in ("history", "exclude", "allowed", "wish") if key in request}
        chosen = {key: request[key] for key in ("slate_size", "num_beams", "slate_mode") if key in request}
        same_slates(slate, pipeline(inputs, **chosen))
        assert [place["title"] for place in slate] == [f"Film {place['item_id'][1:]}" for place in slate]


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_padding_to_shapes_changes_nothing(shaped, small, lengths):
    _, _, pipeline = small
    histories = [[f"i{(7 * number + item) % 24}" for item in range(length)] for number, length in enumerate(lengths)]
    futures = [shaped.submit(history, slate_size=3) for history in histories]
    for history, future in zip(histories, futures, strict=True):
        same_slates(future.result(60), pipeline(history, slate_size=3))


@pytest.fixture(scope="module")
def shaped(small):
    model, tokenizer, _ = small
    with SlateEngine(model, tokenizer, max_wait_ms=5, shapes=Shapes((1, 4), (4, 13))) as engine:
        assert engine.warm_up() == 4
        yield engine


def test_a_short_slate_fails_its_own_request_only(small):
    model, tokenizer, pipeline = small
    few = {"allowed": ["i2", "i3"], "slate_size": 4}
    with SlateEngine(model, tokenizer, max_wait_ms=60_000, max_batch_size=3) as engine:
        refused, short = (engine.submit(["i1"], **few, allow_short=allow_short) for allow_short in (False, True))
        whole = engine.submit(["i4"], slate_size=4)
        same_slates(whole.result(60), pipeline(["i4"], slate_size=4))
        with pytest.raises(ValueError, match="only 2 legal items for a slate of 4"):
            refused.result(60)
        assert {place["item_id"] for place in short.result(60)} == {"i2", "i3"}
        assert engine.stats()["batches"] == 1


def test_no_event_is_lost_between_threads(engine):
    engine.set_user("eve", [])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: engine.append("eve", [f"i{item}"]), range(20)))
    assert engine.append("eve", []) == 20
    assert engine.recommend(user="eve", slate_size=4)


def test_what_is_kept_is_bounded_and_forgotten(small):
    model, tokenizer, pipeline = small
    room = SlateEngine(model, tokenizer)
    row = 3 * room.unit_bytes
    room.close()
    with SlateEngine(model, tokenizer, max_wait_ms=0, max_users=2, cache_bytes=row) as engine:
        for user in ("ann", "ben", "cem"):
            assert engine.set_user(user, ["i1", "i2"]) == 2
        with pytest.raises(UnknownUserError, match="Send the whole history"):
            engine.recommend(user="ann")
        for user in ("ben", "cem", "ben"):
            same_slates(engine.recommend(user=user), pipeline(["i1", "i2"]))
        stats = engine.stats()
        assert (stats["users"], stats["dropped_users"]) == (2, 1)
        assert (stats["encoded_users"], stats["encoded_bytes"], stats["dropped_encodings"]) == (1, row, 2)
        assert engine.forget("ben") and not engine.forget("ben")
        assert engine.stats()["encoded_bytes"] == 0
        with pytest.raises(UnknownUserError):
            engine.append("ben", ["i3"])
        # A history sent along makes a user known, and replaces what was.
        same_slates(engine.recommend(["i5"], user="ben"), pipeline(["i5"]))
        same_slates(engine.recommend(user="ben", exclude_history=False), pipeline(["i5"], exclude_history=False))


def test_a_user_forgotten_while_being_answered_leaves_nothing(small, monkeypatch):
    model, tokenizer, _ = small
    with SlateEngine(model, tokenizer, max_wait_ms=0) as engine:
        engine.set_user("ann", ["i1"])
        encode = engine._encoder.encode

        def forgetful(*arguments):
            rows = encode(*arguments)
            engine.forget("ann")
            return rows

        monkeypatch.setattr(engine._encoder, "encode", forgetful)
        assert engine.recommend(user="ann")
        assert engine.stats()["encoded_users"] == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "Give a history"),
        ({"history": ["i1", "nope"]}, r"history\[1\]: no item"),
        ({"history": "i1"}, "history must be a list"),
        ({"history": ["i1"], "events": ["i2"]}, "events belong to a user"),
        ({"history": ["i1"], "feedback": ["good"]}, "feedback must hold numbers"),
        ({"history": ["i1"], "exclude": 5}, "exclude must be a list"),
        ({"history": ["i1"], "wish": "5"}, "wish must be a feedback level"),
        ({"history": ["i1"], "wish": 9}, "levels of this tokenizer"),
        ({"history": ["i1"], "slate_size": 33}, "slate_size may be at most 32"),
        ({"history": ["i1"], "num_beams": 101}, "num_beams may be at most 100"),
        ({"history": ["i1"], "do_sample": True}, "no setting"),
        ({"history": ["i1"], "user": ""}, "user must be a string"),
        ({"user": "ann", "feedback": [1.0]}, "go with a history"),
    ],
)
def test_bad_requests_never_reach_the_queue(engine, request_, message):
    before = engine.stats()["accepted"]
    with pytest.raises(ValueError, match=message):
        engine.submit(**request_)
    assert engine.stats()["accepted"] == before


def test_bad_events_leave_a_user_as_it_was(engine, small):
    _, _, pipeline = small
    engine.set_user("dan", ["i1"])
    with pytest.raises(UnknownItemError):
        engine.append("dan", ["i2", "nope"])
    with pytest.raises(UnknownItemError):
        engine.recommend(user="dan", events=["i2"], exclude=["nope"])
    same_slates(engine.recommend(user="dan"), pipeline(["i1"]))
    assert engine.append("dan", ["i2"]) == 2


def test_a_full_queue_and_a_slow_answer(small, monkeypatch):
    model, tokenizer, _ = small
    opened, entered = threading.Event(), threading.Event()
    with SlateEngine(model, tokenizer, max_wait_ms=0, max_queue=1) as engine:
        generate = model.generate

        def slow(*arguments, **keywords):
            entered.set()
            assert opened.wait(30)
            return generate(*arguments, **keywords)

        monkeypatch.setattr(model, "generate", slow)
        engine.set_user("ann", ["i1"])
        first = engine.submit(["i1"])
        assert entered.wait(30)
        with pytest.raises((TimeoutError, FutureTimeoutError)):
            engine.recommend(["i2"], timeout=0.01)
        second = engine.submit(["i3"])  # what was given up has left its place
        with pytest.raises(EngineOverloaded):
            engine.submit(user="ann", events=["i4"])
        assert engine.append("ann", []) == 1, "a refused request leaves no events"
        opened.set()
        assert len(first.result(60)) == len(second.result(60)) == 4
    with pytest.raises(EngineClosed):
        engine.recommend(["i1"])
    assert engine.closed


def test_an_engine_needs_a_catalogue_and_shapes_to_compile(small):
    model, tokenizer, _ = small
    with pytest.raises(ValueError, match="compile needs shapes"):
        SlateEngine(model, tokenizer, compile="eager")
    with pytest.raises(ValueError, match="longest shape has 12 units"):
        SlateEngine(model, tokenizer, shapes=Shapes((1,), (4, 12)))
    tester = HiGRModelTester()
    bare = type(model)(tester.config())
    with pytest.raises(ValueError, match="no catalogue"):
        SlateEngine(bare, tokenizer_of(tester))


def test_graphs_are_made_before_the_first_request():
    """With dynamo's own backend, which traces and guards like any other but compiles nothing."""
    tester = HiGRModelTester()
    overrides = with_features(planner_layers=1)
    model, tokenizer = tester.model(**overrides), tokenizer_of(tester)
    pipeline = SlateRecommendationPipeline(tester.model(**overrides), tokenizer, device="cpu")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = torch._dynamo.utils.counters["stats"]
    chosen = {"slate_size": 2, "num_beams": 2}
    with SlateEngine(
        model, tokenizer, max_wait_ms=0, settings=chosen, shapes=Shapes((2,), (13,)), compile="eager"
    ) as engine:
        engine.warm_up()
        graphs = made["unique_graphs"]
        assert graphs > 0
        for history in ([], ["i1"], ["i2", "i3", "i4"], [f"i{item}" for item in range(14)]):
            same_slates(engine.recommend(history), pipeline(history, **chosen))
        assert made["unique_graphs"] == graphs
