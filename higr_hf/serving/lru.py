"""A thread-safe dictionary of bounded cost that drops what was least recently used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedLRU(Generic[K, V]):
    """Values by key, the least recently used dropped once their costs exceed a bound.

    Args:
        max_cost: what the values may cost together; a value that costs more by itself is not kept.
        cost: of one value; 1 a value by default.

    Example:
        >>> kept = BoundedLRU(max_cost=2)
        >>> kept.put("a", 1), kept.put("b", 2), kept.get("a"), kept.put("c", 3)
        (True, True, 1, True)
        >>> kept.get("b") is None, len(kept), kept.dropped
        (True, 2, 1)
    """

    def __init__(self, max_cost: int, cost: Callable[[V], int] = lambda value: 1) -> None:
        if max_cost < 0:
            raise ValueError(f"The bound must not be negative; got {max_cost}.")
        self.max_cost, self.dropped = max_cost, 0
        self._cost_of, self._cost = cost, 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def cost(self) -> int:
        """Of all values that are kept."""
        return self._cost

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the most recently used; None where there is none."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> bool:
        """Keep a value in place of the key's last one; False where it alone exceeds the bound."""
        with self._lock:
            self._remove(key)
            if self._cost_of(value) > self.max_cost:
                return False
            self._values[key] = value
            self._cost += self._cost_of(value)
            while self._cost > self.max_cost:
                self._remove(next(iter(self._values)))
                self.dropped += 1
            return True

    def pop(self, key: K) -> V | None:
        """Drop a key; its value, or None where there is none."""
        with self._lock:
            return self._remove(key)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._values.clear()
            self._cost = 0

    def _remove(self, key: K) -> V | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._cost -= self._cost_of(value)
        return value


__all__ = ["BoundedLRU"]
