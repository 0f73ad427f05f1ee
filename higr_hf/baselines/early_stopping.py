"""One rule for every network here: judged on validation at even intervals, the best state kept, stopped without gain.

The standard library alone: the worker of another environment loads this file by its path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Judgement(NamedTuple):
    """A network judged in the middle of its training.

    Attributes:
        epoch: passes over the training data so far, from 1 where only whole epochs are judged.
        score: on validation, more is better.
        training_seconds: processor time of the training so far, judgements left out.
        judging_seconds: processor time of the judgements so far, this one included.
    """

    epoch: float
    score: float
    training_seconds: float
    judging_seconds: float


class TrainingClock:
    """Processor seconds of a training and of its judgements, told apart. It starts when it is made.

    The processor's time, not the wall's: what else runs on the machine takes no part in it. It is the sum over all
    threads of this process, and knows nothing of work on a GPU.

    Args:
        now: what tells the time, in seconds.

    Attributes:
        training: seconds of training up to the last judgement's beginning.
        judging: seconds of judgements that have ended.

    Example:
        >>> clock = TrainingClock(iter([0.0, 5.0, 6.5, 9.5]).__next__)
        >>> clock.begin_judgement()
        >>> clock.end_judgement()
        >>> clock.begin_judgement()
        >>> clock.training, clock.judging
        (8.0, 1.5)
    """

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self._now = now
        self.training = self.judging = 0.0
        self._since = now()

    def begin_judgement(self) -> None:
        """What passed until now was training."""
        self.training += self._lap()

    def end_judgement(self) -> None:
        """What passed since it began was judging; training goes on."""
        self.judging += self._lap()

    def resume(self, training: float, judging: float) -> None:
        """Count on from what another process had counted; what passed in this one until now was neither."""
        self._lap()
        self.training, self.judging = training, judging

    def skip(self) -> None:
        """What passed since the last call was neither, such as a checkpoint's writing."""
        self._lap()

    def _lap(self) -> float:
        now = self._now()
        passed, self._since = now - self._since, now
        return passed


class KeepBest:
    """Keeps the state with the best validation score and says when to stop. Make it when training begins.

    Args:
        patience: judgements without a better score before training stops; 0 to never stop early.
        clock: tells training from judging.

    Attributes:
        score: the best score so far, -inf before the first.
        epoch: when it was reached, 0 before the first judgement.
        state: what was kept then.
        history: every [`Judgement`].

    Example:
        >>> best = KeepBest(patience=2)
        >>> scores = iter([0.1, 0.3, 0.2, 0.3])
        >>> [best.judge(epoch, lambda: next(scores), dict) for epoch in range(1, 5)]
        [False, False, False, True]
        >>> best.epoch, [judgement.score for judgement in best.history]
        (2, [0.1, 0.3, 0.2, 0.3])
    """

    def __init__(self, patience: int, clock: TrainingClock | None = None) -> None:
        self.patience = patience
        self.score, self.epoch, self.state = float("-inf"), 0, None
        self.history: list[Judgement] = []
        self._clock = TrainingClock() if clock is None else clock
        self._without_gain = 0

    def judge(self, epoch: int, judge: Callable[[], float], take_state: Callable[[], Any]) -> bool:
        """Judge and note the score; returns whether to stop.

        Args:
            epoch: number of the epoch that is judged, from 1.
            judge: called for the score, more is better.
            take_state: called for a copy of the state if the score is the best so far.
        """
        self._clock.begin_judgement()
        score = judge()
        if score > self.score:
            self.score, self.epoch, self.state = score, epoch, take_state()
            self._without_gain = 0
        else:
            self._without_gain += 1
        self._clock.end_judgement()
        self.history.append(Judgement(epoch, score, self._clock.training, self._clock.judging))
        return self.done

    @property
    def done(self) -> bool:
        """Whether the judgements so far say to stop."""
        return bool(self.patience) and self._without_gain >= self.patience

    def progress(self) -> dict[str, Any]:
        """What another process needs to judge on, beside the state that was kept: JSON-able."""
        return {
            "score": self.score,
            "epoch": self.epoch,
            "without_gain": self._without_gain,
            "history": [list(judgement) for judgement in self.history],
        }

    def resume(self, progress: dict[str, Any], state: Any) -> None:
        """Take up what [`KeepBest.progress`] of another process said, and the state it had kept."""
        self.score, self.epoch, self.state = progress["score"], progress["epoch"], state
        self._without_gain = progress["without_gain"]
        self.history = [Judgement(*values) for values in progress["history"]]
        if self.history:
            self._clock.resume(*self.history[-1][2:])

    def skip(self) -> None:
        """See [`TrainingClock.skip`]."""
        self._clock.skip()
