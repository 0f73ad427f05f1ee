"""Dynamic micro-batching: many threads ask, one worker answers them together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .errors import EngineClosed, EngineOverloaded

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass
class BatchCounts:
    """What a [`MicroBatcher`] has done so far.

    Attributes:
        accepted, refused: requests that came, and that found the queue full.
        answered, failed, cancelled: requests with a result, with an error, and given up by their caller in the queue.
        batches: calls of the worker's function.
        largest_batch: most requests in one of them.
    """

    accepted: int = 0
    refused: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    batches: int = 0
    largest_batch: int = 0


@dataclass
class _Waiting(Generic[T]):
    request: T
    key: Hashable
    future: Future
    arrived: float


class MicroBatcher(Generic[T]):
    """A bounded queue, and a thread that answers what waits in it, a batch at a time.

    A batch holds requests of one key in the order in which they came. It starts once it is full or its oldest request
    has waited for `max_wait` seconds; a request that came while the worker was busy has usually waited long enough, so
    that under load batches grow by themselves and nobody waits for company.

    Args:
        answer: takes a batch, returns a result for each request, or an exception in its place. When the call itself
            raises, each request of the batch is tried alone, so that nobody fails by another's fault.
        key: what requests must have in common to be answered together.
        max_batch_size: requests a batch.
        max_wait: seconds that the first request of a batch waits for others.
        max_queue: requests that may wait; the one after is refused.

    Raises:
        ValueError: for a size below one, or a negative wait.

    Example:
        >>> with MicroBatcher(lambda batch: [len(text) for text in batch], max_wait=0) as batcher:
        ...     batcher.submit("slate").result()
        5
    """

    def __init__(
        self,
        answer: Callable[[list[T]], Sequence[Any]],
        key: Callable[[T], Hashable] = lambda request: None,
        max_batch_size: int = 32,
        max_wait: float = 0.002,
        max_queue: int = 256,
    ) -> None:
        if max_batch_size < 1 or max_queue < 1 or max_wait < 0:
            raise ValueError(
                "max_batch_size and max_queue must be at least 1 and the wait not negative; got "
                f"{max_batch_size}, {max_queue} and {max_wait}."
            )
        self.max_batch_size, self.max_wait, self.max_queue = max_batch_size, max_wait, max_queue
        self.counts = BatchCounts()
        self._answer, self._key = answer, key
        self._queue: deque[_Waiting[T]] = deque()
        self._changed = threading.Condition()
        self._places_held = 0  # by requests that are being read
        self._closed = False
        self._seconds = 0.0  # a request of a batch takes, a running mean
        self._worker = threading.Thread(target=self._work, name="higr-batches", daemon=True)
        self._worker.start()

    def __enter__(self) -> MicroBatcher[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def closed(self) -> bool:
        """Whether requests are no longer taken."""
        return self._closed

    def submit(self, request: T) -> Future:
        """Queue a request; its future ends with the result or the error. Cancelling it frees its place.

        Raises:
            EngineOverloaded: when the queue is full.
            EngineClosed: after [`MicroBatcher.close`].
        """
        return self.submit_read(lambda: request)

    def submit_read(self, read: Callable[[], T]) -> Future:
        """The same for a request that has yet to be read, in this thread, once there is a place for it.

        A request that is refused costs no work, and what reading it leaves behind is never left by a refused one.
        """
        with self._changed:
            self._check_room()
            self._places_held += 1
        try:
            request = read()
            waiting = _Waiting(request, self._key(request), Future(), time.monotonic())
        except BaseException:
            with self._changed:
                self._places_held -= 1
            raise
        with self._changed:
            self._places_held -= 1
            self._check_open()
            self.counts.accepted += 1
            self._queue.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def close(self, drain: bool = True) -> None:
        """Take no more requests, answer those that wait (or fail them, without `drain`), and end the worker."""
        with self._changed:
            self._closed = True
            if not drain:
                for waiting in self._queue:
                    if waiting.future.set_running_or_notify_cancel():
                        waiting.future.set_exception(EngineClosed("The engine was closed before this was answered."))
                self._queue.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("The engine is closed and takes no more requests.")

    def _check_room(self) -> None:
        self._check_open()
        if len(self._queue) + self._places_held >= self.max_queue:
            self._queue = deque(waiting for waiting in self._queue if not self._is_cancelled(waiting))
        waiting = len(self._queue) + self._places_held
        if waiting >= self.max_queue:
            self.counts.refused += 1
            raise EngineOverloaded(
                f"{waiting} requests are waiting, as many as may: try again later.",
                retry_after=waiting * self._seconds,
            )

    def _is_cancelled(self, waiting: _Waiting[T]) -> bool:
        self.counts.cancelled += waiting.future.cancelled()
        return waiting.future.cancelled()

    def _work(self) -> None:
        while batch := self._next_batch():
            running = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            self.counts.cancelled += len(batch) - len(running)
            if running:
                began = time.monotonic()
                self._resolve(running)
                mine = (time.monotonic() - began) / len(running)
                self._seconds = mine if not self._seconds else 0.8 * self._seconds + 0.2 * mine

    def _next_batch(self) -> list[_Waiting[T]]:
        """The oldest requests of one key, once they are enough or have waited; empty when all is done."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return []
                first = self._queue[0]
                left = first.arrived + self.max_wait - time.monotonic()
                if self._closed or left <= 0 or self._alike(first.key) >= self.max_batch_size:
                    break
                self._changed.wait(left)
            batch: list[_Waiting[T]] = []
            rest: deque[_Waiting[T]] = deque()
            for waiting in self._queue:
                mine = waiting.key == first.key and len(batch) < self.max_batch_size
                (batch if mine else rest).append(waiting)
            self._queue = rest
            return batch

    def _alike(self, key: Hashable) -> int:
        return sum(waiting.key == key for waiting in self._queue)

    def _resolve(self, batch: list[_Waiting[T]]) -> None:
        """Answer a batch; when that fails as a whole, each of its requests alone."""
        self.counts.batches += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(batch))
        try:
            results = list(self._answer([waiting.request for waiting in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for a batch of {len(batch)} requests.")
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._resolve([waiting])
                return
            if not isinstance(error, ValueError):
                logger.exception("A request failed.")
            results = [error]
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self.counts.failed += 1
                waiting.future.set_exception(result)
            else:
                self.counts.answered += 1
                waiting.future.set_result(result)


__all__ = ["BatchCounts", "MicroBatcher"]
