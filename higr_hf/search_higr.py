"""The slate search: planner steps over slots, beams over the codes of an item, legality kept at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.utils import ModelOutput

from .catalog_higr import Legality
from .layers_higr import KeyValue
from .layout_higr import SlateQueries
from .prior_higr import CatalogPrior

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration
    from .stages_higr import ItemGenerator


@dataclass
class HiGRGenerateOutput(ModelOutput):
    """A generated slate for every prompt.

    Args:
        sequences (`LongTensor [B, T + M·L + 1]`): The prompt, the slate's code tokens and `<eos>`; slots that could
            not be filled hold `<pad>`.
        slates (`LongTensor [B, M]`): Catalogue index of every slot's item, -1 where none was left.
        scores (`FloatTensor [B, M]`): Log-probability of every item under the generator (its codes' sum), plus
            `rerank_weight` × the dense score where reranking is on.
        candidates (`LongTensor [B, M, W]`): The beam's items per slot, best first, -1 past the last legal one.
        candidate_scores (`FloatTensor [B, M, W]`): Their scores.
    """

    sequences: torch.LongTensor | None = None
    slates: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    candidates: torch.LongTensor | None = None
    candidate_scores: torch.FloatTensor | None = None


@dataclass
class SlateContext:
    """The encoded history, and what every layer needs of it, computed once a slate.

    `encoded` is `[B, U, d]`; `planner` and `generators` hold keys and values `[B, heads, U, head_dim]` a layer; `mask`
    is `BoolTensor [B, 1, 1, U]`; `length` is `LongTensor [B]`. `item_vectors [N, d]`, where given, are the catalogue's
    vectors in the order of its prefix tree, as somebody kept them whose weights do not change.
    """

    encoded: torch.Tensor
    planner: list[KeyValue]
    generators: list[list[KeyValue | None]]
    mask: torch.Tensor
    length: torch.Tensor
    item_vectors: torch.Tensor | None = None


class SlateSearch:
    """One call's search over slots and codes; `added [B, N]` are the prompts' item-item scores."""

    def __init__(
        self,
        model: HiGRForSlateGeneration,
        legal: Legality,
        num_beams: int,
        temperature: float | None,
        rerank_weight: float,
        generator: torch.Generator | None,
        item_vectors: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> None:
        self.model, self.config, self.added = model, model.config, added
        self.trie, self.legal = legal.trie, legal
        self.num_beams, self.temperature = num_beams, temperature
        self.rerank_weight, self.generator = rerank_weight, generator
        self.item_vectors = item_vectors
        if self.config.catalog_prior and item_vectors is None:
            self.item_vectors = model.model.ranked_item_vectors()

    def _queries(
        self, context: SlateContext, wish: torch.Tensor, first: int, count: int, feeding: bool = False
    ) -> SlateQueries:
        """Queries of slots `first … first + count - 1` of every row; `feeding` the item before each but the first."""
        batch = len(wish)
        slot = torch.arange(first, first + count, device=wish.device).expand(batch, -1)
        zero = torch.zeros_like(slot)
        return SlateQueries(
            context=context.length[:, None].expand(-1, count),
            slot=slot,
            window=zero,
            previous=torch.where(slot > 0, slot, -1) if feeding else zero - 1,
            target=zero - 1,
            wish=wish[:, None].expand(-1, count),
        )

    def _plan(
        self,
        context: SlateContext,
        queries: SlateQueries,
        fed: torch.Tensor | None = None,
        past: list[KeyValue] | None = None,
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        model = self.model.model
        inputs = model.query_inputs(context.encoded, queries, fed)
        rotary = model.rotary(queries.context + queries.slot)
        self_mask = queries.masks(1)[1] if queries.slot.shape[1] > 1 else None
        return model.planner(inputs, context.planner, context.mask, self_mask, rotary, past)

    def sequential(
        self, context: SlateContext, wish: torch.Tensor, slate_size: int, use_cache: bool
    ) -> HiGRGenerateOutput:
        """Plan a slot, decode its item, feed the item back; `[B, M]` items."""
        model = self.model.model
        past, chosen = None, []
        # Nothing is fed to the first slot; the zero vector only keeps its place.
        fed = [torch.zeros_like(context.encoded[:, :1])]
        for slot in range(slate_size):
            if use_cache:
                queries = self._queries(context, wish, slot, 1, feeding=True)
                plans, past = self._plan(context, queries, fed[-1], past)
            else:
                queries = self._queries(context, wish, 0, slot + 1, feeding=True)
                plans = self._plan(context, queries, torch.cat(fed, dim=1))[0][:, -1:]
            items, scores = self.item_beam(context, plans, slot, use_cache)
            best = items[:, 0, :1]
            self.legal.exclude(best)
            codes = model.item_codes[best.clamp(min=0)]
            vector = model.embeddings.items(codes, best.clamp(min=0))
            fed.append(torch.where(best[..., None] >= 0, vector, 0))
            chosen.append((best, items, scores))
        return HiGRGenerateOutput(
            slates=torch.cat([best for best, _, _ in chosen], dim=1),
            scores=torch.cat([scores[:, :, 0] for _, _, scores in chosen], dim=1),
            candidates=torch.cat([items for _, items, _ in chosen], dim=1),
            candidate_scores=torch.cat([scores for _, _, scores in chosen], dim=1),
        )

    def plan_once(self, context: SlateContext, wish: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
        """Plan all slots in one pass, decode them together, then settle duplicates in slot order."""
        queries = self._queries(context, wish, 0, slate_size)
        plans, _ = self._plan(context, queries)
        if self.temperature is not None:
            return self._sampled_slots(context, plans)
        # With W ≥ M distinct candidates a slot, the slots before it can never take them all.
        self.num_beams = max(self.num_beams, slate_size)
        items, scores = self.item_beam(context, plans, 0, True)
        taken = torch.full_like(items[:, :, 0], -1)
        picked_scores = torch.full_like(scores[:, :, 0], float("-inf"))
        for slot in range(slate_size):
            clash = (items[:, slot, :, None] == taken[:, None, :slot]).any(-1) | (items[:, slot] < 0)
            order = torch.where(clash, float("-inf"), scores[:, slot])
            best = order.argmax(-1, keepdim=True)
            free = ~clash.gather(1, best)
            taken[:, slot : slot + 1] = torch.where(free, items[:, slot].gather(1, best), -1)
            picked_scores[:, slot : slot + 1] = torch.where(free, order.gather(1, best), float("-inf"))
        return HiGRGenerateOutput(slates=taken, scores=picked_scores, candidates=items, candidate_scores=scores)

    def _sampled_slots(self, context: SlateContext, plans: torch.Tensor) -> HiGRGenerateOutput:
        """Sample the slots of given plans one after the other, each from what the earlier ones left."""
        chosen = []
        for slot in range(plans.shape[1]):
            items, scores = self.item_beam(context, plans[:, slot : slot + 1], slot, True)
            self.legal.exclude(items[:, 0])
            chosen.append((items, scores))
        items, scores = (torch.cat(part, dim=1) for part in zip(*chosen, strict=True))
        return HiGRGenerateOutput(
            slates=items[..., 0], scores=scores[..., 0], candidates=items, candidate_scores=scores
        )

    def first_plan(self, context: SlateContext, wish: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
        """The M best items of the first slot's beam."""
        queries = self._queries(context, wish, 0, 1)
        plans, _ = self._plan(context, queries)
        if self.temperature is not None:
            return self._sampled_slots(context, plans.expand(-1, slate_size, -1))
        self.num_beams = max(self.num_beams, slate_size)
        items, scores = self.item_beam(context, plans, 0, True)
        best, best_scores = items[:, 0, :slate_size], scores[:, 0, :slate_size]
        return HiGRGenerateOutput(
            slates=best, scores=best_scores,
            candidates=best[..., None], candidate_scores=best_scores[..., None],
        )  # fmt: skip

    def item_beam(
        self, context: SlateContext, plans: torch.Tensor, first_slot: int, use_cache: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A beam of width W over the codes of one item, for every plan vector.

        A hypothesis is kept only if a legal item lies below its prefix, so no beam ever runs dry while its row has a
        legal item left, and an illegal item cannot come out.

        Args:
            context: the encoded history.
            plans (`[B, R, d]`): plan vectors of R slots.
            first_slot (`int`): slot of the first of them.
            use_cache (`bool`): keep the generator's keys and values between codes.

        Returns:
            Items `LongTensor [B, R, W]`, best first, -1 past the last legal one; and their scores `FloatTensor
            [B, R, W]`, -inf there.
        """
        if not self.config.shared_generator and plans.shape[1] > 1:
            parts = [
                self.item_beam(context, plans[:, row : row + 1], first_slot + row, use_cache)
                for row in range(plans.shape[1])
            ]
            return torch.cat([items for items, _ in parts], 1), torch.cat([scores for _, scores in parts], 1)
        model, trie = self.model.model, self.trie
        index = 0 if self.config.shared_generator else min(first_slot, len(model.generators) - 1)
        spelling = _Spelling(model.generators[index], context.generators[index], context.mask, plans, use_cache)
        offsets, last = self.config.level_offsets, self.config.num_levels - 1
        batch, slots = plans.shape[:2]
        nodes = torch.zeros(batch, slots, 1, dtype=torch.long, device=plans.device)
        totals = torch.zeros(batch, slots, 1, device=plans.device)
        prior = None
        if self.config.catalog_prior:
            added = None if self.added is None else self.added.repeat_interleave(slots, 0)
            prior = CatalogPrior(trie, self.config, plans.flatten(0, 1), self.item_vectors, added)
        for depth in range(last + 1):
            logits = self.model.lm_head.group_logits(spelling.states(), depth).float()
            if prior is not None:
                logits = logits + prior.logits(depth, nodes.flatten(0, 1)).view_as(logits)
            children, legal = self.legal.children(depth, nodes)  # [B, R, beams, C]
            token = trie.node_code[depth][children]
            if depth == 0:
                token = token + offsets[0]  # the group of level 0 begins at token 0
            grown = (totals[..., None] + logits.log_softmax(-1).gather(-1, token)).masked_fill_(~legal, float("-inf"))
            if self.temperature is None:
                totals, choice = grown.flatten(2).topk(min(self.num_beams, grown[0, 0].numel()), dim=-1)
            else:
                choice = self._sample(logits.gather(-1, token), legal)
                totals = grown.flatten(2).gather(-1, choice)
            nodes = children.flatten(2).gather(-1, choice)
            if depth < last:
                picked = model.embeddings.embed_tokens(trie.node_code[depth][nodes] + offsets[depth])
                spelling.follow(choice // children.shape[-1], picked)

        items = trie.order[nodes]  # semantic IDs are unique: a node of the last depth is its item's rank
        if self.rerank_weight:
            vectors = model.embeddings.items(model.item_codes[items], items)
            totals = totals + self.rerank_weight * (vectors @ plans[..., None]).squeeze(-1).float()
            totals, order = totals.sort(dim=-1, descending=True)
            items = items.gather(-1, order)
        return torch.where(totals > float("-inf"), items, -1), totals

    def _sample(self, logits: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """One child per slot in proportion to exp(logit / temperature) among the legal; `[B, R, 1]`."""
        scaled = (logits / self.temperature).masked_fill(~exists, float("-inf")).flatten(2)
        none_left = ~exists.flatten(2).any(-1, keepdim=True)
        probs = scaled.masked_fill(none_left, 0.0).softmax(-1)
        return torch.multinomial(probs.flatten(0, 1), 1, generator=self.generator).view(*probs.shape[:2], 1)


class _Spelling:
    """The codes of every hypothesis of an item beam so far, as the generator wants them.

    Args:
        generator: the item generator.
        context: keys and values of the encoded history for its layers.
        mask (`BoolTensor [B, 1, 1, U]`): the history that counts.
        plans (`[B, R, d]`): plan vectors of R slots.
        use_cache: keep keys and values of earlier codes instead of the codes.
    """

    def __init__(
        self,
        generator: ItemGenerator,
        context: list[KeyValue | None],
        mask: torch.Tensor,
        plans: torch.Tensor,
        use_cache: bool,
    ) -> None:
        self.generator, self.context, self.mask = generator, context, mask
        self.past: list[list[KeyValue]] | None = [[] for _ in generator.layers] if use_cache else None
        self.steps = plans[:, :, None, None]  # [B, R, W, S, d]; with a cache the newest alone

    def states(self) -> torch.Tensor:
        """States `[B, R, W, d]` that predict the next code."""
        if self.past is not None:
            return self.generator.step(self.steps[..., -1, :], self.context, self.mask, self.past)
        rows = self.steps.shape[:3]
        return self.generator(self.steps.flatten(1, 2), self.context, self.mask)[0][:, :, -1].view(*rows, -1)

    def follow(self, parent: torch.Tensor, picked: torch.Tensor) -> None:
        """Extend hypothesis `parent (LongTensor [B, R, W'])` by a code's embedding `picked [B, R, W', d]`."""
        if self.past is None:
            before = torch.take_along_dim(self.steps, parent[..., None, None], dim=2)
            self.steps = torch.cat([before, picked.unsqueeze(3)], dim=3)
            return
        self.steps = picked.unsqueeze(3)
        for layer in self.past:
            for position, pair in enumerate(layer):
                if pair[0].shape[2] > 1:  # all hypotheses share what one position was before
                    layer[position] = tuple(torch.take_along_dim(x, parent[..., None, None], dim=2) for x in pair)
