"""Two baselines' scores added: the control that asks whether a linear model knows what a network does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .base import Arrays, ScoringBaseline, baseline_class

if TYPE_CHECKING:
    from datasets import Dataset


class Mixture(ScoringBaseline):
    """Scores of the first baseline + `weight` × scores of the second.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        first, second: fitted baselines of that catalogue; a loaded mixture brings its own.
        weight: of the second one's scores. Tune it on validation: the two have scales of their own.
        parts: kinds and settings of the two, for loading.

    Raises:
        ValueError: for baselines of another catalogue.

    Example:
        >>> ease, other = EASE(log.item_ids, l2=10.0), EASE(log.item_ids, l2=500.0)
        >>> mixture = Mixture(log.item_ids, first=ease, second=other, weight=2.0).fit(splits["train"])
        >>> mixture.recommend([[0, 1]], slate_size=2).shape
        (1, 2)
    """

    kind = "mixture"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        first: ScoringBaseline | None = None,
        second: ScoringBaseline | None = None,
        weight: float = 1.0,
        parts: Sequence[dict] | None = None,
    ) -> None:
        if first is None or second is None:
            if parts is None:
                raise ValueError("A mixture needs two baselines.")
            first, second = (baseline_class(part["kind"])(item_ids, **part["settings"]) for part in parts)
        for part in (first, second):
            if part.item_ids != list(item_ids):
                raise ValueError(f"The {part.kind} has another catalogue than the mixture.")
        parts = [{"kind": part.kind, "settings": part.settings} for part in (first, second)]
        super().__init__(item_ids, weight=weight, parts=parts)
        self.first, self.second, self.weight = first, second, weight

    @property
    def reads_time(self) -> bool:  # type: ignore[override]
        """Whether either part does."""
        return self.first.reads_time or self.second.reads_time

    def fit(self, train: Dataset, validation: Dataset | None = None) -> Mixture:
        """Fit both parts; fitted ones can be mixed without it."""
        self.first.fit(train, validation)
        self.second.fit(train, validation)
        return self

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See [`ScoringBaseline.scores`]; an item that either part cannot score cannot be recommended."""
        return self.first.scores(histories) + np.float32(self.weight) * self.second.scores(histories)

    def score_blocks(
        self, histories: Sequence[np.ndarray], times: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """The same, a block of users at a time."""
        blocks = zip(
            self.first.score_blocks(histories, times), self.second.score_blocks(histories, times), strict=True
        )
        return (first + np.float32(self.weight) * second for first, second in blocks)

    def num_parameters(self) -> int:
        """Of both parts, and the weight."""
        return self.first.num_parameters() + self.second.num_parameters() + 1

    def arrays(self) -> Arrays:
        """Of both parts, under `first.` and `second.`."""
        parts = {"first": self.first, "second": self.second}
        return {f"{side}.{name}": array for side, part in parts.items() for name, array in part.arrays().items()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up both parts."""
        for side, part in (("first.", self.first), ("second.", self.second)):
            part.load_arrays({n.removeprefix(side): array for n, array in arrays.items() if n.startswith(side)})
