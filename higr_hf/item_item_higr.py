"""Item-item scores: what each event of a history speaks for, by tables that were fitted in closed form.

A sum over the events of sparse rows of a table, weighted by the events' age. The catalogue prior adds it to `plan
vector · item vector`, so that the search sees it at the leaves of the prefix tree and, summed up, at every prefix.
[`fit_item_item`](item_item.py) makes the tables; gradients do not reach them.
"""

from __future__ import annotations

import torch
from torch import nn

from .configuration_higr import HiGRConfig


def counted_events(
    items: torch.Tensor, counted: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which events of histories count, how many counted ones came after each, and an index for each; all `[B, H]`.

    Args:
        items (`LongTensor [B, H]`): catalogue indices, oldest first, -1 for none: those count for nothing.
        counted (`BoolTensor [B, H]`, *optional*): which of them may count; all by default.
    """
    known = items >= 0 if counted is None else counted & (items >= 0)
    age = (known.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)
    return known, age, items.clamp(min=0)


class ItemItemScores(nn.Module):
    r"""Scores of all items given a history: `Σ_c scale_c · Σ_e w_c(age of e) · table_c[e]`.

    Channel c has a table of K neighbours an item and a decay τ: an event that a events came after weighs
    `w(a) = exp(−a/τ)`, and the weights of a history have a sum of squares of 1; with τ = 0 every event weighs 1.
    Events that are no known item count for nothing and age nobody.

    Takes C·H·K operations a history of H events, whatever the catalogue's size, and one row of N numbers.

    Args:
        config (`HiGRConfig`): `item_item_decays`, `item_item_scales`, `item_item_neighbours` and `num_items`.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        shape = (len(config.item_item_decays), config.num_items, config.item_item_neighbours)
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(shape))

    def forward(self, items: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Score the catalogue.

        Args:
            items (`LongTensor [B, H]`): catalogue indices of a history's events, oldest first, -1 for none.
            counted (`BoolTensor [B, H]`, *optional*): which of them count; all by default.

        Returns:
            `FloatTensor [B, N]` by item index, in float32.
        """
        known, age, index = counted_events(items, counted)
        scores = self.weights.new_zeros(len(items), self.config.num_items, dtype=torch.float32)
        channels = zip(self.config.item_item_decays, self.config.item_item_scales, strict=True)
        for channel, (decay, scale) in enumerate(channels):
            weight = known.float()
            if decay:
                weight = weight * torch.exp(-age / decay)
                weight = weight / weight.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
            speaks = scale * weight[..., None] * self.weights[channel][index].float()
            scores.scatter_add_(1, self.neighbours[channel][index].long().flatten(1), speaks.flatten(1))
        return scores

    def grow(self, count: int) -> None:
        """Append rows of items that speak for nothing."""
        for name in ("neighbours", "weights"):
            table = getattr(self, name)
            setattr(self, name, torch.cat([table, table.new_zeros(len(table), count, table.shape[2])], dim=1))

    def of_queries(self, items: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The same for queries that see beginnings of one sequence.

        Args:
            items (`LongTensor [B, U]`): items of the units.
            context (`LongTensor [B, Q]`): how many units each query sees.

        Returns:
            `FloatTensor [B, Q, N]`.
        """
        unit = torch.arange(items.shape[1], device=items.device)
        seen = unit < context[..., None]
        return torch.stack([self(items, seen[:, query]) for query in range(context.shape[1])], dim=1)


__all__ = ["ItemItemScores", "counted_events"]
