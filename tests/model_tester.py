"""A tiny HiGR model over a tiny catalogue, with weights large enough that its predictions differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from higr_hf import HiGRConfig, HiGRForSlateGeneration


def prior_by_hand(model: HiGRForSlateGeneration, plan: torch.Tensor, prefix: Sequence[int]) -> torch.Tensor:
    """What the catalogue prior adds to the group of tokens that follows a prefix of codes, by its definition."""
    config, codes = model.config, model.model.item_codes
    level = len(prefix)
    mass = (model.item_vectors().double() @ plan.double()).exp()
    below = (codes[:, :level] == torch.tensor(list(prefix), dtype=torch.long)).all(1)
    added = [-math.log(config.codebook_sizes[0])] * config.level_offsets[0] if level == 0 else []
    for code in range(config.codebook_sizes[level]):
        there = below & (codes[:, level] == code)
        added.append(math.log(mass[there].sum() / mass[below].sum()) if bool(there.any()) else -1e4)
    return torch.tensor(added, dtype=torch.double)


ITEM_ITEM = {
    "catalog_prior": True,
    "item_item_decays": [2.0, 0.0],
    "item_item_scales": [1.5, 0.5],
    "item_item_neighbours": 3,
}
"""A configuration with item-item tables."""

WHOLE_HISTORY = {**ITEM_ITEM, "repeat_decays": [3.0, 0.0]}
"""One with everything that reads the whole history."""

ADDED_SCORES = {**WHOLE_HISTORY, "trend_days": 2, "trend_periods": 5, "trend_start": 1_600_000_000}
"""One with trend scores as well, which decoding alone knows."""


def fill_tables(model: HiGRForSlateGeneration) -> HiGRForSlateGeneration:
    """Random item-item tables, repeat scores and trends, for a model that has any."""
    tables = model.model.item_item
    if tables is not None:
        generator = torch.Generator().manual_seed(11)
        shape = tables.weights.shape
        tables.neighbours.copy_(torch.randint(model.config.num_items, shape, generator=generator))
        tables.weights.copy_(torch.randn(shape, generator=generator))
    if model.model.repeats is not None:
        generator = torch.Generator().manual_seed(12)
        for parameter in model.model.repeats.parameters():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    if model.model.trends is not None:
        events = model.model.trends.events
        counts = torch.randint(99, events.shape, generator=torch.Generator().manual_seed(13))
        events.copy_(counts.cumsum(0))
    return model


class HiGRModelTester:
    """Sizes and helpers shared by the model's tests."""

    def __init__(self, num_items: int = 24, codebook_sizes: tuple[int, ...] = (3, 4, 4)) -> None:
        self.codebook_sizes = codebook_sizes
        every = torch.tensor(list(itertools.product(*(range(size) for size in codebook_sizes))))
        shuffled = torch.randperm(len(every), generator=torch.Generator().manual_seed(7))
        self.codes = every[shuffled][:num_items]
        self.num_items = num_items

    def config(self, **overrides: Any) -> HiGRConfig:
        """A tiny configuration."""
        settings = {
            "codebook_sizes": self.codebook_sizes,
            "num_items": self.num_items,
            "num_feedback_levels": 3,
            "num_time_buckets": 2,
            "slate_size": 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "encoder_layers": 1,
            "planner_layers": 2,
            "generator_layers": 1,
            "max_history": 12,
            "initializer_range": 0.4,
            "embedding_range": 0.4,
        }
        return HiGRConfig(**{**settings, **overrides})

    def model(self, **overrides: Any) -> HiGRForSlateGeneration:
        """A model in evaluation mode that carries the catalogue."""
        torch.manual_seed(3)
        model = HiGRForSlateGeneration(self.config(**overrides)).eval()
        # As if trained: a fresh projection is the identity, under which the plans of so small a model are much alike.
        torch.nn.init.normal_(model.model.planner.proj.weight, std=model.config.initializer_range)
        model.set_catalog(self.codes)
        return fill_tables(model)

    def item_tokens(self, config: HiGRConfig, items: Sequence[int]) -> list[int]:
        """Code tokens of a run of items."""
        return (self.codes[list(items)] + torch.tensor(config.level_offsets)).flatten().tolist()

    def prompt(self, config: HiGRConfig, items: Sequence[int]) -> list[int]:
        """`<bos> items <slate>`."""
        return [config.bos_token_id, *self.item_tokens(config, items), config.slate_token_id]

    def flat(self, config: HiGRConfig, history: Sequence[int], slate: Sequence[int]) -> list[int]:
        """A whole flat sequence, `<eos>` included."""
        return [*self.prompt(config, history), *self.item_tokens(config, slate), config.eos_token_id]

    def batch(
        self, rows: Sequence[Sequence[int]], side: str = "left", pad_to: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Pad token rows on one side."""
        longest = max(max(len(row) for row in rows), pad_to or 0)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
            ids[number, where] = torch.tensor(row)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def code_scores(self, model: HiGRForSlateGeneration, prompt: Sequence[int], before: Sequence[int]) -> torch.Tensor:
        """Teacher-forced log-probabilities `[N, L]` of every catalogue item's codes as a slate's next item."""
        row = [*prompt, *self.item_tokens(model.config, before)]
        rows = torch.tensor([[*row, *self.item_tokens(model.config, [item])] for item in range(self.num_items)])
        with torch.no_grad():
            logits = model(rows).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, rows[:, 1:, None]).squeeze(-1)[:, len(row) - 1 :]
