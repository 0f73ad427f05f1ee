"""The slate search: one planner step a slot, a beam over codes inside an item, legal items only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from .catalog_higr import Legality
from .layers_higr import KeyValue
from .layout_higr import SlateLayout, SlateQueries

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration

SLATE_MODES = ("sequential", "plan_once", "first_plan")

# Arguments that trainers and pipelines send to any `generate`, and that have no meaning for a slate.
_WITHOUT_MEANING = frozenset(
    {"max_new_tokens", "max_length", "min_new_tokens", "synced_gpus", "disable_compile", "cache_implementation",
     "pad_token_id", "bos_token_id", "eos_token_id", "logits_processor", "stopping_criteria", "streamer", "tokenizer",
     "output_scores", "position_ids", "token_type_ids", "compile_config", "use_model_defaults"}
)  # fmt: skip


@dataclass
class HiGRGenerateOutput(ModelOutput):
    """A generated slate for every prompt.

    Args:
        sequences (`LongTensor [B, T + M·L + 1]`): The prompt, the slate's code tokens and `<eos>`; slots that could
            not be filled hold `<pad>`.
        items (`LongTensor [B, M]`): Catalogue index of every slot's item, -1 where none was left.
        scores (`FloatTensor [B, M]`): Log-probability of every item under the generator (its codes' sum), plus
            `rerank_weight` × the dense score where reranking is on.
        candidates (`LongTensor [B, M, W]`): The beam's items per slot, best first, -1 past the last legal one.
        candidate_scores (`FloatTensor [B, M, W]`): Their scores.
    """

    sequences: torch.LongTensor | None = None
    items: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    candidates: torch.LongTensor | None = None
    candidate_scores: torch.FloatTensor | None = None


@dataclass
class _Context:
    """The encoded history, and what every layer needs of it, computed once a slate.

    `encoded` is `[B, U, d]`; `planner` and `generators` hold keys and values `[B, heads, U, head_dim]` a layer; `mask`
    is `BoolTensor [B, 1, 1, U]`; `length` is `LongTensor [B]`.
    """

    encoded: torch.Tensor
    planner: list[KeyValue]
    generators: list[list[KeyValue | None]]
    mask: torch.Tensor
    length: torch.Tensor


class SlateGenerationMixin(GenerationMixin):
    """`generate` for slates. Token-level `generate` of transformers does not fit: its caches and beams are tokens."""

    @torch.inference_mode()
    def generate(
        self: HiGRForSlateGeneration,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        slate_size: int | None = None,
        num_beams: int | None = None,
        slate_mode: str | None = None,
        exclude: torch.Tensor | Sequence[Sequence[int]] | None = None,
        exclude_history: bool = False,
        allowed: torch.Tensor | Sequence[int] | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        num_return_sequences: int | None = None,
        rerank_weight: float | None = None,
        allow_short: bool = False,
        use_cache: bool | None = None,
        generator: torch.Generator | None = None,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool | None = None,
        **kwargs: Any,
    ) -> HiGRGenerateOutput | torch.LongTensor:
        r"""
        Generate one slate a prompt: greedy over slots, a beam (or a sample) inside each item.

        Args:
            input_ids (`LongTensor [B, T]`): Prompts, `<bos> history <slate>`; a missing `<slate>` is understood. A
                feedback token after `<slate>` asks for items of that feedback.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens; padding on either side.
            slate_size (`int`, *optional*): M; the configuration's by default, any size up to the legal items.
            num_beams (`int`, *optional*): W, hypotheses kept inside an item.
            slate_mode (`str`, *optional*): `"sequential"` plans a slot after the item before it was decoded (as
                published). `"plan_once"` plans all slots in one pass without feeding items back and decodes them
                together; a slot whose best item an earlier slot took gets its next best. `"first_plan"` fills the
                slate with the M best items of the first plan's beam.
            exclude (`LongTensor [B, E]` padded with -1, or one sequence of item indices a prompt, *optional*):
                Items that must not appear: seen ones, filtered ones.
            exclude_history (`bool`): Also exclude the items found in each prompt.
            allowed (`BoolTensor [N]` or `[B, N]`, or a sequence of item indices, *optional*): Only these may appear.
            do_sample (`bool`, *optional*): Sample each code among the legal ones instead of searching.
            temperature (`float`, *optional*): Divides the logits when sampling.
            num_return_sequences (`int`, *optional*): Slates a prompt when sampling; prompts are repeated in order.
            rerank_weight (`float`, *optional*): Weight of the dense score in choosing among a beam's items.
            allow_short (`bool`): Fill missing slots with -1 when fewer legal items than slots exist, instead of
                raising.
            use_cache (`bool`, *optional*): Keep keys and values of earlier slots and codes. Off recomputes them, for
                comparison; the result is the same.
            generator (`torch.Generator`, *optional*): Source of randomness when sampling.
            generation_config (`GenerationConfig`, *optional*): Defaults for the arguments above.
            return_dict_in_generate (`bool`, *optional*): Return [`HiGRGenerateOutput`] instead of the sequences.

        Returns:
            `LongTensor [B, T + M·L + 1]` of prompt, slate and `<eos>`, or [`HiGRGenerateOutput`].

        Raises:
            ValueError: for an argument out of range, an unknown item, a prompt with tokens after `<slate>`, a history
                longer than `max_history`, or fewer legal items than slots.
        """
        unknown = set(kwargs) - _WITHOUT_MEANING
        if unknown:
            raise ValueError(f"generate() does not know the arguments {sorted(unknown)}; see its documentation.")
        config, trie = self.config, self.model.trie()
        defaults = generation_config or self.generation_config
        slate_size = config.slate_size if slate_size is None else slate_size
        num_beams = (defaults.num_beams or config.num_beams) if num_beams is None else num_beams
        slate_mode = slate_mode or getattr(defaults, "slate_mode", None) or config.slate_mode
        do_sample = bool(defaults.do_sample) if do_sample is None else do_sample
        temperature = (defaults.temperature or 1.0) if temperature is None else temperature
        rerank_weight = config.rerank_weight if rerank_weight is None else rerank_weight
        use_cache = config.use_cache if use_cache is None else use_cache
        repeats = (defaults.num_return_sequences or 1) if num_return_sequences is None else num_return_sequences
        if return_dict_in_generate is None:
            return_dict_in_generate = bool(defaults.return_dict_in_generate)
        for name, value in (("slate_size", slate_size), ("num_beams", num_beams), ("num_return_sequences", repeats)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if slate_mode not in SLATE_MODES:
            raise ValueError(f"slate_mode must be one of {SLATE_MODES}; got {slate_mode!r}.")
        if do_sample and temperature <= 0:
            raise ValueError(f"temperature must be positive when sampling; got {temperature}.")
        if repeats > 1 and not do_sample:
            raise ValueError("num_return_sequences > 1 needs do_sample=True: the search finds one slate a prompt.")
        if do_sample:
            num_beams = 1
        if rerank_weight and not config.dense_head:
            raise ValueError("rerank_weight needs a model trained with dense_head=True.")

        if attention_mask is None:
            attention_mask = (input_ids != config.pad_token_id).long()
        if repeats > 1:
            input_ids, attention_mask = (x.repeat_interleave(repeats, 0) for x in (input_ids, attention_mask))
        batch = len(input_ids)
        layout = self._prompt_layout(input_ids, attention_mask)
        items = trie.lookup(layout.codes)

        legal = Legality(trie, batch, _allowed_mask(allowed, trie.num_items, batch, repeats, input_ids.device))
        if not bool(self.model.item_active.all()):
            removed = (~self.model.item_active).nonzero().T.expand(batch, -1)
            legal.exclude(removed)
        if exclude is not None:
            legal.exclude(_item_lists(exclude, trie.num_items, batch, repeats, input_ids.device))
        if exclude_history:
            legal.exclude(items)
        remaining = legal.remaining()
        if not allow_short and bool((remaining < slate_size).any()):
            row = int((remaining < slate_size).nonzero()[0])
            raise ValueError(
                f"Prompt {row} has only {int(remaining[row])} legal items for a slate of {slate_size}: ask for fewer "
                "slots, exclude less, or pass allow_short=True to get -1 in the missing slots."
            )

        search = _SlateSearch(self, legal, num_beams, temperature if do_sample else None, rerank_weight, generator)
        context = self._encode_prompt(input_ids, layout, items)
        if slate_mode == "sequential":
            result = search.sequential(context, layout.wish, slate_size, use_cache)
        elif slate_mode == "plan_once":
            result = search.plan_once(context, layout.wish, slate_size)
        else:
            result = search.first_plan(context, layout.wish, slate_size)
        result.sequences = self._slate_sequences(input_ids, result.items)
        return result if return_dict_in_generate else result.sequences

    def _prompt_layout(self: HiGRForSlateGeneration, input_ids: torch.Tensor, mask: torch.Tensor) -> SlateLayout:
        layout = SlateLayout.parse(input_ids, mask, self.config)
        empty = layout.num_units == 0
        if bool(empty.any()):
            row = int(empty.nonzero()[0])
            raise ValueError(f"Prompt {row} is empty: a user without history is the prompt `<bos><slate>`.")
        after = layout.num_units > layout.num_history + 1
        if bool(after.any()):
            row = int(after.nonzero()[0])
            raise ValueError(
                f"Prompt {row} goes on after `<slate>`: generate() starts slates, it cannot continue one."
            )
        longest = int(layout.num_history.max())
        if longest > self.config.max_history + 1:  # + 1 for <bos>
            row = int(layout.num_history.argmax())
            raise ValueError(
                f"Prompt {row} has a history of {longest - 1} items; the model was trained on at most "
                f"{self.config.max_history}. Cut it to the newest with `tokenizer.build_prompt(..., max_history=...)`."
            )
        return layout

    def _encode_prompt(
        self: HiGRForSlateGeneration, input_ids: torch.Tensor, layout: SlateLayout, items: torch.Tensor
    ) -> _Context:
        model = self.model
        units = model.embeddings.units(input_ids, layout, items)
        encoded, rotary = model.encode(units, layout.num_history)
        unit = torch.arange(layout.size, device=input_ids.device)
        return _Context(
            encoded=encoded,
            planner=model.planner.key_values(encoded, rotary),
            generators=[generator.key_values(encoded) for generator in model.generators],
            mask=(unit < layout.num_history[:, None].clamp(min=1))[:, None, None],
            length=layout.num_history.clamp(min=1),
        )

    def _slate_sequences(self: HiGRForSlateGeneration, input_ids: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        config = self.config
        offsets = torch.tensor(config.level_offsets, device=items.device)
        tokens = self.model.item_codes[items.clamp(min=0)] + offsets
        tokens = torch.where(items[..., None] >= 0, tokens, config.pad_token_id).flatten(1)
        eos = torch.full_like(tokens[:, :1], config.eos_token_id)
        return torch.cat([input_ids, tokens, eos], dim=1)


class _SlateSearch:
    """One call's search over slots and codes."""

    def __init__(
        self,
        model: HiGRForSlateGeneration,
        legal: Legality,
        num_beams: int,
        temperature: float | None,
        rerank_weight: float,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.config = model, model.config
        self.trie, self.legal = legal.trie, legal
        self.num_beams, self.temperature = num_beams, temperature
        self.rerank_weight, self.generator = rerank_weight, generator

    def _queries(
        self, context: _Context, wish: torch.Tensor, first: int, count: int, feeding: bool = False
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
        context: _Context,
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
        self, context: _Context, wish: torch.Tensor, slate_size: int, use_cache: bool
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
            items=torch.cat([best for best, _, _ in chosen], dim=1),
            scores=torch.cat([scores[:, :, 0] for _, _, scores in chosen], dim=1),
            candidates=torch.cat([items for _, items, _ in chosen], dim=1),
            candidate_scores=torch.cat([scores for _, _, scores in chosen], dim=1),
        )

    def plan_once(self, context: _Context, wish: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
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
        return HiGRGenerateOutput(items=taken, scores=picked_scores, candidates=items, candidate_scores=scores)

    def _sampled_slots(self, context: _Context, plans: torch.Tensor) -> HiGRGenerateOutput:
        """Sample the slots of given plans one after the other, each from what the earlier ones left."""
        chosen = []
        for slot in range(plans.shape[1]):
            items, scores = self.item_beam(context, plans[:, slot : slot + 1], slot, True)
            self.legal.exclude(items[:, 0])
            chosen.append((items, scores))
        items, scores = (torch.cat(part, dim=1) for part in zip(*chosen, strict=True))
        return HiGRGenerateOutput(
            items=items[..., 0], scores=scores[..., 0], candidates=items, candidate_scores=scores
        )

    def first_plan(self, context: _Context, wish: torch.Tensor, slate_size: int) -> HiGRGenerateOutput:
        """The M best items of the first slot's beam."""
        queries = self._queries(context, wish, 0, 1)
        plans, _ = self._plan(context, queries)
        if self.temperature is not None:
            return self._sampled_slots(context, plans.expand(-1, slate_size, -1))
        self.num_beams = max(self.num_beams, slate_size)
        items, scores = self.item_beam(context, plans, 0, True)
        best, best_scores = items[:, 0, :slate_size], scores[:, 0, :slate_size]
        return HiGRGenerateOutput(
            items=best, scores=best_scores,
            candidates=best[..., None], candidate_scores=best_scores[..., None],
        )  # fmt: skip

    def item_beam(
        self, context: _Context, plans: torch.Tensor, first_slot: int, use_cache: bool
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
        stage, keys = model.generators[index], context.generators[index]
        offsets = self.config.level_offsets
        batch, slots, width = plans.shape
        beams = 1
        steps = plans[:, :, None]  # [B, R·beams, S, d]
        nodes = torch.zeros(batch, slots, 1, dtype=torch.long, device=plans.device)
        totals = torch.zeros(batch, slots, 1, device=plans.device)
        past = None
        for depth in range(self.config.num_levels):
            inputs, first_step = (steps[:, :, -1:], depth) if use_cache else (steps, 0)
            states, cache = stage(inputs, keys, context.mask, first_step, past if use_cache else None)
            logits = self.model.lm_head.group_logits(states[:, :, -1], depth).float()
            log_probs = logits.log_softmax(-1).view(batch, slots, beams, -1)

            children, exists = trie.children(depth, nodes)  # [B, R, beams, C]
            exists = exists & self.legal.has_legal(depth, children)
            code = trie.node_code[depth][children]
            token = code + (offsets[0] if depth == 0 else 0)  # the group of level 0 begins at token 0
            gained = log_probs.gather(-1, token)
            if self.temperature is None:
                grown = totals[..., None] + gained
                grown = grown.masked_fill(~exists, float("-inf")).flatten(2)
                kept = min(self.num_beams, grown.shape[-1])
                totals, choice = grown.topk(kept, dim=-1)
            else:
                choice = self._sample(logits.view(batch, slots, beams, -1).gather(-1, token), exists)
                grown = (totals[..., None] + gained).flatten(2)
                totals = grown.gather(-1, choice)
                totals = totals.masked_fill(~exists.flatten(2).gather(-1, choice), float("-inf"))
            parent = choice // children.shape[-1]
            nodes = children.flatten(2).gather(-1, choice)
            picked = code.flatten(2).gather(-1, choice) + offsets[depth]

            row = parent + torch.arange(slots, device=parent.device)[:, None] * beams
            row = row.flatten(1)  # [B, R·kept], rows to continue from
            newest = model.embeddings.embed_tokens(picked).reshape(batch, row.shape[1], 1, width)
            history = steps.gather(1, row[..., None, None].expand(-1, -1, *steps.shape[2:]))
            steps = torch.cat([history, newest], dim=2)
            if use_cache:
                past = [_reorder(key_value, row, batch) for key_value in cache]
            beams = parent.shape[-1]

        items = trie.order[trie.first_rank[-1][nodes]]
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


def _reorder(key_value: KeyValue, row: torch.Tensor, batch: int) -> KeyValue:
    """Let every row of a `[B·R, heads, S, head_dim]` cache continue from `row [B, R']` of its own example."""
    rows = key_value[0].shape[0] // batch
    flat = (row + torch.arange(batch, device=row.device)[:, None] * rows).flatten()
    return key_value[0][flat], key_value[1][flat]


def _item_lists(
    lists: torch.Tensor | Sequence[Sequence[int]], num_items: int, batch: int, repeats: int, device: torch.device
) -> torch.Tensor:
    """`LongTensor [B, E]` padded with -1 from a tensor or one list a prompt; checked."""
    if not isinstance(lists, torch.Tensor):
        rows = [torch.as_tensor(list(row), dtype=torch.long) for row in lists]
        lists = (
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1) if rows else torch.empty(0, 0)
        )
    lists = lists.to(device=device, dtype=torch.long)
    if lists.dim() != 2 or len(lists) * repeats != batch:
        raise ValueError(
            f"exclude needs one list of item indices for each of the {batch // repeats} prompts; got shape "
            f"{list(lists.shape)}."
        )
    outside = (lists < -1) | (lists >= num_items)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"exclude[{row}] names item {int(lists[row, column])}; the catalogue has items 0 to {num_items - 1}."
        )
    return lists.repeat_interleave(repeats, 0)


def _allowed_mask(
    allowed: torch.Tensor | Sequence[int] | None, num_items: int, batch: int, repeats: int, device: torch.device
) -> torch.Tensor | None:
    """`BoolTensor [N]` or `[B, N]` from a mask or a list of item indices; checked."""
    if allowed is None:
        return None
    allowed = torch.as_tensor(allowed, device=device)
    if allowed.dtype != torch.bool:
        if allowed.dim() != 1 or (allowed.numel() and not 0 <= int(allowed.min()) <= int(allowed.max()) < num_items):
            raise ValueError(
                f"allowed must be a boolean mask over the {num_items} items (one for all prompts or one a prompt) or "
                f"a flat list of item indices from 0 to {num_items - 1}."
            )
        mask = torch.zeros(num_items, dtype=torch.bool, device=device)
        mask[allowed.long()] = True
        return mask
    if allowed.shape[-1] != num_items or allowed.dim() > 2 or (allowed.dim() == 2 and len(allowed) * repeats != batch):
        raise ValueError(
            f"allowed must have shape [{num_items}] or [{batch // repeats}, {num_items}]; got {list(allowed.shape)}."
        )
    return allowed.repeat_interleave(repeats, 0) if allowed.dim() == 2 else allowed
