"""Decoding batches of one shape without a step that waits for the device: what can be captured in a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..catalog_higr import Legality
from ..configuration_higr import SLATE_MODES
from ..layout_higr import SlateLayout
from ..search_higr import HiGRGenerateOutput, SearchOptions

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration


class FixedShapeDecoder:
    """`generate` for batches of one shape: the same slates, and no operation whose size or course the data decide.

    `generate` looks at its arguments before it decodes, and each look waits for the device. Here they are looked at
    while it decodes: the last of what a call returns says which prompts must not be used, and nothing is raised.

    It reads the model's weights where they lie and its catalogue as it was when the decoder was made. The flat decoder
    of `higr_hf.baselines.onerec` can be had so as well; it then keeps the columns of its cache that no hypothesis
    descends from any more. Item-item tables read the history that the prompt holds, never a longer one, and trend
    scores the newest days they know.

    Args:
        model: a [`HiGRForSlateGeneration`] with a catalogue, in evaluation mode.
        batch_size (`int`): B, prompts of a batch.
        prompt_length (`int`): T, tokens of a prompt, padding included.
        slate_size (`int`, *optional*): M; the configuration's by default.
        num_beams, slate_mode, rerank_weight (*optional*): as for `generate`, with its defaults.
        exclude_history (`bool`): as for `generate`.
        max_excluded (`int`): E, items that can be excluded for a prompt.
        allow_short (`bool`): as for `generate`.
        padded (`bool`): whether prompts may be shorter than T. Without padding attention needs no mask and is faster.

    Raises:
        ValueError: for an argument out of range, a model without catalogue, and what `generate` refuses.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf import HiGRConfig, HiGRForSlateGeneration
    >>> from higr_hf.deployment import FixedShapeDecoder
    >>> config = HiGRConfig.from_preset("tiny", codebook_sizes=[4, 4], num_items=16)
    >>> model = HiGRForSlateGeneration(config).eval()
    >>> model.set_catalog(torch.cartesian_prod(torch.arange(4), torch.arange(4)))
    >>> a, b = config.level_offsets
    >>> prompt = torch.tensor([[config.bos_token_id, a + 1, b + 2, config.slate_token_id]])
    >>> decode = FixedShapeDecoder(model, batch_size=1, prompt_length=4, slate_size=3, max_excluded=2)
    >>> found, unfit = decode(prompt, torch.tensor([[7, -1]]))
    >>> found.slates.shape, unfit.tolist(), 7 in found.slates
    (torch.Size([1, 3]), [False], False)

    ```
    """

    def __init__(
        self,
        model: HiGRForSlateGeneration,
        *,
        batch_size: int,
        prompt_length: int,
        slate_size: int | None = None,
        num_beams: int | None = None,
        slate_mode: str | None = None,
        rerank_weight: float | None = None,
        exclude_history: bool = False,
        max_excluded: int = 0,
        allow_short: bool = False,
        padded: bool = True,
    ) -> None:
        config, defaults = model.config, model.generation_config
        slate_mode = slate_mode or getattr(defaults, "slate_mode", None) or config.slate_mode
        if slate_mode not in SLATE_MODES:
            raise ValueError(f"slate_mode must be one of {SLATE_MODES}; got {slate_mode!r}.")
        if rerank_weight and not config.dense_head:
            raise ValueError("rerank_weight needs a model trained with dense_head=True.")
        self.options = SearchOptions(
            slate_size=config.slate_size if slate_size is None else slate_size,
            num_beams=(defaults.num_beams or config.num_beams) if num_beams is None else num_beams,
            slate_mode=slate_mode,
            rerank_weight=config.rerank_weight if rerank_weight is None else rerank_weight,
            allow_short=allow_short,
            fixed=True,
        )
        at_least = {
            "batch_size": (batch_size, 1),
            "prompt_length": (prompt_length, 1),
            "max_excluded": (max_excluded, 0),
        }
        at_least |= {name: (getattr(self.options, name), 1) for name in ("slate_size", "num_beams")}
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}.")
        self.model, self.trie = model, model.model.trie()
        self.batch_size, self.prompt_length, self.max_excluded = batch_size, prompt_length, max_excluded
        self.exclude_history, self.padded = exclude_history, padded
        # The first and the last unit are one token long, those between are whole items, but for one that was cut.
        self.units = 2 + max(0, -(-(prompt_length - 2) // config.num_levels))
        self.width = max(1, min(self.units - 1, config.max_history + 1))
        with torch.inference_mode():
            self._legal = model._legal_items(None, None, None, batch_size)

    @torch.inference_mode()
    def __call__(
        self, input_ids: torch.Tensor, exclude: torch.Tensor | None = None
    ) -> tuple[HiGRGenerateOutput, torch.Tensor]:
        """Decode a batch.

        Args:
            input_ids (`LongTensor [B, T]`): prompts on the model's device, `<bos> history <slate>`, padded on either
                side.
            exclude (`LongTensor [B, E]`, *optional*): items that must not appear, -1 for none; on the model's device.

        Returns:
            What `generate` returns, and `BoolTensor [B]`, `True` for prompts whose slates must not be used: what
            `generate` refuses, items that are none, a prompt of more units than its tokens should have, or one that
            is padded where `padded` is `False`.
        """
        model, config = self.model, self.model.config
        layout = SlateLayout.parse(input_ids, None, config, self.units)
        items = self.trie.lookup(layout.codes)
        legal = self._legal.copy()
        strange = None
        if exclude is not None:
            strange = (exclude < -1) | (exclude >= self.trie.num_items)
            legal.exclude(exclude.masked_fill(strange, -1))
        if self.exclude_history:
            legal.exclude(items)
        unfit = self._unfit(layout, legal)
        if strange is not None:
            unfit = unfit | strange.any(1)
        context = model._encode_prompt(input_ids, layout, items, self.width, self.padded)
        added = model._added_scores(layout, items)
        found = model._search_slates(context, layout.wish, legal, self.options, added)
        found.sequences = model._slate_sequences(input_ids, found.slates)
        return found, unfit

    def _unfit(self, layout: SlateLayout, legal: Legality) -> torch.Tensor:
        units, history = layout.num_units, layout.num_history
        unfit = (units == 0) | (units > history + 1) | (units > self.units) | (history > self.width)
        if not self.padded:
            unfit = unfit | (history < self.width)
        if not self.options.allow_short:
            unfit = unfit | (legal.remaining() < self.options.slate_size)
        return unfit


__all__ = ["FixedShapeDecoder"]
