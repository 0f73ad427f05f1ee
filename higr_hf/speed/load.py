"""Load in a closed loop: so many clients, each of which asks again as soon as it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


class Refused(Exception):
    """Raised by a client's call that was turned away: counted, and not timed."""


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        latencies: seconds of every answered call.
        refused: calls that were turned away.
        seconds: from the first call to the end of the last.
    """

    latencies: tuple[float, ...]
    refused: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Answered calls a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which so many per cent of the answered calls were answered; NaN where none was."""
        return float(np.percentile(self.latencies, share)) if self.latencies else float("nan")


def closed_loop(clients: Sequence[Callable[[], object]], seconds: float, pause: float = 0.0) -> Load:
    """Let clients call, each in a thread of its own and one call at a time.

    Args:
        clients: what each client calls; it raises [`Refused`] where it was turned away.
        seconds: after which no call begins, but for each client's first.
        pause: seconds that a client waits after it was turned away.

    Raises:
        Exception: whatever else a call raised, once all clients have stopped.

    Example:
        >>> load = closed_loop([lambda: None, lambda: None], seconds=0.01)
        >>> load.refused, len(load.latencies) >= 2
        (0, True)
    """
    latencies: list[list[float]] = [[] for _ in clients]
    refused = [0] * len(clients)
    errors: list[BaseException] = []
    start = threading.Barrier(len(clients) + 1)
    began = 0.0

    def run(number: int) -> None:
        start.wait()
        while True:
            asked = time.perf_counter()
            try:
                clients[number]()
            except Refused:
                refused[number] += 1
                time.sleep(pause)
            except BaseException as error:
                errors.append(error)
            else:
                latencies[number].append(time.perf_counter() - asked)
            if errors or time.perf_counter() - began >= seconds:
                return

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    start.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Load(tuple(x for mine in latencies for x in mine), sum(refused), time.perf_counter() - began)


__all__ = ["Load", "Refused", "closed_loop"]
