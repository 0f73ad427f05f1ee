"""Counting a training split's events by item and day, for [`TrendScores`](trends_higr.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .data.embeddings import training_sequences, training_times
from .trends_higr import DAY, TrendScores

if TYPE_CHECKING:
    from datasets import Dataset

    from .modeling_higr import HiGRForSlateGeneration


@dataclass(frozen=True)
class ItemTrends:
    """A fitted table.

    Attributes:
        days (`int`): how many days before a request count.
        smoothing (`float`): κ, in events.
        start (`int`): when its first day begins, in seconds since 1970 UTC.
        events (`int32 [P + 1, N]`): events of each item before each of P days, and before the day after the last.
    """

    days: int
    smoothing: float
    start: int
    events: np.ndarray


def fit_trends(
    train: Dataset,
    item_ids: Sequence[str],
    *,
    days: int = 7,
    smoothing: float = 10.0,
    max_days: int | None = None,
) -> ItemTrends:
    """Count a training split, every event once.

    Needs 4·N·P bytes for N items and P days.

    Args:
        train: the training split (`history_timestamps`).
        item_ids: the catalogue; the place in it is the item index.
        days: how many days before a request count.
        smoothing: κ, how many events an item must have, or miss, to count for much.
        max_days: keep so many of the newest days apart and what came before them as one; all by default. A model that
            is only asked for slates now needs no more than `days`.

    Returns:
        [`ItemTrends`].

    Raises:
        ValueError: for a setting out of range.
        DataError: for an item that is not in the catalogue.

    Example:
        >>> trends = fit_trends(splits["train"], log.item_ids, days=7)
        >>> trends.events.shape[1] == len(log.item_ids), trends.events[-1].sum() > 0
        (True, np.True_)
    """
    for name, value in (("days", days), ("max_days", 1 if max_days is None else max_days)):
        if value < 1 or value != int(value):
            raise ValueError(f"{name} must be a whole number of days from 1, got {value}.")
    if max_days is not None and max_days < days:
        raise ValueError(f"max_days ({max_days}) must be at least days ({days}): requests read so many.")
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing must be a positive number of events, got {smoothing}.")
    items, _ = training_sequences(train, item_ids)
    day = training_times(train) // DAY
    first = int(day.min()) if len(day) else 0
    last = int(day.max()) if len(day) else 0
    if max_days is not None:
        first = max(first, last + 1 - max_days)
    counts = np.zeros((last + 2 - first, len(item_ids)), dtype=np.int32)
    np.add.at(counts, (np.maximum(day - first + 1, 0), items), 1)
    return ItemTrends(int(days), float(smoothing), first * DAY, counts.cumsum(0, dtype=np.int32))


def attach_trends(model: HiGRForSlateGeneration, trends: ItemTrends, scale: float) -> None:
    """Give a model with a catalogue prior a fitted table, in place; the one it had is replaced.

    Args:
        model: with its catalogue set.
        trends: of the same catalogue.
        scale: what the scores are multiplied by; tune it on validation.

    Raises:
        ValueError: for a model without catalogue prior, another number of items, or a scale that is no number.
    """
    config = model.config
    days, items = trends.events.shape
    if not config.catalog_prior:
        raise ValueError("Trends add to the catalogue prior: the model needs catalog_prior=True.")
    if items != config.num_items:
        raise ValueError(f"Trends of {items} items do not fit a model of {config.num_items}: take its own catalogue.")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a number, got {scale}.")
    config.trend_days, config.trend_periods = trends.days, days - 1
    config.trend_start, config.trend_smoothing = trends.start, trends.smoothing
    config.trend_scale = float(scale)
    scores = TrendScores(config).to(model.device)
    scores.events.copy_(torch.from_numpy(trends.events))
    model.model.trends = scores


__all__ = ["ItemTrends", "attach_trends", "fit_trends"]
