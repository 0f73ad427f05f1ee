"""The queue: what is answered together, what is refused, and who pays for whose errors."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.serving import EngineClosed, EngineOverloaded
from higr_hf.serving.batching import MicroBatcher


class Gate:
    """An answering function that records its batches and holds each until it is opened."""

    def __init__(self, open_: bool = False) -> None:
        self.batches: list[list] = []
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        if open_:
            self.opened.set()

    def __call__(self, batch: list) -> list:
        self.batches.append(list(batch))
        self.entered.release()
        assert self.opened.wait(30)
        return [request * 2 for request in batch]


def test_what_waits_is_answered_together_and_in_order():
    gate = Gate()
    with MicroBatcher(gate, max_wait=0, max_batch_size=3) as batcher:
        futures = [batcher.submit(1)]
        gate.entered.acquire()  # the worker is busy with the first
        futures += [batcher.submit(number) for number in range(2, 7)]
        assert batcher.waiting == 5
        gate.opened.set()
        assert [future.result(30) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert gate.batches == [[1], [2, 3, 4], [5, 6]]
    assert (batcher.counts.accepted, batcher.counts.answered, batcher.counts.batches) == (6, 6, 3)
    assert batcher.counts.largest_batch == 3


def test_a_request_waits_for_company_until_the_batch_is_full():
    gate = Gate(open_=True)
    with MicroBatcher(gate, max_wait=60, max_batch_size=2) as batcher:
        futures = [batcher.submit(1), batcher.submit(2)]
        assert [future.result(30) for future in futures] == [2, 4]
    assert gate.batches == [[1, 2]]


def test_a_lone_request_is_answered_after_its_wait():
    with MicroBatcher(Gate(open_=True), max_wait=0.05, max_batch_size=9) as batcher:
        assert batcher.submit(1).result(30) == 2


def test_only_requests_of_one_kind_share_a_batch():
    gate = Gate()
    with MicroBatcher(gate, key=lambda request: request % 2, max_wait=0) as batcher:
        futures = [batcher.submit(0)]
        gate.entered.acquire()
        futures += [batcher.submit(number) for number in (1, 2, 3, 4)]
        gate.opened.set()
        assert [future.result(30) for future in futures] == [0, 2, 4, 6, 8]
    assert gate.batches == [[0], [1, 3], [2, 4]]


def test_a_full_queue_refuses_and_says_when_to_return():
    gate = Gate()
    with MicroBatcher(gate, max_wait=0, max_queue=2) as batcher:
        first = batcher.submit(1)
        gate.entered.acquire()
        waiting = [batcher.submit(2), batcher.submit(3)]
        read = []
        with pytest.raises(EngineOverloaded, match="2 requests are waiting") as error:
            batcher.submit_read(lambda: read.append(4))
        assert error.value.retry_after >= 0 and not read, "a request that is refused is not read"
        assert batcher.counts.refused == 1
        gate.opened.set()
        assert [future.result(30) for future in (first, *waiting)] == [2, 4, 6]
        assert batcher.submit(5).result(30) == 10


def test_a_request_that_is_being_read_holds_its_place():
    with MicroBatcher(Gate(open_=True), max_wait=0, max_queue=1) as batcher:

        def read():
            with pytest.raises(EngineOverloaded):
                batcher.submit(1)
            return 2

        assert batcher.submit_read(read).result(30) == 4
        for _ in range(2):  # one that cannot be read gives its place back
            with pytest.raises(KeyError):
                batcher.submit_read(lambda: {}["nothing"])
        assert batcher.submit(3).result(30) == 6


def test_a_request_that_was_given_up_frees_its_place():
    gate = Gate()
    with MicroBatcher(gate, max_wait=0, max_queue=2) as batcher:
        first = batcher.submit(1)
        gate.entered.acquire()
        given_up, kept = batcher.submit(2), batcher.submit(3)
        assert given_up.cancel()
        last = batcher.submit(4)
        assert last.cancel()
        gate.opened.set()
        assert (first.result(30), kept.result(30)) == (2, 6)
    assert gate.batches == [[1], [3]] and batcher.counts.cancelled == 2


def test_one_request_s_error_is_its_own():
    def answer(batch):
        if "down" in batch:
            raise OSError("no such thing")
        return [ValueError("bad") if request == "bad" else request.upper() for request in batch]

    with MicroBatcher(answer, max_wait=0.1, max_batch_size=4) as batcher:
        futures = [batcher.submit(text) for text in ("a", "bad", "down", "b")]
        assert [futures[0].result(30), futures[3].result(30)] == ["A", "B"]
        with pytest.raises(ValueError, match="bad"):
            futures[1].result(30)
        with pytest.raises(OSError, match="no such thing"):
            futures[2].result(30)
        assert (batcher.counts.answered, batcher.counts.failed) == (2, 2)


def test_too_few_results_are_an_error_and_not_a_hang():
    with MicroBatcher(lambda batch: [], max_wait=0) as batcher, pytest.raises(RuntimeError, match="0 results"):
        batcher.submit(1).result(30)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_fails_what_waits(drain):
    gate = Gate()
    batcher = MicroBatcher(gate, max_wait=60, max_batch_size=1)
    first = batcher.submit(1)
    gate.entered.acquire()
    second = batcher.submit(2)
    closing = threading.Thread(target=batcher.close, args=(drain,))
    closing.start()
    while not batcher.closed:
        time.sleep(0.001)
    with pytest.raises(EngineClosed):
        batcher.submit(3)
    gate.opened.set()
    closing.join(30)
    assert not closing.is_alive() and first.result(30) == 2
    if drain:
        assert second.result(30) == 4
    else:
        with pytest.raises(EngineClosed, match="before this was answered"):
            second.result(30)
    batcher.close()  # closing twice is no error


@given(requests=st.lists(st.integers(0, 3), max_size=30), size=st.integers(1, 5))
def test_every_request_gets_its_own_answer(requests, size):
    seen = []

    def answer(batch):
        assert len(batch) <= size and len({kind for kind, _ in batch}) == 1
        seen.extend(batch)
        return [(kind, number, "done") for kind, number in batch]

    with MicroBatcher(
        answer, key=lambda request: request[0], max_batch_size=size, max_wait=0, max_queue=99
    ) as batcher:
        futures = [batcher.submit((kind, number)) for number, kind in enumerate(requests)]
        assert [future.result(30) for future in futures] == [(k, n, "done") for n, k in enumerate(requests)]
    for kind in range(4):  # nobody is overtaken by one of the same kind
        numbers = [number for k, number in seen if k == kind]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("wrong", [{"max_batch_size": 0}, {"max_queue": 0}, {"max_wait": -1}])
def test_bounds_that_cannot_hold(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        MicroBatcher(list, **wrong)
