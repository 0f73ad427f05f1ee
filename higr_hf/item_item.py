"""Item-item tables in closed form: which items the events of a history speak for.

Two kinds, both ridge regressions over the training split:

- *transitions*: the next M items of every position, from the events before it under one or more decays at once. The
  linear autoregression of slates; session-based relatives are SLIST and SLIT (Choi et al., "Session-aware Linear
  Item-Item Models", WWW 2021, arXiv 2103.16104). Of real lists (receipts) the items of each list, from the events
  before the list; where people buy the same again, a table's diagonal says how surely and for how long.
- *co-engagement*, decay 0: EASE (Steck, WWW 2019), whatever the order.

Of every row only the K largest entries are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import torch

from .baselines.ease import EASE
from .data.embeddings import training_lists, training_sequences
from .item_item_higr import ItemItemScores
from .item_transitions import list_moments, transition_moments

if TYPE_CHECKING:
    from datasets import Dataset

    from .modeling_higr import HiGRForSlateGeneration


@dataclass
class ItemItemTables:
    """Fitted tables.

    Attributes:
        decays (`list[float]`): of the C channels.
        neighbours (`int32 [C, N, K]`): the items that a row's item speaks for; unused places are 0.
        weights (`float32 [C, N, K]`): how much; unused places are 0.
    """

    decays: list[float]
    neighbours: np.ndarray
    weights: np.ndarray


def fit_item_item(
    train: Dataset,
    item_ids: Sequence[str],
    *,
    decays: Sequence[float] = (3.0, 20.0, 0.0),
    slate_size: int = 5,
    neighbours: int = 50,
    l2: float = 150.0,
    co_engagement_l2: float = 800.0,
    max_events: int = 60,
    max_items: int = 8000,
    whole_lists: bool = False,
) -> ItemItemTables:
    """Fit the tables on a training split.

    Needs about 12·(C·n)² bytes for C decays above 0 and n items, and time in the number of events times `max_events`
    and in (C·n)³.

    Args:
        train: the training split (`history_item_ids`).
        item_ids: the catalogue; the place in it is the item index.
        decays: in how many events a history's event loses a factor e; 0 for the co-engagement table.
        slate_size: M, how many of the next items a position is to tell.
        neighbours: K.
        l2: ridge penalty of the transitions, in positions.
        co_engagement_l2: EASE's λ, in users.
        max_events: newest events of a position that are read.
        max_items: how many of the most frequent items have rows and columns.
        whole_lists: tell the items of each row's real list, however many, from the row's history, in place of the next
            M of every position; for the rows of `basket_splits`.

    Returns:
        [`ItemItemTables`] over all items.

    Raises:
        ValueError: for a setting out of range.
        DataError: for `whole_lists` without lists.

    Example:
        >>> tables = fit_item_item(splits["train"], log.item_ids, neighbours=5)
        >>> tables.neighbours.shape == (3, len(log.item_ids), 5)
        True
    """
    decays = [float(decay) for decay in decays]
    for name, value in (("slate_size", slate_size), ("neighbours", neighbours), ("max_events", max_events),
                        ("max_items", max_items), ("l2", l2), ("co_engagement_l2", co_engagement_l2)):  # fmt: skip
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if not decays or min(decays) < 0:
        raise ValueError(f"decays must be a list of numbers from 0, got {decays}.")
    events, lengths = training_sequences(train, item_ids)
    count = len(item_ids)
    frequency = np.bincount(events, minlength=count)
    kept = np.sort(np.argsort(-frequency, kind="stable")[:max_items])
    size = len(kept)
    keep = min(neighbours, size)
    tables = ItemItemTables(
        decays,
        np.zeros((len(decays), count, keep), dtype=np.int32),
        np.zeros((len(decays), count, keep), dtype=np.float32),
    )
    moving = [decay for decay in decays if decay]
    solution = np.empty((0, size), dtype=np.float32)
    if moving:
        place = np.full(count, -1, dtype=np.int64)
        place[kept] = np.arange(size)
        if whole_lists:
            before, lists = (_kept(place, *side) for side in training_lists(train, item_ids))
            moments = list_moments(before, lists, size, moving, max_events)
        else:
            moments = transition_moments(*_kept(place, events, lengths), size, moving, slate_size, max_events)
        solution = _ridge(*moments, l2)
    for channel, decay in enumerate(decays):
        if decay:
            first = moving.index(decay) * size
            table = solution[first : first + size]
        else:
            ease = EASE(item_ids, l2=co_engagement_l2, max_items=size).fit(train)
            table = ease.weights
        largest = np.argpartition(-np.abs(table), keep - 1, axis=1)[:, :keep]
        tables.neighbours[channel, kept] = kept[largest]
        tables.weights[channel, kept] = np.take_along_axis(table, largest, axis=1)
    return tables


def attach_item_item(model: HiGRForSlateGeneration, tables: ItemItemTables, scales: Sequence[float]) -> None:
    """Give a model with a catalogue prior fitted tables, in place; the ones it had are replaced.

    Args:
        model: with its catalogue set.
        tables: of the same catalogue.
        scales: what each channel's scores are multiplied by; tune them on validation.

    Raises:
        ValueError: for a model without catalogue prior, another number of items, or another number of scales.
    """
    config = model.config
    channels, items, neighbours = tables.neighbours.shape
    if not config.catalog_prior:
        raise ValueError("Item-item tables add to the catalogue prior: the model needs catalog_prior=True.")
    if items != config.num_items or len(scales) != channels:
        raise ValueError(
            f"{channels} tables of {items} items and {len(scales)} scales do not fit a model of {config.num_items} "
            "items: one scale a table, and the model's own catalogue."
        )
    config.item_item_decays = list(tables.decays)
    config.item_item_scales = [float(scale) for scale in scales]
    config.item_item_neighbours = neighbours
    scores = ItemItemScores(config).to(model.device)
    scores.neighbours.copy_(torch.from_numpy(tables.neighbours))
    scores.weights.copy_(torch.from_numpy(tables.weights))
    model.model.item_item = scores


@dataclass(frozen=True)
class DetachedItemItem:
    """Item-item tables that were taken off a model by [`detach_item_item`]; without any, nothing happens.

    Attributes:
        scores: the module that holds them.
        settings: what the model's configuration said of them.
    """

    scores: ItemItemScores | None
    settings: Mapping[str, Any]

    def attach(self, model: HiGRForSlateGeneration) -> None:
        """Put them back on the model, wherever it is now."""
        if self.scores is not None:
            model.config.update(self.settings)
            model.model.item_item = self.scores.to(model.device)

    @contextmanager
    def attached(self, model: HiGRForSlateGeneration) -> Iterator[None]:
        """Put them back for as long as the block runs; a model that has them keeps them."""
        if model.config.item_item_decays:
            yield
            return
        self.attach(model)
        try:
            yield
        finally:
            detach_item_item(model)


def detach_item_item(model: HiGRForSlateGeneration) -> DetachedItemItem:
    """Take a model's item-item tables off, in place, so that it can be trained on the rows they were fitted on.

    There the tables have seen what comes next, and are far surer of it than they are of anything new: a model trained
    with them would learn to leave to the tables what they only know by heart.

    Example:
        >>> tables = detach_item_item(model)
        >>> trainer.train()
        >>> tables.attach(model)
    """
    config = model.config
    scores = model.model.item_item if config.item_item_decays else None
    names = ("item_item_decays", "item_item_scales", "item_item_neighbours")
    detached = DetachedItemItem(scores, {name: getattr(config, name) for name in names} if scores is not None else {})
    if scores is not None:
        config.update({"item_item_decays": [], "item_item_scales": []})
        model.model.item_item = None
    return detached


def _kept(place: np.ndarray, items: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences without the items that have no place, and how long they are then."""
    placed, row = place[items], np.repeat(np.arange(len(lengths)), lengths)
    return placed[placed >= 0], np.bincount(row[placed >= 0], minlength=len(lengths))


def _ridge(gram: np.ndarray, cross: np.ndarray, l2: float) -> np.ndarray:
    """Weights of a ridge regression from its moments, which are overwritten."""
    gram[np.diag_indices(len(gram))] += l2
    return scipy.linalg.solve(gram, cross, assume_a="pos", overwrite_a=True, overwrite_b=True)


__all__ = ["DetachedItemItem", "ItemItemTables", "attach_item_item", "detach_item_item", "fit_item_item"]
