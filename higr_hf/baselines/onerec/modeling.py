"""OneRec (arXiv 2502.18965), as the flat decoder that HiGR is compared with.

Item vectors, context encoder, blocks, head, batches and losses are HiGR's own. What differs is the decoder alone: one
causal stack, as deep as planner and generator together, over the M·L tokens of the slate.
"""

from __future__ import annotations

import torch
from torch import nn

from ...layers_higr import HiGRPlannerLayer, Rotary, additive_mask, rotary_table
from ...layout_higr import SlateLayout, SlateQueries, level_offsets
from ...modeling_higr import HiGRForSlateGeneration, HiGRModel, HiGRModelOutput
from .configuration import OneRecConfig
from .generation import FlatGenerationMixin


class OneRecModel(HiGRModel):
    """Context encoder and flat decoder, without a head.

    A token of the slate is fed the token before it, its slot, its level and the wish, all summed, and the first token
    the encoder's newest state; it sees the encoded history and the tokens of its slate so far.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf.baselines.onerec import OneRecConfig, OneRecModel
    >>> config = OneRecConfig.from_preset("tiny", codebook_sizes=[4, 4], item_embedding=False)
    >>> model = OneRecModel(config).eval()
    >>> a, b = config.level_offsets
    >>> ids = torch.tensor([[config.bos_token_id, a + 1, b + 2, config.slate_token_id, a, b]])
    >>> model(ids).last_hidden_state.shape  # width 64, and one more for each of the two levels
    torch.Size([1, 6, 66])

    ```
    """

    config_class = OneRecConfig
    _auto_class = None

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        # HiGR without the hierarchy: the generator's layers go on top of the planner's.
        self.generators = nn.ModuleList()
        self.planner.layers.extend(HiGRPlannerLayer(config) for _ in range(config.generator_layers))
        # Its states go to the head, not to another stage: a second small linear map there would only slow learning.
        self.planner.proj = nn.Identity()
        self.embed_levels = nn.Embedding(config.num_levels, config.hidden_size)
        self.post_init()

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """Rotary tables of positions `[B, T]`."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        return rotary_table(positions, head_dim, self.config.rope_theta, self.planner.norm.weight.dtype)

    def slate_inputs(self, context: torch.Tensor, queries: SlateQueries) -> torch.Tensor:
        """What the decoder is fed for the L tokens of every slot, but for the token before each.

        Args:
            context (`[B, U, d]`): the encoded history.
            queries: one a slot; items fed back (`previous`) are not looked at.

        Returns:
            `[B, Q, L, d]`.
        """
        places = self.planner.slots(queries.slot) + self.embeddings.embed_tokens(queries.wish)
        # The normed state is many times longer than an embedding: beside it a code could hardly be told from another.
        first = torch.where(queries.slot[..., None] == 0, self.query_inputs(context, queries), places)
        levels = [first, *[places] * (self.config.num_levels - 1)]
        return torch.stack(levels, dim=2) + self.embed_levels.weight

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        slate_queries: torch.LongTensor | None = None,
        **kwargs,
    ) -> HiGRModelOutput:
        r"""
        Args:
            input_ids (`LongTensor [B, T]`): flat tokens.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens; padding may stand on either side.
            slate_queries (`LongTensor [B, Q, 6]`, *optional*): which slots to predict, as [`SlateCollator`] makes
                them; without it the flat causal-LM reading is used.

        Returns:
            [`HiGRModelOutput`]; `plans` is `None`.
        """
        if input_ids is None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError("input_ids must have shape [batch, tokens] with at least one token (`<bos>`).")
        layout = SlateLayout.parse(input_ids, attention_mask, self.config)
        items = self.unit_items(layout) if self.config.item_embedding or slate_queries is not None else None
        units = self.embeddings.units(input_ids, layout, items)
        context, context_rotary = self.encode(units, layout.num_history)

        queries = SlateQueries.flat(layout) if slate_queries is None else SlateQueries.unpack(slate_queries)
        inputs = self.slate_inputs(context, queries) + self._tokens_before(layout, queries)
        tokens = self._token_queries(queries)
        context_mask, self_mask = (additive_mask(mask, context.dtype) for mask in tokens.masks(layout.size))
        states, _ = self.planner(
            self.dropout(inputs.flatten(1, 2)),
            self.planner.key_values(context, context_rotary),
            context_mask,
            self_mask,
            self.rotary(tokens.context + tokens.slot),
        )
        states = states.unflatten(1, (-1, self.config.num_levels))
        if slate_queries is not None:
            return HiGRModelOutput(generator_states=states, unit_codes=layout.codes, unit_items=items)
        hidden = self._to_flat(states, layout)
        return HiGRModelOutput(last_hidden_state=hidden, unit_codes=layout.codes, unit_items=items)

    def _tokens_before(self, layout: SlateLayout, queries: SlateQueries) -> torch.Tensor:
        """Vector of the token before each of a query's L tokens, `[B, Q, L, d]`; zero where a slate begins."""

        def codes(unit: torch.Tensor) -> torch.Tensor:
            index = unit.clamp(min=0)[..., None].expand(-1, -1, self.config.num_levels)
            return torch.where(unit[..., None] >= 0, layout.codes.gather(1, index), -1)

        before = torch.cat([codes(queries.previous)[..., -1:], codes(queries.target)[..., :-1]], dim=-1)
        offsets = level_offsets(self.config, before.device).roll(1)
        # The padding token's vector is zero.
        token = torch.where(before >= 0, before + offsets, self.config.pad_token_id)
        return self.embeddings.embed_tokens(token)

    def _token_queries(self, queries: SlateQueries) -> SlateQueries:
        """One query a token, `[B, Q·L]`; `slot` counts the tokens of the slate."""
        levels, count = self.config.num_levels, queries.slot.shape[1]
        level = torch.arange(levels, device=queries.slot.device).repeat(count)
        spread = {name: getattr(queries, name).repeat_interleave(levels, dim=1) for name in SlateQueries.FIELDS}
        spread["slot"] = spread["slot"] * levels + level
        return SlateQueries(**spread)


class OneRecForSlateGeneration(FlatGenerationMixin, HiGRForSlateGeneration):
    """The flat decoder with its head: trains on slates or as a causal language model, and generates slates.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf.baselines.onerec import OneRecConfig, OneRecForSlateGeneration
    >>> config = OneRecConfig.from_preset("tiny", codebook_sizes=[4, 4], num_items=16)
    >>> model = OneRecForSlateGeneration(config).eval()
    >>> model.set_catalog(torch.cartesian_prod(torch.arange(4), torch.arange(4)))
    >>> a, b = config.level_offsets
    >>> prompt = torch.tensor([[config.bos_token_id, a + 1, b + 2, config.slate_token_id]])
    >>> out = model.generate(prompt, slate_size=3, num_beams=4, exclude=[[6]], return_dict_in_generate=True)
    >>> out.slates.shape, 6 in out.slates
    (torch.Size([1, 3]), False)

    ```
    """

    config_class = OneRecConfig
    _auto_class = None

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.model = OneRecModel(config)
        self.post_init()
