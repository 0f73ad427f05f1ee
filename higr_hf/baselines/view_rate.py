"""How often an item that was shown became an effective view: the control for a model that is aligned towards views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data.embeddings import training_sequences, training_views
from .base import Arrays, ScoringBaseline, check_rows

if TYPE_CHECKING:
    from datasets import Dataset


class ViewRate(ScoringBaseline):
    r"""Scores an item by `log((v + κ · p) / ((n + κ) · p))`, the same for everybody.

    The item has n training events, v of them effective views; p is the share of views among all events. An item
    without events scores 0, one of views alone at most -log p. Added to another system's scores it turns "shown next"
    into "viewed next", as far as that is the item's doing and nobody's in particular.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        smoothing: κ, in events.

    Raises:
        ValueError: for a smoothing that is not positive.

    Example:
        >>> rates = ViewRate(log.item_ids).fit(splits["train"])
        >>> rates.recommend([[0, 1]], slate_size=2).shape
        (1, 2)
    """

    kind = "view-rate"

    def __init__(self, item_ids: Sequence[str], *, smoothing: float = 20.0) -> None:
        super().__init__(item_ids, smoothing=smoothing)
        if not smoothing > 0:
            raise ValueError(f"smoothing must be positive, got {smoothing}.")
        self.smoothing = smoothing
        self._rates = np.zeros(self.num_items, dtype=np.float32)

    def fit(self, train: Dataset, validation: Dataset | None = None) -> ViewRate:
        """Count the events and the views of the training split; without any view all items score 0."""
        items, _ = training_sequences(train, self.item_ids)
        views = training_views(train)
        if not views.any():
            self._rates[:] = 0
            return self
        share = views.mean()
        events, viewed = (np.bincount(items, weight, minlength=self.num_items) for weight in (None, views))
        rates = (viewed + self.smoothing * share) / ((events + self.smoothing) * share)
        self._rates = np.log(rates).astype(np.float32)
        return self

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See [`ScoringBaseline.scores`]."""
        return np.tile(self._rates, (len(histories), 1))

    def num_parameters(self) -> int:
        """One rate an item."""
        return self.num_items

    def arrays(self) -> Arrays:
        """`rates`, float32 `[N]`."""
        return {"rates": self._rates}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the rates."""
        check_rows(self, arrays, rates=(self.num_items,))
        self._rates = arrays["rates"]
