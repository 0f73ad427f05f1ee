"""Popularity: the most frequent items a user has not had. The least any model must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


class Popularity:
    """Recommends the items that occur most often in the training histories.

    Args:
        item_ids: the catalogue; the place in it is the item index.

    Example:
        >>> from datasets import Dataset
        >>> train = Dataset.from_dict({"history_item_ids": [["a", "b"], ["b", "c"]]})
        >>> popularity = Popularity(["a", "b", "c"]).fit(train)
        >>> popularity.recommend([[], [1]], slate_size=2).tolist()
        [[1, 0], [0, 2]]
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = list(item_ids)
        self.ranking = np.arange(len(self.item_ids))

    def fit(self, train: Dataset) -> Popularity:
        """Count the items of a split's `history_item_ids`; ties keep the catalogue's order."""
        index = {item: row for row, item in enumerate(self.item_ids)}
        counts = np.zeros(len(self.item_ids), dtype=np.int64)
        for row in train["history_item_ids"]:
            np.add.at(counts, [index[item] for item in row if item in index], 1)
        self.ranking = np.argsort(-counts, kind="stable")
        return self

    def recommend(self, excluded: Sequence[Sequence[int]], slate_size: int) -> np.ndarray:
        """Slates for users who may not get some items.

        Args:
            excluded: item indices each user may not get.
            slate_size: M.

        Returns:
            int64 `[users, M]` item indices, -1 where a user has nothing left.
        """
        slates = np.full((len(excluded), slate_size), -1, dtype=np.int64)
        for user, items in enumerate(excluded):
            # Nothing past the first M + E places of the ranking can be needed.
            head = self.ranking[: slate_size + len(items)]
            free = head[~np.isin(head, np.asarray(items, dtype=np.int64))][:slate_size]
            slates[user, : len(free)] = free
        return slates

    def __call__(self, batch: Mapping[str, Any], slate_size: int = 5) -> np.ndarray:
        """Slates for a batch of [`SlateEvaluator`]."""
        return self.recommend(batch["exclude_indices"], slate_size)
