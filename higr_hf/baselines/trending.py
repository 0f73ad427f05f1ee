"""What is popular in the days before a request: the control for a model that is told the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from ..configuration_higr import HiGRConfig
from ..trends import fit_trends
from ..trends_higr import NEWEST, TrendScores
from .base import Arrays, ScoringBaseline, check_rows

if TYPE_CHECKING:
    from datasets import Dataset


class Trending(ScoringBaseline):
    """Scores an item by its trend, the same for everybody who asks at one time; see [`TrendScores`].

    Args:
        item_ids: the catalogue; the place in it is the item index.
        days, smoothing, max_days: of [`fit_trends`].
        popularity: add the log of the item's share of all events, which makes the sum that of its share in those days,
            as far as they tell. Without it the trend alone, for mixtures with a system that knows what is popular.

    Example:
        >>> trending = Trending(log.item_ids, days=7).fit(splits["train"])
        >>> trending.recommend([[0, 1]], slate_size=2, times=[1_600_000_000]).shape
        (1, 2)
    """

    kind = "trending"
    reads_time: ClassVar[bool] = True

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        days: int = 7,
        smoothing: float = 10.0,
        max_days: int | None = None,
        popularity: bool = True,
    ) -> None:
        super().__init__(item_ids, days=days, smoothing=smoothing, max_days=max_days, popularity=popularity)
        self.days, self.smoothing, self.max_days, self.popularity = days, smoothing, max_days, popularity
        self._take(0, np.zeros((2, self.num_items), dtype=np.int32))

    def _take(self, start: int, events: np.ndarray) -> None:
        config = HiGRConfig(
            num_items=self.num_items,
            catalog_prior=True,
            trend_days=self.days,
            trend_periods=len(events) - 1,
            trend_start=int(start),
            trend_smoothing=self.smoothing,
        )
        self._trends = TrendScores(config)
        self._trends.events.copy_(torch.from_numpy(np.array(events)))
        counts = self._trends.events[-1].double() + 1
        self._popular = (counts / counts.sum()).log().float() if self.popularity else torch.zeros(self.num_items)

    def fit(self, train: Dataset, validation: Dataset | None = None) -> Trending:
        """Count the events of the training split by item and day."""
        trends = fit_trends(train, self.item_ids, days=self.days, smoothing=self.smoothing, max_days=self.max_days)
        self._take(trends.start, trends.events)
        return self

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """As they are now; see [`ScoringBaseline.scores`]."""
        return self._at([NEWEST] * len(histories))

    def score_blocks(
        self, histories: Sequence[np.ndarray], times: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """The same at the times of the requests."""
        times = [NEWEST] * len(histories) if times is None else list(times)
        for start in range(0, len(histories), self.block_size):
            yield self._at(times[start : start + self.block_size])

    def _at(self, times: Sequence[int]) -> np.ndarray:
        return (self._trends(torch.tensor(times, dtype=torch.long)) + self._popular).numpy()

    def num_parameters(self) -> int:
        """One count an item and day."""
        return self._trends.events.numel()

    def arrays(self) -> Arrays:
        """`start` int64 `[1]` and `events` int32 `[P + 1, N]`."""
        return {"start": np.array([self._trends.config.trend_start]), "events": self._trends.events.numpy()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the counts."""
        days = len(arrays["events"]) if "events" in arrays else 0
        check_rows(self, arrays, start=(1,), events=(days, self.num_items))
        self._take(int(arrays["start"][0]), arrays["events"])
