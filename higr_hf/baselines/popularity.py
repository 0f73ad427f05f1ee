"""Popularity: the most frequent items a user has not had. The least any model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data.embeddings import training_sequences
from .base import Arrays, Baseline, check_rows

if TYPE_CHECKING:
    from datasets import Dataset


class Popularity(Baseline):
    """Recommends the items that occur most often in training, every event counted once.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        own_first: put the items of a user's own history in front, most frequent and then newest first. Where people
            come back to items and the history is not excluded, this is the one to beat.

    Example:
        >>> from datasets import Dataset
        >>> rows = {"user_id": ["u", "v"], "history_item_ids": [["a", "b"], ["b"]], "target_item_ids": [[], ["c"]]}
        >>> popularity = Popularity(["a", "b", "c"]).fit(Dataset.from_dict(rows))
        >>> popularity.recommend([[], [1]], slate_size=2, exclude=[[], [1]]).tolist()
        [[1, 0], [0, 2]]
    """

    kind = "popularity"

    def __init__(self, item_ids: Sequence[str], *, own_first: bool = False) -> None:
        super().__init__(item_ids, own_first=own_first)
        self.own_first = own_first
        self.counts = np.zeros(self.num_items, dtype=np.int64)

    @property
    def ranking(self) -> np.ndarray:
        """Item indices int64 `[N]`, most frequent first; ties keep the catalogue's order."""
        return np.argsort(-self.counts, kind="stable")

    def fit(self, train: Dataset, validation: Dataset | None = None) -> Popularity:
        """Count the events of the training split."""
        # Rows of real lists share their histories, so rows are no unit to count by.
        events, _ = training_sequences(train, self.item_ids)
        self.counts = np.bincount(events, minlength=self.num_items)
        return self

    def recommend(
        self, histories: Sequence[np.ndarray], slate_size: int, exclude: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """The same ranking for everybody, less what each user may not get; see [`Baseline.recommend`]."""
        popular = self.ranking
        slates = np.full((len(histories), slate_size), -1, dtype=np.int64)
        for user in range(len(histories)):
            forbidden = np.unique(np.asarray([] if exclude is None else exclude[user], dtype=np.int64))
            # Nothing past the first M + E places of the ranking can be needed.
            head = popular[: slate_size + len(forbidden)]
            if self.own_first:
                own = _by_frequency(np.asarray(histories[user], dtype=np.int64))
                head = np.concatenate([own, popular[: slate_size + len(forbidden) + len(own)]])
                head = head[np.sort(np.unique(head, return_index=True)[1])]
            free = head[~np.isin(head, forbidden)][:slate_size]
            slates[user, : len(free)] = free
        return slates

    def num_parameters(self) -> int:
        """One count an item."""
        return self.num_items

    def arrays(self) -> Arrays:
        """`counts`, int64 `[N]`."""
        return {"counts": self.counts}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the counts."""
        check_rows(self, arrays, counts=(self.num_items,))
        self.counts = arrays["counts"]


def _by_frequency(history: np.ndarray) -> np.ndarray:
    """A history's distinct items, most frequent first, of equally frequent ones the newest."""
    items, from_end, counts = np.unique(history[::-1], return_index=True, return_counts=True)
    return items[np.lexsort((from_end, -counts))]
