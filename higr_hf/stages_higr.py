"""The stages of HiGR: item vectors, context encoder, slate planner, item generator, and the head over semantic IDs."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_higr import HiGRConfig
from .layers_higr import HiGREncoderLayer, HiGRGeneratorLayer, HiGRPlannerLayer, KeyValue, make_norm
from .layout_higr import SlateLayout, level_offsets

MASKED_LOGIT = -1e4
"""Logit of a token outside the group a position predicts: finite, because trainers average logits."""


class ItemEmbeddings(nn.Module):
    """Token embeddings, and how they become one vector a unit or a catalogue item.

    An item's vector is the pooled embedding of its codes (sum, mean or max) + a learned vector of the item itself
    where `item_embedding` is on + the embeddings of its feature tokens.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.item_embedding:
            # Row 0 stands for "no known item" and stays zero.
            self.embed_items = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)

    def units(
        self, input_ids: torch.Tensor, layout: SlateLayout, items: torch.Tensor | None, with_features: bool = True
    ) -> torch.Tensor:
        """One vector a unit.

        Args:
            input_ids (`LongTensor [B, T]`): flat tokens.
            layout: their units.
            items (`LongTensor [B, U]`, *optional*): catalogue index of every unit, -1 for none.
            with_features: `False` leaves out what feature tokens say.

        Returns:
            `[B, U, d]`.
        """
        tokens = self.embed_tokens(input_ids)
        if not with_features:
            tokens = tokens.masked_fill(layout.is_feature[..., None], 0)
        batch, _, width = tokens.shape
        index = layout.unit[..., None].expand_as(tokens)
        is_code = (layout.level >= 0)[..., None]
        empty = tokens.new_zeros(batch, layout.size + 1, width)
        if self.config.pooling == "sum":
            pooled = empty.scatter_add(1, index, tokens)
        else:
            codes, others = torch.where(is_code, tokens, 0), torch.where(is_code, 0, tokens)
            pooled = empty.scatter_add(1, index, others)
            if self.config.pooling == "mean":
                count = empty[..., :1].scatter_add(1, index[..., :1], is_code.to(tokens.dtype))
                pooled = pooled + empty.scatter_add(1, index, codes) / count.clamp(min=1)
            else:
                lowest = torch.where(is_code, tokens, float("-inf"))
                largest = empty.scatter_reduce(1, index, lowest, reduce="amax", include_self=False)
                pooled = pooled + torch.where(largest.isfinite(), largest, 0)
        pooled = pooled[:, : layout.size]
        if self.config.item_embedding and items is not None:
            pooled = pooled + self.embed_items(items + 1)
        return pooled

    def items(self, codes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Vectors of catalogue items.

        Args:
            codes (`LongTensor [..., L]`): their codes.
            index (`LongTensor [...]`): their catalogue index.

        Returns:
            `[..., d]`.
        """
        offsets = level_offsets(self.config, codes.device)
        tokens = self.embed_tokens(codes + offsets)
        pool = {"sum": lambda x: x.sum(-2), "mean": lambda x: x.mean(-2), "max": lambda x: x.amax(-2)}
        pooled = pool[self.config.pooling](tokens)
        return pooled + self.embed_items(index + 1) if self.config.item_embedding else pooled


class ContextEncoder(nn.Module):
    """Encodes the history's units, causally or in both directions."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.causal = config.encoder_attention == "causal"
        self.layers = nn.ModuleList(HiGREncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = make_norm(config)

    def forward(self, units: torch.Tensor, num_history: torch.Tensor, rotary: KeyValue) -> torch.Tensor:
        """`units [B, U, d]`, of which the first `num_history [B]` count, to the context `[B, U, d]`."""
        position = torch.arange(units.shape[1], device=units.device)
        if self.causal:  # later units cannot be seen anyway, whether they are history, slate or padding
            mask = (position[:, None] >= position)[None, None]
        else:
            real = position < num_history[:, None].clamp(min=1)
            mask = real[:, None, None, :].expand(-1, 1, len(position), -1)
        for layer in self.layers:
            units = layer(units, mask, rotary)
        return self.norm(units)

    def extend(
        self, units: torch.Tensor, mask: torch.Tensor, rotary: KeyValue, past: list[KeyValue] | None = None
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """Encode units that follow others; exact for a causal encoder, whose earlier states never change.

        Args:
            units (`[B, U, d]`): the new units.
            mask (`BoolTensor [B, 1, U, P + U]`): which of P units before and U new ones each sees.
            rotary: tables of the new units' positions.
            past: every layer's keys and values of the P units before.

        Returns:
            The context `[B, U, d]` of the new units, and every layer's keys and values of them.
        """
        cache = []
        for index, layer in enumerate(self.layers):
            units, key_value = layer.extend(units, mask, rotary, past[index] if past else None)
            cache.append(key_value)
        return self.norm(units), cache


class PlanProjection(nn.Linear):
    """From a planner's state `[..., d]` to a plan vector `[..., d]`, the identity to begin with.

    A plan vector is compared with item vectors, which are what states are made of: a random map between the two would
    have to be unlearnt first. A class of its own, because weights are initialised by a module's class.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False)


class SlatePlanner(nn.Module):
    """Writes one plan vector a slot, from the history and the items of the slots before."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.embed_slots = nn.Embedding(config.max_slate_size, config.hidden_size)
        self.layers = nn.ModuleList(HiGRPlannerLayer(config) for _ in range(config.planner_layers))
        self.norm = make_norm(config)
        self.proj = PlanProjection(config.hidden_size)

    def slots(self, slot: torch.Tensor) -> torch.Tensor:
        """Embeddings of slot numbers `[...]`, `[..., d]`; slots past the table share its last row."""
        return self.embed_slots(slot.clamp(max=self.embed_slots.num_embeddings - 1))

    def key_values(self, context: torch.Tensor, rotary: KeyValue) -> list[KeyValue]:
        """Cross-attention keys and values of the context for every layer; computed once a slate."""
        return [layer.cross_attn.key_value(context, rotary) for layer in self.layers]

    def forward(
        self,
        queries: torch.Tensor,
        context: list[KeyValue],
        context_mask: torch.Tensor,
        self_mask: torch.Tensor | None,
        rotary: KeyValue,
        past: list[KeyValue] | None = None,
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """`queries [B, Q, d]` to plan vectors `[B, Q, d]`, and every layer's self-attention cache."""
        cache = []
        for index, layer in enumerate(self.layers):
            before = past[index] if past else None
            queries, key_value = layer(queries, context[index], context_mask, self_mask, rotary, before)
            cache.append(key_value)
        return self.proj(self.norm(queries)), cache


class ItemGenerator(nn.Module):
    """Spells an item's codes, coarse to fine, from its plan vector, which stands where a BOS would."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.embed_steps = nn.Embedding(config.num_levels, config.hidden_size)
        self.layers = nn.ModuleList(HiGRGeneratorLayer(config) for _ in range(config.generator_layers))
        self.norm = make_norm(config)

    def key_values(self, context: torch.Tensor) -> list[KeyValue | None]:
        """Cross-attention keys and values of the context for every layer; `None` without generator context."""
        return [
            layer.cross_attn.key_value(context, None) if hasattr(layer, "cross_attn") else None
            for layer in self.layers
        ]

    def forward(
        self,
        steps: torch.Tensor,
        context: list[KeyValue | None],
        context_mask: torch.Tensor | None,
        first_step: int = 0,
        past: list[KeyValue] | None = None,
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """States from which the codes are predicted.

        Args:
            steps (`[B, R, S, d]`): per row the plan vector followed by code embeddings (or, with `past`, only the
                newest of them).
            context, context_mask: see [`HiGRGeneratorLayer`].
            first_step (`int`): step number of `steps[:, :, 0]`.
            past: every layer's cache of earlier steps.

        Returns:
            `[B, R, S, d]` and every layer's cache.
        """
        number = torch.arange(first_step, first_step + steps.shape[2], device=steps.device)
        hidden = steps + self.embed_steps(number)
        cache = []
        for index, layer in enumerate(self.layers):
            before = past[index] if past else None
            hidden, key_value = layer(hidden, context[index], context_mask, before)
            cache.append(key_value)
        return self.norm(hidden), cache

    def step(
        self,
        newest: torch.Tensor,
        context: list[KeyValue | None],
        context_mask: torch.Tensor | None,
        past: list[list[KeyValue]],
    ) -> torch.Tensor:
        """The newest code position of every hypothesis of an item beam.

        Args:
            newest (`[B, R, W, d]`): the plan vector (W = 1) or the newest code's embedding.
            context, context_mask: see [`HiGRGeneratorLayer`].
            past: a list a layer, see [`HiGRGeneratorLayer.step`]; all empty before the first code.

        Returns:
            `[B, R, W, d]`.
        """
        hidden = newest + self.embed_steps.weight[len(past[0])]
        for layer, keys, before in zip(self.layers, context, past, strict=True):
            hidden = layer.step(hidden, keys, context_mask, before)
        return self.norm(hidden)


class SemanticIDHead(nn.Module):
    """One linear layer over the whole vocabulary that is a softmax *per group* all the same.

    Group 0 is everything that may begin a unit (special and feature tokens and the codes of level 0), group l the
    codes of level l. The hidden state ends in a one-hot of the group that comes next; the matching columns of `weight`
    hold 0 for the group's own tokens and -1e4 for all others. Trainers that read `get_output_embeddings().weight`
    instead of the logits therefore get exactly the same distribution.

    With a catalogue prior a state carries G more entries between the two, G being the size of the largest group: entry
    j is added to the logit of the j-th token of whichever group comes next.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.bias = None

    @property
    def num_added(self) -> int:
        """G, the entries of a state that are added to logits as they are; 0 without a catalogue prior."""
        return self.config.largest_group if self.config.catalog_prior else 0

    @property
    def in_features(self) -> int:
        """d + G + L."""
        return self.config.hidden_size + self.num_added + self.config.num_levels

    @property
    def out_features(self) -> int:
        """The size of the vocabulary."""
        return self.config.vocab_size

    def group_slice(self, group: int) -> slice:
        """The contiguous token ids of a group."""
        offsets = self.config.level_offsets
        return slice(0 if group == 0 else offsets[group], offsets[group] + self.config.codebook_sizes[group])

    @property
    def weight(self) -> torch.Tensor:
        """`[vocab_size, d + G + L]` (G = 0 without a catalogue prior), differentiable in its first d columns."""
        added = torch.zeros(self.config.vocab_size, self.num_added)
        groups = torch.full((self.config.vocab_size, self.config.num_levels), MASKED_LOGIT)
        for group in range(self.config.num_levels):
            tokens = self.group_slice(group)
            groups[tokens, group] = 0
            if self.num_added:
                added[tokens] = torch.eye(tokens.stop - tokens.start, self.num_added)
        return torch.cat([self.proj, added.to(self.proj), groups.to(self.proj)], dim=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., d + G + L]` to logits `[..., vocab_size]`."""
        return nn.functional.linear(hidden, self.weight)

    def group_logits(self, states: torch.Tensor, group: int) -> torch.Tensor:
        """`[..., d]` or `[..., d + G]` to the logits of one group's tokens only, `[..., size of the group]`."""
        width = self.config.hidden_size
        logits = nn.functional.linear(states[..., :width], self.proj[self.group_slice(group)])
        if states.shape[-1] > width:
            logits = logits + states[..., width : width + logits.shape[-1]]
        return logits
