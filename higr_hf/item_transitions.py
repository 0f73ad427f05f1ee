"""The moments of a regression of next items on recency-weighted histories, without writing its rows down.

Row p of the regression holds what position p of a user's sequence has seen: an event that a events came after weighs
`exp(−a/τ)`, scaled so that the squares sum to 1; its target holds the next M items. A log has as many rows as events,
each with up to H numbers, but the normal equations need only their sums of products, and those can be had by *pairs
of events*: two events d apart meet at every position behind both of them, and what they add there depends on d, on
where the newer one stands while the history is still growing, and on how many positions follow, so that a small table
gives the sum over all of them. That makes H additions an event in place of H², and no product of sparse matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import scipy.sparse

_LISTS_AT_ONCE = 16384
"""Rows of a list regression that are written down together."""


def transition_moments(
    items: np.ndarray, lengths: np.ndarray, size: int, decays: Sequence[float], slate_size: int, max_events: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs × inputs and inputs × targets, summed over every position of every sequence that has a past.

    Takes `(C²·H + C·(H + M))` additions an event for C decays and histories of H events.

    Args:
        items (`int64 [E]`): the sequences' items, from 0 to `size - 1`, oldest first, one sequence after the other.
        lengths (`int64 [S]`): events of each sequence.
        size: n, the number of items.
        decays: τ of every channel, in events.
        slate_size: M, how many of the next items a position is to tell.
        max_events: H, newest events of a position that are read.

    Returns:
        `X.T @ X`, float32 `[C·n, C·n]`, and `X.T @ Y`, float32 `[C·n, n]`; channel c has rows `c·n … c·n + n - 1`.

    Example:
        >>> gram, cross = transition_moments(np.array([0, 1, 0]), np.array([3]), 2, [1.0], slate_size=1, max_events=2)
        >>> bool(np.isclose(gram[0, 0], 1 + 1 / (1 + np.e**2)))  # item 0 alone, then one event before item 1
        True
    """
    items, lengths = np.asarray(items, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    # By item: what one item's events add falls into few rows of the sums, which then stay in the processor's cache.
    older = np.argsort(items, kind="stable")
    place, following = older - first[older], np.repeat(lengths, lengths)[older]
    following -= place + 1
    kernels = [_Kernel(decay, max_events) for decay in decays]
    meeting = [[kernel.together(other) for other in kernels] for kernel in kernels]
    width = len(decays) * size
    gram, cross = np.zeros((width, width), dtype=np.float32), np.zeros((width, size), dtype=np.float32)
    for lag in range(max_events + slate_size):
        kept = following >= max(lag, 1)  # the newer event exists, and something follows the older one
        older, place, following = older[kept], place[kept], following[kept]
        row, newer = items[older], items[older + lag]
        if lag:
            target, cell = np.minimum(place + lag, max_events + slate_size - 1), row * size + newer
            for channel, kernel in enumerate(kernels):
                sums = cross[channel * size :].reshape(-1)
                np.add.at(sums, cell, kernel.before_target(lag, slate_size).take(target))
        if lag >= max_events:
            continue
        met = following > lag  # a position that has both events behind it and a target
        history = np.minimum(place[met] + lag, max_events - 1)
        history *= max_events
        history += np.minimum(following[met] - lag - 1, max_events - 1 - lag)
        cell = row[met] * width + newer[met]
        for (a, kernel), b in product(enumerate(kernels), range(len(kernels))):
            sums = gram.reshape(-1)[a * size * width + b * size :]
            np.add.at(sums, cell, (kernel.weights[lag] * meeting[a][b]).astype(np.float32).take(history))
        if lag == 0:
            itself = gram.copy()
            gram[:] = 0
    gram += gram.T.copy()
    gram += itself
    return gram, cross


def list_moments(
    histories: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    size: int,
    decays: Sequence[float],
    max_events: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs × inputs and inputs × targets of the regression whose rows are real lists, each told from its history.

    A row holds the newest H events before the list, weighted as above; its target holds the list's items.

    Args:
        histories (`(int64 [E], int64 [R])`): items before each list, oldest first, from 0 to `size - 1`, and how many
            there are.
        targets (`(int64 [F], int64 [R])`): the lists themselves in the same form.
        size: n, the number of items.
        decays: τ of every channel, in events.
        max_events: H, newest events of a history that are read.

    Returns:
        `X.T @ X`, float32 `[C·n, C·n]`, and `X.T @ Y`, float32 `[C·n, n]`; channel c has rows `c·n … c·n + n - 1`.

    Example:
        >>> before, lists = (np.array([0, 1]), np.array([2])), (np.array([1]), np.array([1]))
        >>> gram, cross = list_moments(before, lists, 2, [1.0], max_events=5)
        >>> bool(np.isclose(cross[1, 1], 1 / (1 + np.e**-2) ** 0.5))
        True
    """
    width = len(decays) * size
    gram, cross = np.zeros((width, width), dtype=np.float32), np.zeros((width, size), dtype=np.float32)
    ends = [np.r_[0, np.cumsum(lengths)] for _, lengths in (histories, targets)]
    kernels = [_Kernel(decay, max_events) for decay in decays]
    for first in range(0, len(histories[1]), _LISTS_AT_ONCE):
        last = min(first + _LISTS_AT_ONCE, len(histories[1]))
        sides = []
        for (items, lengths), end in zip((histories, targets), ends, strict=True):
            place = np.arange(end[first], end[last])
            row = np.repeat(np.arange(last - first), lengths[first:last])
            sides.append((row, items[place], end[first + 1 :][row] - 1 - place))
        read = sides[0][2] < max_events
        row, item, age = (values[read] for values in sides[0])
        length, shape = np.bincount(row, minlength=last - first), (last - first, size)
        weights = [kernel.weights[age] * kernel.scale[length[row] - 1] for kernel in kernels]
        blocks = [scipy.sparse.csr_matrix((weight, (row, item)), shape, dtype=np.float32) for weight in weights]
        inputs = scipy.sparse.hstack(blocks, format="csr")
        row, item, _ = sides[1]
        wanted = scipy.sparse.csr_matrix((np.ones(len(row)), (row, item)), shape, dtype=np.float32)
        gram += (inputs.T @ inputs).toarray()
        cross += (inputs.T @ wanted).toarray()
    return gram, cross


class _Kernel:
    """What a decay makes of a history of at most `max_events` events.

    Attributes:
        weights (`float64 [H]`): of an event by its age, before scaling.
        scale (`float64 [H]`): of a history of 1, 2, … H events, which gives its weights a sum of squares of 1.
    """

    def __init__(self, decay: float, max_events: int) -> None:
        self.weights = np.exp(-np.arange(max_events) / decay)
        self.scale = 1 / np.sqrt(np.cumsum(self.weights**2))

    def together(self, other: _Kernel) -> np.ndarray:
        """What an event adds to the products of two channels while it ages.

        Returns:
            float64 `[H, H]`: at place j (H - 1 for all later ones), summed over its first k + 1 positions.
        """
        ages = np.arange(len(self.weights))
        events = np.minimum(ages[:, None] + ages, len(ages) - 1)
        products = (self.weights * other.weights)[None] * (self.scale * other.scale)[events]
        return np.cumsum(products, axis=1)

    def before_target(self, lag: int, slate_size: int) -> np.ndarray:
        """Weight of the event `lag` before a target, summed over the positions that are to tell that target.

        Returns:
            float32 `[H + M]`: by the target's place, the last one for all later ones.
        """
        longest = len(self.weights)
        total = np.zeros(longest + slate_size)
        for ahead in range(slate_size):  # the position stands so many events before the target
            age = lag - ahead - 1
            if 0 <= age < longest:
                events = np.clip(np.arange(len(total)) - ahead, 1, longest)
                total += self.weights[age] * self.scale[events - 1]
        return total.astype(np.float32)


__all__ = ["list_moments", "transition_moments"]
