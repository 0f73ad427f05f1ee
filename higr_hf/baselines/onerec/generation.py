"""`generate()` of the flat decoder: HiGR's arguments as far as they mean something here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...catalog_higr import Legality
from ...generation_higr import _WITHOUT_MEANING, _check_enough
from ...layout_higr import SlateQueries
from ...search_higr import HiGRGenerateOutput, SearchOptions, SlateContext
from .search import FlatBeamSearch

if TYPE_CHECKING:
    from .modeling import OneRecForSlateGeneration


class FlatGenerationMixin:
    """`generate` with one beam over all tokens of the slate."""

    @torch.inference_mode()
    def generate(
        self: OneRecForSlateGeneration,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        slate_size: int | None = None,
        num_beams: int | None = None,
        exclude: torch.Tensor | Sequence[Sequence[int]] | None = None,
        exclude_history: bool = False,
        allowed: torch.Tensor | Sequence[int] | None = None,
        allow_short: bool = False,
        use_cache: bool = True,
        context: SlateContext | None = None,
        return_dict_in_generate: bool | None = None,
        **kwargs: Any,
    ) -> HiGRGenerateOutput | torch.LongTensor:
        r"""
        Generate one slate a prompt, greedily or with a beam over whole slates.

        Args:
            input_ids (`LongTensor [B, T]`): prompts, `<bos> history <slate>`.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens; padding on either side.
            slate_size (`int`, *optional*): M; the configuration's by default.
            num_beams (`int`, *optional*): W, slates kept at every token; 1 decodes greedily.
            exclude, exclude_history, allowed, allow_short: as for HiGR.
            use_cache (`bool`, defaults to `True`): as for HiGR, of earlier tokens.
            context ([`SlateContext`], *optional*): These prompts as they were encoded before.
            return_dict_in_generate (`bool`, *optional*): Return [`HiGRGenerateOutput`] instead of the sequences.

        Returns:
            `LongTensor [B, T + M·L + 1]` of prompt, slate and `<eos>`, or [`HiGRGenerateOutput`].

        Raises:
            ValueError: for an argument out of range, an unknown item, a prompt with tokens after `<slate>`, a history
                longer than `max_history`, or fewer legal items than slots.
        """
        unknown = set(kwargs) - _WITHOUT_MEANING
        if unknown:
            raise ValueError(f"generate() of the flat decoder does not know the arguments {sorted(unknown)}.")
        config, trie = self.config, self.model.trie()
        slate_size = config.slate_size if slate_size is None else slate_size
        num_beams = (self.generation_config.num_beams or config.num_beams) if num_beams is None else num_beams
        for name, value in (("slate_size", slate_size), ("num_beams", num_beams)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if attention_mask is None:
            attention_mask = (input_ids != config.pad_token_id).long()
        batch = len(input_ids)
        layout = self._prompt_layout(input_ids, attention_mask)
        items = trie.lookup(layout.codes)
        legal = self._legal_items(exclude, items if exclude_history else None, allowed, batch)
        if not allow_short:
            _check_enough(legal, slate_size)
        if context is None:
            context = self._encode_prompt(input_ids, layout, items)
        options = SearchOptions(
            slate_size=slate_size, num_beams=num_beams, use_cache=use_cache, allow_short=allow_short
        )
        result = self._search_slates(context, layout.wish, legal, options)
        result.sequences = self._slate_sequences(input_ids, result.slates)
        return result if return_dict_in_generate else result.sequences

    def _search_slates(
        self: OneRecForSlateGeneration,
        context: SlateContext,
        wish: torch.Tensor,
        legal: Legality,
        options: SearchOptions,
        added: torch.Tensor | None = None,
    ) -> HiGRGenerateOutput:
        """As for HiGR, by the flat beam; there is nothing that `added` could be added to."""
        slate_size = options.slate_size
        slot = torch.arange(slate_size, device=wish.device).expand(len(wish), -1)
        none = torch.zeros_like(slot) - 1
        queries = SlateQueries(
            context=context.length[:, None].expand(-1, slate_size),
            slot=slot,
            window=none,
            previous=none,
            target=none,
            wish=wish[:, None].expand(-1, slate_size),
        )
        short = options.allow_short if options.fixed else None
        search = FlatBeamSearch(self, legal, options.num_beams, options.use_cache, short, not options.fixed)
        return search.run(context, self.model.slate_inputs(context.encoded, queries), slate_size)
