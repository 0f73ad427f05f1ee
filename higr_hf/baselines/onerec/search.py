"""The flat search: one beam over all M·L tokens of a slate, legality and distinctness kept at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...catalog_higr import Legality
from ...search_higr import HiGRGenerateOutput, SlateContext
from .cache import BeamCache

if TYPE_CHECKING:
    from .modeling import OneRecForSlateGeneration


class FlatDecoder:
    """States of the newest token of every hypothesis, with keys and values kept or computed anew.

    Args:
        model: the model.
        context: the encoded history.
        inputs (`[B, M·L, d]`): what every token of the slate is fed beside the token before it.
        num_beams (`int`): W, hypotheses at most.
        use_cache (`bool`): keep keys and values of the tokens before.
        compacting (`bool`): drop those that no hypothesis descends from, for which a GPU has to be waited for.
    """

    def __init__(
        self,
        model: OneRecForSlateGeneration,
        context: SlateContext,
        inputs: torch.Tensor,
        num_beams: int,
        use_cache: bool,
        compacting: bool = True,
    ) -> None:
        self.planner, self.embed = model.model.planner, model.model.embeddings.embed_tokens
        self.context, self.inputs, self.compacting = context, inputs, compacting
        batch, length = inputs.shape[:2]
        positions = context.length[:, None] + torch.arange(length, device=inputs.device)
        self.rotary = model.model.rotary(positions)
        self.tokens = torch.empty(batch, 1, 0, dtype=torch.long, device=inputs.device)
        self.cache = None
        if use_cache:
            attention = self.planner.layers[0].self_attn
            self.cache = BeamCache(
                len(self.planner.layers), batch, length * num_beams, attention.num_heads, attention.head_dim, inputs
            )

    def states(self, step: int) -> torch.Tensor:
        """`[B, W, d]`: states that predict token `step` of every hypothesis."""
        return self._recomputed(step) if self.cache is None else self._cached(step)

    def follow(self, parent: torch.Tensor, token: torch.Tensor) -> None:
        """Extend hypothesis `parent` by `token`, `LongTensor [B, W']` each."""
        if self.cache is None:
            before = self.tokens.gather(1, parent[..., None].expand(-1, -1, self.tokens.shape[2]))
            self.tokens = torch.cat([before, token[..., None]], dim=2)
        else:
            self.cache.follow(parent)
            self.tokens = token[..., None]

    def end_item(self) -> None:
        """An item is whole: few hypotheses descend from many tokens by now."""
        if self.cache is not None and self.compacting:
            self.cache.compact()

    def _cached(self, step: int) -> torch.Tensor:
        hidden = self.inputs[:, step : step + 1]
        if step:
            hidden = hidden + self.embed(self.tokens[..., -1])
        rotary = tuple(table[:, :, step : step + 1] for table in self.rotary)
        self.cache.open()
        mask = self.cache.mask
        # HiGR's block with the hypotheses of an example as its queries, so that they share one context and one cache.
        for index, layer in enumerate(self.planner.layers):
            attended = layer.cross_attn(
                layer.cross_attn_norm(hidden), self.context.planner[index], self.context.mask, rotary
            )
            hidden = hidden + attended
            normed = layer.self_attn_norm(hidden)
            key_value = self.cache.write(index, layer.self_attn.key_value(normed, rotary))
            hidden = hidden + layer.self_attn(normed, key_value, mask, rotary)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        return self.planner.norm(hidden)

    def _recomputed(self, step: int) -> torch.Tensor:
        batch, beams = self.tokens.shape[:2]
        length = step + 1

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(beams, 0)

        hidden = rows(self.inputs[:, :length])
        hidden[:, 1:] += self.embed(self.tokens.flatten(0, 1))
        causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        states, _ = self.planner(
            hidden,
            [(rows(keys), rows(values)) for keys, values in self.context.planner],
            None if self.context.mask is None else rows(self.context.mask),
            causal[None, None],
            tuple(rows(table[:, :, :length]) for table in self.rotary),
        )
        return states[:, -1].unflatten(0, (batch, beams))


class FlatBeamSearch:
    """One call's beam over the tokens of a slate.

    A hypothesis is a slate so far. It is kept only while a legal item that it does not hold yet lies below its prefix,
    so no hypothesis runs dry while its row has a legal item left, and no slate holds an item twice.

    Args:
        model: the model.
        legal: what each row may be given.
        num_beams (`int`): W, hypotheses kept; 1 is the greedy decoder.
        use_cache (`bool`): keep keys and values.
        short (`bool`, *optional*): whether a row may have fewer legal items than slots; looked up by default.
        compacting (`bool`): see [`FlatDecoder`].
    """

    def __init__(
        self,
        model: OneRecForSlateGeneration,
        legal: Legality,
        num_beams: int,
        use_cache: bool,
        short: bool | None = None,
        compacting: bool = True,
    ) -> None:
        self.model, self.config, self.legal, self.trie = model, model.config, legal, legal.trie
        self.num_beams, self.use_cache, self.short, self.compacting = num_beams, use_cache, short, compacting

    def run(self, context: SlateContext, inputs: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
        """Search.

        Args:
            context: the encoded history.
            inputs (`[B, M, L, d]`): what every token is fed beside the token before it.
            slate_size (`int`): M.

        Returns:
            [`HiGRGenerateOutput`] whose `slates` are the best hypothesis; `candidates[:, m, w]` is the item that
            hypothesis w holds in slot m.
        """
        trie, offsets = self.trie, self.config.level_offsets
        decoder = FlatDecoder(
            self.model, context, inputs.flatten(1, 2), self.num_beams, self.use_cache, self.compacting
        )
        batch, device = len(inputs), inputs.device
        totals = torch.zeros(batch, 1, device=device)
        ranks = torch.empty(batch, 1, 0, dtype=torch.long, device=device)  # items of the slate so far
        marks = torch.empty(batch, 1, 0, device=device)  # the total after each of them
        remaining = self.legal.remaining()
        short = bool((remaining < slate_size).any()) if self.short is None else self.short
        for slot in range(slate_size):
            nodes = torch.zeros_like(totals, dtype=torch.long)
            dry = remaining <= slot if short else None
            for depth in range(self.config.num_levels):
                states = decoder.states(slot * self.config.num_levels + depth)
                log_probs = self.model.lm_head.group_logits(states, depth).float().log_softmax(-1)
                children, exists = trie.children(depth, nodes)  # [B, W, C]
                exists = exists & has_legal_left(self.legal, depth, nodes, children, ranks)
                code = trie.node_code[depth][children]
                token = code + (offsets[0] if depth == 0 else 0)  # the group of level 0 begins at token 0
                grown = totals[..., None] + log_probs.gather(-1, token)
                grown = grown.masked_fill_(~exists, float("-inf"))
                if short:
                    grown = _kept_as_they_are(grown, totals, dry)
                totals, choice = grown.flatten(1).topk(min(self.num_beams, grown[0].numel()), dim=-1)
                parent = choice // children.shape[-1]
                nodes = children.flatten(1).gather(1, choice)
                decoder.follow(parent, code.flatten(1).gather(1, choice) + offsets[depth])
                if slot:
                    index = parent[..., None].expand(-1, -1, slot)
                    ranks, marks = ranks.gather(1, index), marks.gather(1, index)
            decoder.end_item()
            if slot == 0:
                ranks, marks = ranks.expand(-1, nodes.shape[1], -1), marks.expand(-1, nodes.shape[1], -1)
            # Semantic IDs are unique: a node of the last depth is its item's rank.
            new = nodes if not short else torch.where(dry[:, None], -1, nodes)
            ranks, marks = torch.cat([ranks, new[..., None]], 2), torch.cat([marks, totals[..., None]], 2)
        return self._output(ranks, marks)

    def _output(self, ranks: torch.Tensor, marks: torch.Tensor) -> HiGRGenerateOutput:
        """Items and their log-probabilities from `ranks` and running totals, `[B, W, M]` each."""
        whole = (ranks >= 0) & (marks > float("-inf"))
        items = torch.where(whole, self.trie.order[ranks.clamp(min=0)], -1)
        scores = torch.diff(marks, dim=2, prepend=torch.zeros_like(marks[..., :1]))
        scores = torch.where(whole, scores, float("-inf"))
        return HiGRGenerateOutput(
            slates=items[:, 0],
            scores=scores[:, 0],
            candidates=items.transpose(1, 2),
            candidate_scores=scores.transpose(1, 2),
        )


def has_legal_left(
    legal: Legality, depth: int, nodes: torch.Tensor, children: torch.Tensor, ranks: torch.Tensor
) -> torch.Tensor:
    """Whether each child has a legal item below it that its hypothesis' slate does not hold yet.

    Args:
        legal: what each row may be given.
        depth (`int`): depth of the children.
        nodes (`LongTensor [B, W]`): their parents; zeros for the root.
        children (`LongTensor [B, W, C]`): what `SIDTrie.children` gave for the parents.
        ranks (`LongTensor [B, W, m]`): ranks of the legal items that a hypothesis' slate holds, -1 for none.

    Returns:
        `BoolTensor [B, W, C]`.
    """
    bounds = legal.trie.first_rank[depth]
    if depth == 0:  # every hypothesis has the same children
        one = children[:, :1]
        count = legal.count(bounds[one], bounds[one + 1]).expand(children.shape)
    else:
        count = legal.count(bounds[children], bounds[children + 1])
    if ranks.shape[2] == 0:
        return count > 0
    # Each item of the slate takes one off the child that it lies below, where it lies below this parent.
    place = torch.searchsorted(bounds, ranks, right=True) - 1 - children[..., :1]
    below = (place >= 0) & (place < children.shape[-1]) & (ranks >= 0)
    if depth:
        parents = legal.trie.first_rank[depth - 1]
        below &= (ranks >= parents[nodes][..., None]) & (ranks < parents[nodes + 1][..., None])
    place = place.clamp_(0, children.shape[-1] - 1)
    return count.scatter_add(2, place, -below.long()) > 0


def _kept_as_they_are(grown: torch.Tensor, totals: torch.Tensor, dry: torch.Tensor) -> torch.Tensor:
    """Let the hypotheses of rows without legal items go on unchanged, each through its first child."""
    same = torch.full_like(grown, float("-inf"))
    same[..., 0] = totals
    return torch.where(dry[:, None, None], same, grown)
