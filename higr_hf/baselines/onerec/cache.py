"""Keys and values of a beam search over tokens, written once and never moved between hypotheses."""

from __future__ import annotations

import torch

from ...layers_higr import KeyValue


class BeamCache:
    """Every layer's keys and values of all hypotheses' tokens, in memory allocated once.

    The tokens of all hypotheses of an example stand side by side in one run of columns, and a boolean table says which
    hypothesis descends from which column. Following a beam reorders that table, not the keys and values. Columns that
    no living hypothesis descends from are dropped when they are the majority.

    Args:
        num_layers (`int`): layers.
        batch_size (`int`): B.
        columns (`int`): tokens that will be written at most, over all hypotheses of an example.
        num_heads, head_dim (`int`): of the attention.
        like (`Tensor`): dtype and device.
    """

    def __init__(
        self, num_layers: int, batch_size: int, columns: int, num_heads: int, head_dim: int, like: torch.Tensor
    ) -> None:
        # A token's heads lie together, as the projections write them; attention reads through a transposed view.
        self.states = like.new_empty(num_layers, 2, batch_size, columns, num_heads, head_dim)
        self.visible = torch.zeros(batch_size, 1, columns, dtype=torch.bool, device=like.device)
        self.used = 0

    @property
    def mask(self) -> torch.Tensor | None:
        """Columns each hypothesis sees, `BoolTensor [B, 1, W, used]`; `None` where each sees all there are."""
        if self.visible.shape[1] == 1:
            return None
        return self.visible[:, None, :, : self.used]

    def open(self) -> None:
        """Make room for one token of every hypothesis, which it sees itself."""
        beams = self.visible.shape[1]
        if beams > 1:
            own = torch.eye(beams, dtype=torch.bool, device=self.visible.device)
            self.visible[:, :, self.used : self.used + beams] = own
        else:
            self.visible[:, :, self.used].fill_(True)  # assigned, it would travel from the host
        self.used += beams

    def write(self, layer: int, key_value: KeyValue) -> KeyValue:
        """Keep the newest token's keys and values of every hypothesis, `[B, heads, W, head_dim]`, in the room opened.

        Returns:
            The layer's keys and values so far, `[B, heads, used, head_dim]`.
        """
        both = self.states[layer]
        room = slice(self.used - self.visible.shape[1], self.used)
        for kept, new in zip(both, key_value, strict=True):
            kept[:, room] = new.transpose(1, 2)
        keys, values = both[:, :, : self.used].transpose(2, 3)
        return keys, values

    def follow(self, parent: torch.Tensor) -> None:
        """Go on with hypotheses that descend from `parent`.

        Args:
            parent (`LongTensor [B, W']`): which of the W hypotheses each new one extends.
        """
        if parent.shape[1] == self.visible.shape[1] == 1:
            return
        self.visible = self.visible.gather(1, parent[..., None].expand(-1, -1, self.visible.shape[2]))

    def compact(self) -> None:
        """Drop the columns that no hypothesis descends from, if they are most of them."""
        if self.visible.shape[1] == 1:
            return
        alive = self.visible[:, :, : self.used].any(1)
        longest = int(alive.sum(1).max())
        if 2 * longest > self.used:
            return
        # Rows with fewer living columns keep dead ones, which nobody sees, behind the living.
        column = alive.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
        layers, _, batch, columns = self.states.shape[:4]
        first = torch.arange(layers * 2 * batch, device=column.device).view(-1, batch, 1) * columns
        kept = self.states.flatten(0, 3).index_select(0, (first + column).flatten())
        self.states[:, :, :, :longest] = kept.view(layers, 2, batch, longest, *self.states.shape[4:])
        self.visible[:, :, :longest] = self.visible.gather(2, column[:, None].expand(-1, self.visible.shape[1], -1))
        self.visible[:, :, longest:] = False
        self.used = longest
