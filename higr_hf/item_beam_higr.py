"""The beam over the codes of an item, and what the item generator keeps of its hypotheses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .catalog_higr import Legality
from .layers_higr import KeyValue
from .prior_higr import CatalogPrior

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration
    from .search_higr import SlateContext
    from .stages_higr import ItemGenerator


class ItemBeam:
    """Spells the items of plan vectors: a beam (or a sample) over codes, legality kept at every step.

    A hypothesis is kept only if a legal item lies below its prefix, so no beam ever runs dry while its row has a legal
    item left, and an illegal item cannot come out.

    Args:
        model: the model.
        num_beams (`int`): W, hypotheses kept.
        temperature (`float`, *optional*): sample each code at this temperature instead of searching.
        rerank_weight (`float`): weight of the dense score in ranking the items found.
        generator (`torch.Generator`, *optional*): source of randomness when sampling.
        item_vectors (`[N, d]`, *optional*): of the catalogue in the order of its prefix tree, for the catalogue prior.
        added (`FloatTensor [B, N]`, *optional*): what the histories say by themselves, by item index.
    """

    def __init__(
        self,
        model: HiGRForSlateGeneration,
        num_beams: int,
        temperature: float | None = None,
        rerank_weight: float = 0.0,
        generator: torch.Generator | None = None,
        item_vectors: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> None:
        self.model, self.config, self.trie = model, model.config, model.model.trie()
        self.num_beams, self.temperature = num_beams, temperature
        self.rerank_weight, self.generator = rerank_weight, generator
        self.item_vectors, self.added = item_vectors, added
        if self.config.catalog_prior and item_vectors is None:
            self.item_vectors = model.model.ranked_item_vectors()

    def __call__(
        self,
        context: SlateContext,
        plans: torch.Tensor,
        legal: Legality,
        first_slot: int = 0,
        use_cache: bool = True,
        without: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Search every slot's item by itself.

        Args:
            context: the encoded history.
            plans (`[B, R, d]`): plan vectors of R slots.
            legal: what each row may be given.
            first_slot (`int`): slot of the first of them.
            use_cache (`bool`): keep the generator's keys and values between codes.
            without (`LongTensor [B, R, E]`, *optional*): items that each slot is searched without, -1 for none. What
                only they keep alive rides along beside the W hypotheses, at most E more, and changes none of them.

        Returns:
            Items `LongTensor [B, R, W (+ E)]`, best first, -1 past the last legal one; and their scores `FloatTensor
            [B, R, W (+ E)]`, -inf there.
        """
        if not self.config.shared_generator and plans.shape[1] > 1:
            parts = [
                self(
                    context, plans[:, row : row + 1], legal, first_slot + row, use_cache,
                    None if without is None else without[:, row : row + 1],
                )
                for row in range(plans.shape[1])
            ]  # fmt: skip
            return torch.cat([items for items, _ in parts], 1), torch.cat([scores for _, scores in parts], 1)
        model, trie = self.model.model, self.trie
        index = 0 if self.config.shared_generator else min(first_slot, len(model.generators) - 1)
        spelling = _Spelling(model.generators[index], context.generators[index], context.mask, plans, use_cache)
        offsets, last = self.config.level_offsets, self.config.num_levels - 1
        batch, slots = plans.shape[:2]
        nodes = torch.zeros(batch, slots, 1, dtype=torch.long, device=plans.device)
        totals = torch.zeros(batch, slots, 1, device=plans.device)
        prior = self._prior(plans)
        left = None if without is None else legal.without(without)
        for depth in range(last + 1):
            logits = self.model.lm_head.group_logits(spelling.states(), depth).float()
            if prior is not None:
                logits = logits + prior.logits(depth, nodes.flatten(0, 1)).view_as(logits)
            children, alive = legal.children(depth, nodes)  # [B, R, beams, C]
            token = trie.node_code[depth][children]
            if depth == 0:
                token = token + offsets[0]  # the group of level 0 begins at token 0
            grown = (totals[..., None] + logits.log_softmax(-1).gather(-1, token)).masked_fill_(~alive, float("-inf"))
            if self.temperature is not None:
                choice = self._sample(logits.gather(-1, token), alive)
                totals = grown.flatten(2).gather(-1, choice)
            elif left is None:
                totals, choice = _best(grown, self.num_beams)
            else:
                kept = left.children(depth, nodes)[1]
                parts = (
                    _best(grown.masked_fill(~kept, float("-inf")), self.num_beams),
                    _best(grown.masked_fill(kept, float("-inf")), without.shape[2]),
                )
                totals, choice = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
            nodes = children.flatten(2).gather(-1, choice)
            if depth < last:
                picked = model.embeddings.embed_tokens(trie.node_code[depth][nodes] + offsets[depth])
                spelling.follow(choice // children.shape[-1], picked)

        items = trie.order[nodes]  # semantic IDs are unique: a node of the last depth is its item's rank
        if self.rerank_weight:
            vectors = model.embeddings.items(model.item_codes[items], items)
            totals = totals + self.rerank_weight * (vectors @ plans[..., None]).squeeze(-1).float()
        if self.rerank_weight or left is not None:
            totals, order = totals.sort(dim=-1, descending=True)
            items = items.gather(-1, order)
        return torch.where(totals > float("-inf"), items, -1), totals

    def _prior(self, plans: torch.Tensor) -> CatalogPrior | None:
        if not self.config.catalog_prior:
            return None
        added = None if self.added is None else self.added.repeat_interleave(plans.shape[1], 0)
        return CatalogPrior(self.trie, self.config, plans.flatten(0, 1), self.item_vectors, added)

    def _sample(self, logits: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        """One child per slot in proportion to exp(logit / temperature) among the legal; `[B, R, 1]`."""
        scaled = (logits / self.temperature).masked_fill(~exists, float("-inf")).flatten(2)
        none_left = ~exists.flatten(2).any(-1, keepdim=True)
        probs = scaled.masked_fill(none_left, 0.0).softmax(-1)
        return torch.multinomial(probs.flatten(0, 1), 1, generator=self.generator).view(*probs.shape[:2], 1)


def _best(grown: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` (or all) extensions of hypotheses `[B, R, beams, C]`: scores, and where they stand."""
    flat = grown.flatten(2)
    return flat.topk(min(count, flat.shape[-1]), dim=-1)


class _Spelling:
    """The codes of every hypothesis of an item beam so far, as the generator wants them.

    Args:
        generator: the item generator.
        context: keys and values of the encoded history for its layers.
        mask (`BoolTensor [B, 1, 1, U]`, *optional*): the history that counts; all of it by default.
        plans (`[B, R, d]`): plan vectors of R slots.
        use_cache: keep keys and values of earlier codes instead of the codes.
    """

    def __init__(
        self,
        generator: ItemGenerator,
        context: list[KeyValue | None],
        mask: torch.Tensor | None,
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


__all__ = ["ItemBeam"]
