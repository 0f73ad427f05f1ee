"""TRL's collators, told what an objective is and that `<eos>` is no part of a slate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# The tensors that say which tokens of a sequence count, and the tokens they belong to, by what TRL calls them.
_LABELS = ("chosen_labels", "rejected_labels")
_MASKS = (("completion_mask", "input_ids"), ("KL_completion_mask", "KL_input_ids"))


class SlateTokens:
    """Wraps a collator of TRL's: keeps each row's objective, and lets only the slate's tokens count.

    Every slate ends in `<eos>` at the same place, and decoding stops after M items without asking for it. Its
    probability after a chosen and after a rejected slate would be the cheapest way to tell them apart, and would teach
    nothing about slates.

    Args:
        collate: one of TRL's collators.
        eos_token_id: the token that does not count; `None` to let it count, as plain TRL does.
    """

    def __init__(self, collate: Callable[[list], dict[str, Any]], eos_token_id: int | None) -> None:
        self.collate, self.eos_token_id = collate, eos_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch, with `objective` int64 `[B]`."""
        batch = self.collate(list(rows))
        batch["objective"] = torch.tensor([row["objective"] for row in rows])
        if self.eos_token_id is not None:
            for name in _LABELS:
                if name in batch:
                    batch[name] = batch[name].masked_fill(batch[name] == self.eos_token_id, -100)
            for mask, tokens in _MASKS:
                if mask in batch:
                    batch[mask] = batch[mask].masked_fill(batch[tokens] == self.eos_token_id, 0)
        return batch
