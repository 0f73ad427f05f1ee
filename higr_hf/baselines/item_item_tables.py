"""HiGR's item-item tables without HiGR: the control that asks what the model adds to them, and a linear baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..configuration_higr import HiGRConfig
from ..item_item_higr import ItemItemScores
from .base import Arrays, ScoringBaseline, check_rows

if TYPE_CHECKING:
    from datasets import Dataset


class ItemItem(ScoringBaseline):
    """Scores an item by [`fit_item_item`]'s tables alone, see [`ItemItemScores`].

    Args:
        item_ids: the catalogue; the place in it is the item index.
        decays, neighbours, l2, co_engagement_l2, max_events, whole_lists: of [`fit_item_item`].
        scales: what each table's scores are multiplied by.
        slate_size: M, how many of the next items a position is to tell.

    Raises:
        ValueError: in `fit` for settings that cannot work.

    Example:
        >>> tables = ItemItem(log.item_ids, neighbours=5).fit(splits["train"])
        >>> tables.recommend([[0, 1]], slate_size=2, exclude=[[0, 1]]).shape
        (1, 2)
    """

    kind = "item-item-tables"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        decays: Sequence[float] = (3.0, 20.0, 0.0),
        scales: Sequence[float] = (20.0, 20.0, 3.0),
        neighbours: int = 50,
        l2: float = 150.0,
        co_engagement_l2: float = 800.0,
        max_events: int = 60,
        slate_size: int = 5,
        whole_lists: bool = False,
    ) -> None:
        fitting = {"decays": list(decays), "neighbours": neighbours, "l2": l2, "co_engagement_l2": co_engagement_l2}
        fitting |= {"max_events": max_events, "slate_size": slate_size, "whole_lists": whole_lists}
        super().__init__(item_ids, scales=list(scales), **fitting)
        self._fitting = fitting
        config = HiGRConfig(
            num_items=self.num_items,
            catalog_prior=True,
            item_item_decays=list(decays),
            item_item_scales=list(scales),
            item_item_neighbours=min(neighbours, self.num_items),
        )
        self._scores = ItemItemScores(config)

    def fit(self, train: Dataset, validation: Dataset | None = None) -> ItemItem:
        """Solve for the tables."""
        from ..item_item import fit_item_item  # there, EASE is one of these baselines

        tables = fit_item_item(train, self.item_ids, **self._fitting)
        self.load_arrays({"neighbours": tables.neighbours, "weights": tables.weights})
        return self

    @torch.inference_mode()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """See [`ScoringBaseline.scores`]."""
        rows = [torch.as_tensor(np.asarray(items, dtype=np.int64)) for items in histories]
        return self._scores(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)).numpy()

    def num_parameters(self) -> int:
        """Entries of the tables."""
        return self._scores.weights.numel()

    def arrays(self) -> Arrays:
        """`neighbours` int32 and `weights` float32, `[C, N, K]`."""
        return {"neighbours": self._scores.neighbours.numpy(), "weights": self._scores.weights.numpy()}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the tables."""
        shape = tuple(self._scores.weights.shape)
        check_rows(self, arrays, neighbours=shape, weights=shape)
        self._scores.neighbours.copy_(torch.from_numpy(np.array(arrays["neighbours"])))
        self._scores.weights.copy_(torch.from_numpy(np.array(arrays["weights"])))
