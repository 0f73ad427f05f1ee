"""Trend scores: what has been asked for more often than usual in the days before a request.

What is promoted this week, or new this month, is in no history yet. The table counts the training events of every item
and day; a request at a known time reads the days before its own. The catalogue prior adds the score to `plan vector ·
item vector` when slates are decoded; in training it is not seen. [`fit_trends`](trends.py) makes the table.
"""

from __future__ import annotations

import torch
from torch import nn

from .configuration_higr import HiGRConfig

DAY = 86_400
"""Seconds; days are those of UTC."""

LATEST = 10**11
"""Seconds: no request is asked for later, so a larger number is one of another unit."""

NEWEST = 2**62
"""A time after every table: asks for the newest days that are known."""


class TrendScores(nn.Module):
    r"""Score of an item i at a request on day t: `scale · log((n_t(i) + κ) / (n_t · q(i) + κ))`.

    `n_t(i)` counts i's events in the `trend_days` days before day t (the day itself is left out: some of it lies after
    the request), `n_t` those of all items, and `q(i)` is i's share of all events of all days. κ, `trend_smoothing`, is
    how many events an item must have, or miss, to count for much; an item without any event scores 0. A request after
    the table's last day reads its newest days; one before its first day scores 0 throughout.

    Args:
        config (`HiGRConfig`): `num_items` and the `trend_` fields.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        # events[t] counts what came before day t, so that a sum over days is a difference of two rows.
        self.register_buffer("events", torch.zeros(config.trend_periods + 1, config.num_items, dtype=torch.int32))

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Score the catalogue.

        Args:
            times (`LongTensor [B]`): when each slate is asked for, in seconds since 1970 UTC; `NEWEST` for now.

        Returns:
            `FloatTensor [B, N]` by item index, in float32.
        """
        config = self.config
        day = torch.div(times - config.trend_start, DAY, rounding_mode="floor").clamp(0, config.trend_periods)
        newest = self.events[-1].float()
        recent = (self.events[day] - self.events[(day - config.trend_days).clamp(min=0)]).float()
        expected = recent.sum(1, keepdim=True) * (newest / newest.sum().clamp(min=1))
        smoothing = config.trend_smoothing
        return config.trend_scale * ((recent + smoothing) / (expected + smoothing)).log()

    def grow(self, count: int) -> None:
        """Append items that nobody has had yet."""
        self.events = torch.cat([self.events, self.events.new_zeros(len(self.events), count)], dim=1)


__all__ = ["DAY", "LATEST", "NEWEST", "TrendScores"]
