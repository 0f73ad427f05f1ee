"""`generate()` for slates: arguments and their checks, the encoded prompt, and the sequences that come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, GenerationMixin

from .catalog_higr import Legality
from .configuration_higr import SLATE_MODES
from .item_beam_higr import ItemBeam
from .layout_higr import SlateLayout, level_offsets
from .search_higr import HiGRGenerateOutput, SearchOptions, SlateContext, SlateSearch
from .trends_higr import LATEST, NEWEST

if TYPE_CHECKING:
    from .modeling_higr import HiGRForSlateGeneration

# Arguments that trainers and pipelines send to any `generate`, and that have no meaning for a slate.
_WITHOUT_MEANING = frozenset(
    {"max_new_tokens", "max_length", "min_new_tokens", "synced_gpus", "disable_compile", "cache_implementation",
     "pad_token_id", "bos_token_id", "eos_token_id", "logits_processor", "stopping_criteria", "streamer", "tokenizer",
     "output_scores", "position_ids", "token_type_ids", "compile_config", "use_model_defaults"}
)  # fmt: skip


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
        history: torch.Tensor | Sequence[Sequence[int]] | None = None,
        request_time: torch.Tensor | Sequence[int] | None = None,
        allowed: torch.Tensor | Sequence[int] | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        num_return_sequences: int | None = None,
        rerank_weight: float | None = None,
        allow_short: bool = False,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        context: SlateContext | None = None,
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
                together; a slot whose best item an earlier slot took gets its next best. `"verified"` takes that slate
                as a draft, plans all slots a second time given the draft's items before each, and decodes them again:
                up to and including the first slot whose item changes (all of it where none does) it gives the slate
                of `"sequential"` with a beam of max(W, M); a slot behind a change is planned for the draft's items
                and gets its best that no earlier slot took. `"first_plan"` fills the slate with the M best items of
                the first plan's beam.
            exclude (`LongTensor [B, E]` padded with -1, or one sequence of item indices a prompt, *optional*):
                Items that must not appear: seen ones, filtered ones.
            exclude_history (`bool`): Also exclude the items found in each prompt.
            history (`LongTensor [B, H]` padded with -1, or one sequence of item indices a prompt, *optional*): The
                whole history, oldest first, for a model with item-item tables or repeat scores: they may read more
                events than the `max_history` that a prompt holds. Left out, they read the prompt's.
            request_time (`LongTensor [B]` or one number a prompt, *optional*): When each slate is asked for, in
                seconds since 1970 UTC, for a model with trend scores. Left out, it is now: the newest days they know.
            allowed (`BoolTensor [N]` or `[B, N]`, or a sequence of item indices, *optional*): Only these may appear.
            do_sample (`bool`, *optional*): Sample each code among the legal ones instead of searching.
            temperature (`float`, *optional*): Divides the logits when sampling.
            num_return_sequences (`int`, *optional*): Slates a prompt when sampling; prompts are repeated in order.
            rerank_weight (`float`, *optional*): Weight of the dense score in choosing among a beam's items.
            allow_short (`bool`): Fill missing slots with -1 when fewer legal items than slots exist, instead of
                raising.
            use_cache (`bool`, defaults to `True`): Keep keys and values of earlier slots and codes. Off recomputes
                them, for comparison; the result is the same. No configuration decides it: every `Trainer` writes False
                into that of the model it trains.
            generator (`torch.Generator`, *optional*): Source of randomness when sampling.
            context ([`SlateContext`], *optional*): These prompts as they were encoded before (see
                `higr_hf.serving`); encoded here when left out.
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

        legal = self._legal_items(exclude, items if exclude_history else None, allowed, batch, repeats)
        if not allow_short:
            _check_enough(legal, slate_size)

        if context is None:
            context = self._encode_prompt(input_ids, layout, items)
        added = self._added_scores(layout, items, history, repeats, _times(request_time, batch, repeats, items.device))
        options = SearchOptions(
            slate_size=slate_size,
            num_beams=num_beams,
            slate_mode=slate_mode,
            temperature=temperature if do_sample else None,
            rerank_weight=rerank_weight,
            use_cache=use_cache,
            generator=generator,
            allow_short=allow_short,
        )
        result = self._search_slates(context, layout.wish, legal, options, added)
        result.sequences = self._slate_sequences(input_ids, result.slates)
        return result if return_dict_in_generate else result.sequences

    def _search_slates(
        self: HiGRForSlateGeneration,
        context: SlateContext,
        wish: torch.Tensor,
        legal: Legality,
        options: SearchOptions,
        added: torch.Tensor | None = None,
    ) -> HiGRGenerateOutput:
        """The search alone, without `sequences`: tensors in, tensors out, nothing checked, nothing waited for.

        Args:
            context: the encoded prompts.
            wish (`LongTensor [B]`): feedback token asked for, 0 for none.
            legal: what each row may be given; what is chosen is taken out of it.
            options: how.
            added (`FloatTensor [B, N]`, *optional*): what speaks for items beside the plans, see [`CatalogPrior`].
        """
        beam = ItemBeam(
            self, options.num_beams, options.temperature, options.rerank_weight, options.generator,
            context.item_vectors, added,
        )  # fmt: skip
        search = SlateSearch(self, legal, beam)
        if options.slate_mode == "sequential":
            return search.sequential(context, wish, options.slate_size, options.use_cache)
        if options.slate_mode == "plan_once":
            return search.plan_once(context, wish, options.slate_size)
        if options.slate_mode == "verified":
            return search.verified(context, wish, options.slate_size)
        return search.first_plan(context, wish, options.slate_size)

    def _legal_items(
        self: HiGRForSlateGeneration,
        exclude: torch.Tensor | Sequence[Sequence[int]] | None,
        history: torch.Tensor | None,
        allowed: torch.Tensor | Sequence[int] | None,
        batch: int,
        repeats: int = 1,
    ) -> Legality:
        """What each row may be given: allowed, not removed, not excluded, and not in `history` where that is given."""
        trie, device = self.model.trie(), self.model.item_codes.device
        legal = Legality(trie, batch, _allowed_mask(allowed, trie.num_items, batch, repeats, device))
        if not bool(self.model.item_active.all()):
            legal.exclude((~self.model.item_active).nonzero().T.expand(batch, -1))
        if exclude is not None:
            legal.exclude(_item_lists("exclude", exclude, trie.num_items, batch, repeats, device))
        if history is not None:
            legal.exclude(history)
        return legal

    def _added_scores(
        self: HiGRForSlateGeneration,
        layout: SlateLayout,
        items: torch.Tensor,
        history: torch.Tensor | Sequence[Sequence[int]] | None = None,
        repeats: int = 1,
        times: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """What the whole histories, or what the prompts hold of them, and the days before the request (now, where no
        time is given) say by themselves: item scores `[B, N]`."""
        scores = []
        if self.model.trends is not None:
            if times is None:
                times = torch.full((len(items),), NEWEST, device=items.device)
            scores.append(self.model.trends(times))
        scorers = [scorer for scorer in (self.model.item_item, self.model.repeats) if scorer is not None]
        counted = None
        if scorers and history is not None:
            items = _item_lists("history", history, self.config.num_items, len(items), repeats, items.device)
        elif scorers:
            counted = torch.arange(layout.size, device=items.device) < layout.num_history[:, None]
        scores += [scorer(items, counted) for scorer in scorers]
        return sum(scores) if scores else None

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
        self: HiGRForSlateGeneration,
        input_ids: torch.Tensor,
        layout: SlateLayout,
        items: torch.Tensor,
        width: int | None = None,
        padded: bool | None = None,
    ) -> SlateContext:
        """Encode prompts once for all slots.

        Args:
            input_ids (`LongTensor [B, T]`): the prompts.
            layout: their units.
            items (`LongTensor [B, U]`): catalogue index of every unit.
            width (`int`, *optional*): units of the context, as many as the longest history has by default; a longer
                history is not read rightly.
            padded (`bool`, *optional*): whether some history may be shorter than that; looked up by default.
        """
        model, length = self.model, layout.num_history.clamp(min=1)
        if width is None:  # what follows the history, `<slate>` at least, is never looked at
            width = int(length.max())
        else:
            length = length.clamp(max=width)
        units = model.embeddings.units(input_ids, layout, items)[:, :width]
        encoded, rotary = model.encode(units, layout.num_history)
        mask = (torch.arange(width, device=input_ids.device) < length[:, None])[:, None, None]
        if padded is None:
            padded = not bool(mask.all())
        return SlateContext(
            encoded=encoded,
            planner=model.planner.key_values(encoded, rotary),
            generators=[generator.key_values(encoded) for generator in model.generators],
            # Attention without a mask is cheaper, and a prompt alone never needs one.
            mask=mask if padded else None,
            length=length,
        )

    def _slate_sequences(self: HiGRForSlateGeneration, input_ids: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        config = self.config
        offsets = level_offsets(config, items.device)
        tokens = self.model.item_codes[items.clamp(min=0)] + offsets
        tokens = torch.where(items[..., None] >= 0, tokens, config.pad_token_id).flatten(1)
        eos = torch.full_like(tokens[:, :1], config.eos_token_id)
        return torch.cat([input_ids, tokens, eos], dim=1)


def _check_enough(legal: Legality, slate_size: int) -> None:
    """Raise a ValueError for the first row that has fewer legal items than slots."""
    remaining = legal.remaining()
    if bool((remaining < slate_size).any()):
        row = int((remaining < slate_size).nonzero()[0])
        raise ValueError(
            f"Prompt {row} has only {int(remaining[row])} legal items for a slate of {slate_size}: ask for fewer "
            "slots, exclude less, or pass allow_short=True to get -1 in the missing slots."
        )


def _item_lists(
    name: str,
    lists: torch.Tensor | Sequence[Sequence[int]],
    num_items: int,
    batch: int,
    repeats: int,
    device: torch.device,
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
            f"{name} needs one list of item indices for each of the {batch // repeats} prompts; got shape "
            f"{list(lists.shape)}."
        )
    outside = (lists < -1) | (lists >= num_items)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{name}[{row}] names item {int(lists[row, column])}; the catalogue has items 0 to {num_items - 1}."
        )
    return lists.repeat_interleave(repeats, 0)


def _times(
    times: torch.Tensor | Sequence[int] | None, batch: int, repeats: int, device: torch.device
) -> torch.Tensor | None:
    """`LongTensor [B]` from a tensor or one number a prompt; checked."""
    if times is None:
        return None
    if not isinstance(times, torch.Tensor):
        times = torch.tensor(list(times), dtype=torch.float64)  # float32 would be minutes off
    times = times.to(device)
    if times.shape != (batch // repeats,) or not bool(torch.isfinite(times).all()):
        raise ValueError(
            f"request_time needs a number of seconds for each of the {batch // repeats} prompts; got "
            f"{times.tolist() if times.dim() < 2 else list(times.shape)}."
        )
    if bool(((times > LATEST) & (times != NEWEST)).any()):
        raise ValueError(f"request_time holds {int(times.max())} seconds, past the year 5000: milliseconds?")
    return times.long().repeat_interleave(repeats, 0)


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
