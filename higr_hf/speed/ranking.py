"""A next-item scorer of SASRec's shape: one state, scored against every item of the catalogue."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..configuration_higr import HiGRConfig
from ..layers_higr import HiGREncoderLayer, make_norm, rotary_table


class NextItemRanker(nn.Module):
    """Causal blocks over item vectors; the slate is the M best next items. For timing: it is not trained here.

    It has HiGR's own blocks, as many as give the weights of all of HiGR's stages together, and a vector an item, which
    the last state is multiplied with: the one step here whose cost grows with the catalogue.

    Args:
        config: the HiGR it stands beside.

    Example:
        >>> ranker = NextItemRanker(HiGRConfig.from_preset("tiny", num_items=9)).eval()
        >>> with torch.inference_mode():
        ...     ranker.recommend(torch.tensor([[0, 1, 2]]), slate_size=5).shape
        torch.Size([1, 5])
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        config = copy.deepcopy(config)
        config._attn_implementation = "sdpa"  # what a `PreTrainedModel` would choose
        self.config = config
        square, mlp = config.hidden_size**2, 2 * config.hidden_size * config.intermediate_size
        weights = config.encoder_layers * (4 * square + mlp)
        weights += (config.planner_layers + config.generator_layers) * (8 * square + mlp)
        self.embed_items = nn.Embedding(config.num_items, config.hidden_size)
        self.layers = nn.ModuleList(HiGREncoderLayer(config) for _ in range(round(weights / (4 * square + mlp))))
        self.norm = make_norm(config)

    def recommend(self, history: torch.Tensor, slate_size: int) -> torch.Tensor:
        """The M best items that are not in the history `LongTensor [B, H]`, as `LongTensor [B, M]`."""
        position = torch.arange(history.shape[1], device=history.device)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        states = self.embed_items(history)
        rotary = rotary_table(position[None], head_dim, self.config.rope_theta, states.dtype)
        mask = (position[:, None] >= position)[None, None]
        for layer in self.layers:
            states = layer(states, mask, rotary)
        scores = self.norm(states[:, -1]) @ self.embed_items.weight.T
        return scores.scatter_(1, history, float("-inf")).topk(slate_size, dim=-1).indices
