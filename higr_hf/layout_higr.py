"""From flat tokens to units and back: which tokens form an item, where the slate begins, what is predicted where.

A *unit* is a special token or one item (its L code tokens), together with the feature tokens that follow it. Parsing
reads the tokens themselves, never `position % L`, so left padding, right padding and none mean the same thing, and a
sequence that was cut inside an item still runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .configuration_higr import HiGRConfig


def level_offsets(config: HiGRConfig, device: torch.device) -> torch.Tensor:
    """Token of code 0 of every level, `LongTensor [L]`.

    Filled where it lies: a copy of a list would make the host wait for a GPU, and could not be captured in a graph.
    """
    return torch.cat([torch.full((1,), offset, device=device) for offset in config.level_offsets])


@dataclass
class SlateLayout:
    """Units of a batch of flat sequences.

    Attributes:
        unit (`LongTensor [B, T]`): unit of every token; `U` for padding.
        codes (`LongTensor [B, U, L]`): codes of every unit, -1 where the unit has no code of that level.
        num_units (`LongTensor [B]`): units of each sequence.
        num_history (`LongTensor [B]`): units before the `<slate>` unit (all of them where there is none).
        wish (`LongTensor [B]`): feedback token that follows `<slate>`, 0 (`<pad>`, a zero vector) for none.
        boundary (`BoolTensor [B, T]`): tokens that end their unit, whose next token begins another.
        level (`LongTensor [B, T]`): level of a code token, -1 for others.
        is_feature (`BoolTensor [B, T]`): feature tokens.
    """

    unit: torch.Tensor
    codes: torch.Tensor
    num_units: torch.Tensor
    num_history: torch.Tensor
    wish: torch.Tensor
    boundary: torch.Tensor
    level: torch.Tensor
    is_feature: torch.Tensor

    @classmethod
    def parse(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        config: HiGRConfig,
        size: int | None = None,
    ) -> SlateLayout:
        """Read the structure off the tokens.

        Args:
            input_ids (`LongTensor [B, T]`): flat token ids.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens; `<pad>` is never real.
            config (`HiGRConfig`): the vocabulary.
            size (`int`, *optional*): U, the width of the unit grid, which has to be read off the tokens where it is
                not given: the one thing here that waits for a GPU. A row whose `num_units` is larger is not read
                rightly.
        """
        batch = len(input_ids)
        device = input_ids.device
        offsets = level_offsets(config, device)
        real = input_ids != config.pad_token_id
        if attention_mask is not None:
            real = real & attention_mask.bool()
        level = torch.bucketize(input_ids, offsets, right=True) - 1
        is_feature = (input_ids >= config.feature_offset) & (level < 0)
        starts = real & ((level == 0) | ((level < 0) & ~is_feature))
        starts = starts | (real & (real.cumsum(1) == 1))  # a cut sequence may begin anywhere
        num_units = starts.sum(1)
        unit = starts.cumsum(1) - 1
        if size is None:
            size = max(int(num_units.max()), 1)
        else:  # what does not fit is written where nobody reads
            unit = unit.clamp(max=size)
        unit = torch.where(real, unit, size)

        following = torch.ones_like(starts)
        following[:, :-1] = starts[:, 1:] | ~real[:, 1:]
        boundary = real & following

        levels = config.num_levels
        codes = torch.full((batch, (size + 1) * levels), -1, dtype=torch.long, device=device)
        is_code = real & (level >= 0)
        spare = size * levels  # tokens that are no code write where nobody reads
        slot = torch.where(is_code, unit * levels + level.clamp(min=0), spare)
        codes.scatter_(1, slot, torch.where(is_code, input_ids - offsets[level.clamp(min=0)], -1))
        codes = codes.view(batch, size + 1, levels)[:, :size]

        is_slate = real & (input_ids == config.slate_token_id)
        num_history = torch.where(is_slate, unit, num_units[:, None]).amin(1)
        wished = is_feature & (input_ids < config.feature_offset + config.num_feedback_levels)
        wished = wished & real & (unit == num_history[:, None])
        wish = torch.where(wished, input_ids, 0).amax(1)
        return cls(unit, codes, num_units, num_history, wish, boundary, level, is_feature)

    @property
    def size(self) -> int:
        """U, the width of the unit grid."""
        return self.codes.shape[1]


@dataclass
class SlateQueries:
    """What the planner is asked: one query for each slot to be filled. All fields are `LongTensor [B, Q]`.

    Attributes:
        context: how many units of the history the query sees (at least 1 where the query is real).
        slot: slot number inside its slate, 0 for the first.
        window: queries of one number belong to one slate and see each other up to their own slot; -1 = no query.
        previous: unit of the item decoded before (the planner's input), -1 to feed none: the first slot, or a slot
            that is planned without knowing its predecessors.
        target: unit of the item to spell, -1 for none.
        wish: feedback token asked for, 0 for none.
    """

    context: torch.Tensor
    slot: torch.Tensor
    window: torch.Tensor
    previous: torch.Tensor
    target: torch.Tensor
    wish: torch.Tensor

    FIELDS = ("context", "slot", "window", "previous", "target", "wish")

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> SlateQueries:
        """From one tensor `[B, Q, 6]` (the order of `FIELDS`), the form in which a collator sends them."""
        if packed.dim() != 3 or packed.shape[-1] != len(cls.FIELDS):
            raise ValueError(
                f"slate_queries must have shape [batch, queries, {len(cls.FIELDS)}] with fields {cls.FIELDS}; got "
                f"{list(packed.shape)}."
            )
        return cls(*packed.long().unbind(-1))

    @classmethod
    def flat(cls, layout: SlateLayout) -> SlateQueries:
        """The queries of a flat causal language model: unit u asks for unit u + 1.

        Before the slate every unit starts a slate of its own (slot 0, seeing the history up to itself); from `<slate>`
        on the units are the slots of one slate, seeing the history before it.
        """
        batch, size = layout.codes.shape[:2]
        unit = torch.arange(size, device=layout.codes.device).expand(batch, size)
        history = layout.num_history[:, None]
        in_slate = unit >= history
        slot = torch.where(in_slate, unit - history, 0)
        return cls(
            context=torch.where(in_slate, history, unit + 1).clamp(min=1),
            slot=slot,
            window=torch.where(in_slate, history, unit),
            previous=torch.where(slot > 0, unit, -1),
            target=torch.where(unit + 1 < layout.num_units[:, None], unit + 1, -1),
            wish=torch.where(in_slate, layout.wish[:, None], 0),
        )

    def masks(self, num_context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Who sees what.

        Args:
            num_context (`int`): U, the width of the encoded history.

        Returns:
            `context_mask (BoolTensor [B, 1, Q, U])` and `self_mask (BoolTensor [B, 1, Q, Q])`.
        """
        unit = torch.arange(num_context, device=self.context.device)
        context_mask = unit < self.context.clamp(min=1)[:, :, None]
        same = self.window[:, :, None] == self.window[:, None, :]
        earlier = self.slot[:, :, None] >= self.slot[:, None, :]
        # Padding queries (window -1) see one another, so no row of the softmax is empty.
        return context_mask[:, None], (same & earlier)[:, None]
