"""Repeat scores: how much an item of the history speaks for itself.

People buy the same milk and play the same song again. A plan vector of some dozen numbers cannot hold which of two
hundred items a history has and how often; what is repeated is therefore counted, and only how much a count is worth is
learned. The catalogue prior adds it to `plan vector · item vector`, in training too, so that plan vectors learn what
counting does not say. A softmax over "repeat" and "explore" was RepeatNet's idea (Ren et al., AAAI 2019, arXiv
1812.02646); here both are scores of one softmax.
"""

from __future__ import annotations

import torch
from torch import nn

from .configuration_higr import HiGRConfig
from .item_item_higr import counted_events

GAIN = 8.0
"""What the learned numbers are multiplied by: an optimiser's steps that suit embeddings would bring them too slowly to
the five or so that tell a weekly item from the rest of a catalogue."""


class RepeatScores(nn.Module):
    r"""Score of an item i of the history: `b_i + Σ_c w_c · log(1 + n_c(i))`; of all others 0.

    `n_c(i)` sums `exp(−a/τ_c)` over i's events, a events having come after one; τ = 0 counts them. Events that are no
    known item count for nothing and age nobody. Learned are one w a decay and one b an item, zero at first.

    Args:
        config (`HiGRConfig`): `repeat_decays` and `num_items`.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(len(config.repeat_decays)))
        self.bias = nn.Parameter(torch.zeros(config.num_items))

    def forward(self, items: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Score the catalogue: float32 `[B, N]` by item index, from what [`counted_events`] takes."""
        known, age, index = counted_events(items, counted)
        nothing = self.bias.new_zeros(len(items), self.config.num_items, dtype=torch.float32)
        scores = nothing.scatter_add(1, index, known.float()).clamp(max=1) * self.bias.float()
        for decay, weight in zip(self.config.repeat_decays, self.weight.float(), strict=True):
            speaks = known * self._faded(age, decay)
            scores = scores + weight * nothing.scatter_add(1, index, speaks).log1p()
        return GAIN * scores

    def of_queries(self, items: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for queries that see beginnings of one sequence, as a few numbers a query in place of N.

        Args:
            items (`LongTensor [B, U]`): items of the units.
            context (`LongTensor [B, Q]`): how many units each query sees.

        Returns:
            Items (`LongTensor [B, Q, U]`) and their scores (`FloatTensor [B, Q, U]`): the event that a query saw last
            of an item has the item's score, all others 0.
        """
        known = items >= 0
        unit, place = torch.arange(items.shape[1], device=items.device), known.cumsum(1) - 1
        same = (items[:, :, None] == items[:, None, :]) & known[:, :, None]
        later = same & (unit[:, None] < unit)
        again = torch.where(later, unit, len(unit)).amin(2)  # the unit that holds the item next
        seen = torch.cat([place.new_zeros(len(items), 1), place + 1], dim=1).gather(1, context.clamp(max=len(unit)))
        last = known[:, None] & (unit < context[..., None]) & (again[:, None] >= context[..., None])
        index = items.clamp(min=0)
        scores = self.bias.float()[index][:, None]
        since = (place[:, :, None] - place[:, None, :]).clamp(min=0)
        age = (seen[..., None] - 1 - place[:, None]).clamp(min=0)
        for decay, weight in zip(self.config.repeat_decays, self.weight.float(), strict=True):
            then = (self._faded(since, decay) * (same & (unit[:, None] >= unit))).sum(2)
            scores = scores + weight * (then[:, None] * self._faded(age, decay)).log1p()
        scores = torch.where(last, GAIN * scores, 0.0)
        return index[:, None].expand_as(scores), scores

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Append items that nobody has had yet."""
        self.bias = nn.Parameter(torch.cat([self.bias, self.bias.new_zeros(count)]), self.bias.requires_grad)

    def _faded(self, age: torch.Tensor, decay: float) -> torch.Tensor:
        return torch.exp(-age / decay) if decay else torch.ones_like(age, dtype=torch.float32)


__all__ = ["RepeatScores"]
