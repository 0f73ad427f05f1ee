"""The slate search: how the slots of a slate are planned, and which of the items found for each it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.utils import ModelOutput

from .catalog_higr import Legality
from .item_beam_higr import ItemBeam
from .layers_higr import KeyValue
from .layout_higr import SlateQueries

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration


@dataclass
class HiGRGenerateOutput(ModelOutput):
    """A generated slate for every prompt.

    Args:
        sequences (`LongTensor [B, T + M·L + 1]`): The prompt, the slate's code tokens and `<eos>`; slots that could
            not be filled hold `<pad>`.
        slates (`LongTensor [B, M]`): Catalogue index of every slot's item, -1 where none was left.
        scores (`FloatTensor [B, M]`): Log-probability of every item under the generator (its codes' sum), plus
            `rerank_weight` × the dense score where reranking is on.
        candidates (`LongTensor [B, M, W]`): The beam's items per slot, best first, -1 past the last legal one. A
            verified slot has up to M - 1 more, items of the draft.
        candidate_scores (`FloatTensor [B, M, W]`): Their scores.
    """

    sequences: torch.LongTensor | None = None
    slates: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    candidates: torch.LongTensor | None = None
    candidate_scores: torch.FloatTensor | None = None


@dataclass(frozen=True)
class SearchOptions:
    """How slates are searched: arguments of `generate`, filled in and checked.

    `temperature` is None for a search, and samples where it is given. With `fixed`, for a decoder of one shape, no
    size may depend on the data: a search that drops what it no longer needs keeps it, and fills missing slots with -1
    where `allow_short` says that there may be any.
    """

    slate_size: int
    num_beams: int
    slate_mode: str = "sequential"
    temperature: float | None = None
    rerank_weight: float = 0.0
    use_cache: bool = True
    generator: torch.Generator | None = None
    allow_short: bool = False
    fixed: bool = False


@dataclass
class SlateContext:
    """The encoded history, and what every layer needs of it, computed once a slate.

    `encoded` is `[B, U, d]`; `planner` and `generators` hold keys and values `[B, heads, U, head_dim]` a layer; `mask`
    is `BoolTensor [B, 1, 1, U]`, None where every unit counts; `length` is `LongTensor [B]`. `item_vectors [N, d]`,
    where given, are the catalogue's vectors in the order of its prefix tree, as somebody kept them whose weights do
    not change.
    """

    encoded: torch.Tensor
    planner: list[KeyValue]
    generators: list[list[KeyValue | None]]
    mask: torch.Tensor | None
    length: torch.Tensor
    item_vectors: torch.Tensor | None = None


class SlateSearch:
    """One call's search over slots.

    Args:
        model: the model.
        legal: what each row may be given; what is chosen is taken out of it.
        beam: searches single items.
    """

    def __init__(self, model: HiGRForSlateGeneration, legal: Legality, beam: ItemBeam) -> None:
        self.model, self.legal, self.beam = model, legal, beam

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
            items, scores = self.beam(context, plans, self.legal, slot, use_cache)
            best = items[:, 0, :1]
            self.legal.exclude(best)
            fed.append(self._vectors(best))
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
        if self.beam.temperature is not None:
            return self._sampled_slots(context, plans)
        self._widen(slate_size)
        return _settled(*self.beam(context, plans, self.legal))

    def verified(self, context: SlateContext, wish: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
        """Draft a slate with `plan_once`, plan all slots again given the draft's items before each, and decode anew.

        A slot is searched without the draft's items before it, as `sequential` searches it. Up to and including the
        first slot whose item changes the slate is therefore what `sequential` gives with the same beam, all of it
        where none does. Behind a change the draft's items that are free again come into question too, and what the
        slots before have taken does not.
        """
        drafted = SlateSearch(self.model, self.legal.copy(), self.beam).plan_once(context, wish, slate_size).slates
        queries = self._queries(context, wish, 0, slate_size, feeding=True)
        # Nothing is fed to the first slot; the zero vector only keeps its place.
        fed = torch.cat([torch.zeros_like(context.encoded[:, :1]), self._vectors(drafted[:, :-1])], dim=1)
        plans, _ = self._plan(context, queries, fed)
        if self.beam.temperature is not None:
            return self._sampled_slots(context, plans)
        earlier = torch.ones(slate_size, slate_size - 1, dtype=torch.bool, device=drafted.device).tril(-1)
        before = torch.where(earlier, drafted[:, None, :-1], -1)
        return _settled(*self.beam(context, plans, self.legal, without=before))

    def _widen(self, slate_size: int) -> None:
        # With W ≥ M distinct candidates a slot, the slots before it can never take them all.
        self.beam.num_beams = max(self.beam.num_beams, slate_size)

    def _vectors(self, items: torch.Tensor) -> torch.Tensor:
        """What the planner is fed of items `LongTensor [B, Q]`, `[B, Q, d]`; zeros for -1."""
        model, index = self.model.model, items.clamp(min=0)
        vectors = model.embeddings.items(model.item_codes[index], index)
        return torch.where(items[..., None] >= 0, vectors, 0)

    def _sampled_slots(self, context: SlateContext, plans: torch.Tensor) -> HiGRGenerateOutput:
        """Sample the slots of given plans one after the other, each from what the earlier ones left."""
        chosen = []
        for slot in range(plans.shape[1]):
            items, scores = self.beam(context, plans[:, slot : slot + 1], self.legal, slot)
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
        if self.beam.temperature is not None:
            return self._sampled_slots(context, plans.expand(-1, slate_size, -1))
        self._widen(slate_size)
        items, scores = self.beam(context, plans, self.legal)
        best, best_scores = items[:, 0, :slate_size], scores[:, 0, :slate_size]
        return HiGRGenerateOutput(
            slates=best, scores=best_scores,
            candidates=best[..., None], candidate_scores=best_scores[..., None],
        )  # fmt: skip


def _settled(items: torch.Tensor, scores: torch.Tensor) -> HiGRGenerateOutput:
    """Every slot's best candidate `[B, M, W]` that no earlier slot took."""
    taken = torch.full_like(items[:, :, 0], -1)
    picked_scores = torch.full_like(scores[:, :, 0], float("-inf"))
    for slot in range(items.shape[1]):
        clash = (items[:, slot, :, None] == taken[:, None, :slot]).any(-1) | (items[:, slot] < 0)
        order = torch.where(clash, float("-inf"), scores[:, slot])
        best = order.argmax(-1, keepdim=True)
        free = ~clash.gather(1, best)
        taken[:, slot : slot + 1] = torch.where(free, items[:, slot].gather(1, best), -1)
        picked_scores[:, slot : slot + 1] = torch.where(free, order.gather(1, best), float("-inf"))
    return HiGRGenerateOutput(slates=taken, scores=picked_scores, candidates=items, candidate_scores=scores)


__all__ = ["HiGRGenerateOutput", "SearchOptions", "SlateContext", "SlateSearch"]
