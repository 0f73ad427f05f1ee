"""One rule for every network here: judged on validation at even intervals, the best state kept, stopped without gain.

The standard library alone: the worker of another environment loads this file by its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class KeepBest:
    """Keeps the state with the best validation score and says when to stop.

    Args:
        patience: judgements without a better score before training stops; 0 to never stop early.

    Attributes:
        score: the best score so far, -inf before the first.
        epoch: when it was reached, 0 before the first judgement.
        state: what was kept then.
        history: every (epoch, score).

    Example:
        >>> best = KeepBest(patience=2)
        >>> [best.update(epoch, score, dict) for epoch, score in enumerate([0.1, 0.3, 0.2, 0.3], start=1)]
        [False, False, False, True]
        >>> best.epoch
        2
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.score, self.epoch, self.state = float("-inf"), 0, None
        self.history: list[tuple[int, float]] = []
        self._without_gain = 0

    def update(self, epoch: int, score: float, take_state: Callable[[], Any]) -> bool:
        """Note a score; returns whether to stop.

        Args:
            epoch: number of the epoch that was judged, from 1.
            score: more is better.
            take_state: called for a copy of the state if the score is the best so far.
        """
        self.history.append((epoch, score))
        if score > self.score:
            self.score, self.epoch, self.state = score, epoch, take_state()
            self._without_gain = 0
        else:
            self._without_gain += 1
        return bool(self.patience) and self._without_gain >= self.patience
