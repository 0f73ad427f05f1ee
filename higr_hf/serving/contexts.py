"""Encoded histories that are kept, continued and put together for a batch.

With a causal encoder a unit's state depends on the units before it alone, so what was encoded of a history stays true
when events are appended: their own keys, values and states are all that is missing. How much of a kept history still
holds is read off its tokens, unit by unit. Whatever else happened to it (a late rating, events put in order, a window
that slid past `max_history` and moved every position), the first unit that differs and all after it are encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..layers_higr import KeyValue
from ..layout_higr import SlateLayout
from ..search_higr import SlateContext

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration


@dataclass(frozen=True)
class HistoryTokens:
    """A history's flat tokens, `<bos>` first, without `<slate>`.

    Attributes:
        tokens (int64 `[T]`): token ids.
        ends (int64 `[U]`): where each unit ends.
    """

    tokens: np.ndarray
    ends: np.ndarray

    def shared(self, other: HistoryTokens) -> int:
        """How many whole units both begin with.

        Example:
            >>> one = HistoryTokens(np.array([1, 20, 30, 7]), np.array([1, 4]))  # the last token is a rating
            >>> two = HistoryTokens(np.array([1, 20, 30, 21, 33]), np.array([1, 3, 5]))
            >>> one.shared(two), two.shared(two)
            (1, 3)
        """
        length = min(len(self.tokens), len(other.tokens))
        differ = np.flatnonzero(self.tokens[:length] != other.tokens[:length])
        same = differ[0] if len(differ) else length
        count = min(len(self.ends), len(other.ends))
        # A unit that ends elsewhere has other features, even where all tokens of the shorter one agree.
        whole = (self.ends[:count] == other.ends[:count]) & (self.ends[:count] <= same)
        return count if whole.all() else int(whole.argmin())


@dataclass(frozen=True)
class EncodedHistory:
    """What is kept of an encoded history.

    Attributes:
        prompt: its tokens.
        keys (`[2·E, U, d]`): keys and values of the E encoder layers, with which it is continued; E = 0 where the
            encoder sees both ways and nothing can be continued.
        context (`[C, U, d]`): the encoder's states, then the keys and values that planner and generators read.
    """

    prompt: HistoryTokens
    keys: torch.Tensor
    context: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.keys, self.context))


class HistoryEncoder:
    """Encodes histories, from where a kept one leaves off, and lays them out as `generate` reads them.

    Args:
        model: a [`HiGRForSlateGeneration`] (or the flat decoder, which reads contexts alike) in evaluation mode.

    Example:
        >>> encoder = HistoryEncoder(model)
        >>> prompts = tokenizer.encode_prompts([["i0", "i1"], ["i2"]])
        >>> rows = encoder.encode([encoder.split(row[row > 0]) for row in prompts["input_ids"]])
        >>> slates = model.generate(**prompts, context=encoder.assemble(rows))
    """

    def __init__(self, model: HiGRForSlateGeneration) -> None:
        self.model = model.model
        self.config = model.config
        self.causal = self.model.encoder.causal
        self.encoded_units = self.reused_units = 0
        self.item_vectors = None
        if self.config.catalog_prior:  # the prior reads all of them for every slate
            with torch.inference_mode():
                self.item_vectors = self.model.ranked_item_vectors()

    @property
    def unit_bytes(self) -> int:
        """Bytes that one unit of a kept history takes: `d · (1 + 2 · layers that read it)` numbers."""
        stages = [self.model.planner, *self.model.generators]
        readers = sum(hasattr(layer, "cross_attn") for stage in stages for layer in stage.layers)
        readers += len(self.model.encoder.layers) if self.causal else 0
        return (1 + 2 * readers) * self.config.hidden_size * self.model.planner.norm.weight.element_size()

    def split(self, input_ids: torch.Tensor) -> HistoryTokens:
        """The history of one prompt `LongTensor [T]` without padding, unit by unit."""
        layout = SlateLayout.parse(input_ids[None], None, self.config)
        ends = (layout.boundary[0].nonzero().squeeze(-1) + 1)[: int(layout.num_history[0])].cpu().numpy()
        return HistoryTokens(input_ids[: ends[-1]].cpu().numpy(), ends)

    @torch.inference_mode()
    def encode(
        self, prompts: Sequence[HistoryTokens], kept: Sequence[EncodedHistory | None] | None = None
    ) -> list[EncodedHistory]:
        """Encode histories.

        Args:
            prompts: B histories.
            kept: what each is continued from, as far as it holds; None where there is nothing.

        Returns:
            B encoded histories. Those of about the same number of missing units are encoded together.
        """
        kept = [None] * len(prompts) if kept is None else kept
        rows: list[EncodedHistory | None] = [None] * len(prompts)
        held = [self._reusable(prompt, before) for prompt, before in zip(prompts, kept, strict=True)]
        groups: dict[int, list[int]] = {}
        for row, (prompt, before, count) in enumerate(zip(prompts, kept, held, strict=True)):
            missing = len(prompt.ends) - count
            self.reused_units += count
            self.encoded_units += missing
            if missing:
                groups.setdefault(missing.bit_length(), []).append(row)
            elif len(before.prompt.ends) == count:
                rows[row] = before
            else:  # a history that was cut at its end; copied, or the whole of it would stay in memory
                rows[row] = EncodedHistory(prompt, before.keys[:, :count].clone(), before.context[:, :count].clone())
        for members in groups.values():
            pasts = [kept[row] if held[row] else None for row in members]
            done = self._continue([prompts[row] for row in members], pasts, [held[row] for row in members])
            for row, encoded in zip(members, done, strict=True):
                rows[row] = encoded
        return rows

    def assemble(self, rows: Sequence[EncodedHistory], units: int | None = None) -> SlateContext:
        """The context of a batch, as [`~SlateGenerationMixin.generate`] takes it.

        Args:
            rows: B encoded histories.
            units: width U of the batch; that of the longest row by default.
        """
        lengths = [row.context.shape[1] for row in rows]
        units = max(lengths) if units is None else units
        parts = iter(_side_by_side([row.context for row in rows], lengths, units))
        encoded = next(parts)
        length = torch.tensor(lengths, device=encoded.device)
        return SlateContext(
            encoded=encoded,
            planner=[self._next_pair(parts) for _ in self.model.planner.layers],
            generators=[
                [self._next_pair(parts) if hasattr(layer, "cross_attn") else None for layer in generator.layers]
                for generator in self.model.generators
            ],
            mask=(torch.arange(units, device=encoded.device) < length[:, None])[:, None, None],
            length=length,
            item_vectors=self.item_vectors,
        )

    def _reusable(self, prompt: HistoryTokens, before: EncodedHistory | None) -> int:
        """How many of a prompt's first units need not be encoded."""
        if before is None:
            return 0
        shared = prompt.shared(before.prompt)
        same = shared == len(prompt.ends) == len(before.prompt.ends)
        return shared if self.causal or same else 0

    def _continue(
        self, prompts: list[HistoryTokens], pasts: list[EncodedHistory | None], held: list[int]
    ) -> list[EncodedHistory]:
        """Encode what each of B histories has past its first `held` units."""
        model, device = self.model, self.model.item_codes.device
        begin = [prompt.ends[count - 1] if count else 0 for prompt, count in zip(prompts, held, strict=True)]
        new = [torch.from_numpy(prompt.tokens[first:]) for prompt, first in zip(prompts, begin, strict=True)]
        ids = pad_sequence(new, batch_first=True, padding_value=self.config.pad_token_id).to(device)
        layout = SlateLayout.parse(ids, None, self.config)
        units = model.embeddings.units(ids, layout, model.trie().lookup(layout.codes))
        count = torch.tensor(held, device=device)
        rotary = model.rotary(count[:, None] + torch.arange(layout.size, device=device))
        cache: list[KeyValue] = []
        if self.causal:
            past = None
            if max(held):
                keys = [None if before is None else before.keys for before in pasts]
                parts = iter(_side_by_side(keys, held, max(held)))
                past = [self._next_pair(parts) for _ in model.encoder.layers]
            encoded, cache = model.encoder.extend(units, _mask(count, max(held), layout.size), rotary, past)
        else:
            encoded = model.encoder(units, layout.num_units, rotary)
        read = [*model.planner.key_values(encoded, rotary)]
        read += [pair for generator in model.generators for pair in generator.key_values(encoded) if pair is not None]
        own = [tensor.transpose(1, 2).flatten(2) for pair in cache for tensor in pair]
        keys = torch.stack(own) if own else encoded.new_empty(0, *encoded.shape)
        context = torch.stack([encoded, *(tensor.transpose(1, 2).flatten(2) for pair in read for tensor in pair)])
        done = []
        for row, (prompt, before) in enumerate(zip(prompts, pasts, strict=True)):
            size = len(prompt.ends) - held[row]
            parts = [keys[:, row, :size], context[:, row, :size]]
            if before is None:  # copied, or each row would keep the whole batch in memory
                parts = [part.clone() for part in parts]
            else:
                old = [before.keys[:, : held[row]], before.context[:, : held[row]]]
                parts = [torch.cat(pair, dim=1) for pair in zip(old, parts, strict=True)]
            done.append(EncodedHistory(prompt, *parts))
        return done

    def _next_pair(self, parts: Iterator[torch.Tensor]) -> KeyValue:
        """The next two of `[B, U, d]` as keys and values `[B, heads, U, head_dim]`."""
        heads = self.config.num_attention_heads
        return tuple(next(parts).unflatten(-1, (heads, -1)).transpose(1, 2) for _ in range(2))


def _side_by_side(rows: Sequence[torch.Tensor | None], lengths: Sequence[int], width: int) -> torch.Tensor:
    """B times `[C, U, d]` to `[C, B, width, d]`: the first `lengths` units of each, then zeros."""
    first = next(row for row in rows if row is not None)
    stacked = first.new_zeros(len(first), len(rows), width, first.shape[-1])
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if row is not None:
            stacked[:, number, :length] = row[:, :length]
    return stacked


def _mask(held: torch.Tensor, longest: int, size: int) -> torch.Tensor:
    """`BoolTensor [B, 1, size, longest + size]`: each new unit sees the row's `held` units, and new ones up to itself.

    Rows are padded on the right in both parts: padding is never seen by a real unit.
    """
    before = torch.arange(longest, device=held.device) < held[:, None]
    own = torch.ones(size, size, dtype=torch.bool, device=held.device).tril()
    batch = len(held)
    return torch.cat([before[:, None].expand(-1, size, -1), own.expand(batch, -1, -1)], dim=-1)[:, None]


__all__ = ["EncodedHistory", "HistoryEncoder", "HistoryTokens"]
