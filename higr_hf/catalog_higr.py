"""The catalogue as tensors: a prefix tree of semantic IDs, and the rules that say which items may be recommended.

Everything here is index arithmetic over sorted arrays: no Python loop over beams or items, memory linear in the
catalogue, and (but for building it once) no step whose cost grows with the number of items.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch


@dataclass
class SIDTrie:
    """A prefix tree over N unique semantic IDs of L levels, in compressed-row form.

    Items are sorted by their codes, so the items below any prefix are one contiguous range of *ranks*. A node of depth
    `l` is one distinct prefix of `l + 1` codes; nodes of a depth are numbered in sorted order, so the children of a
    node are contiguous too. The root (depth -1) is implicit.

    Attributes:
        order (`LongTensor [N]`): item index at each rank.
        rank (`LongTensor [N]`): rank of each item index.
        keys (`LongTensor [N]`): the semantic IDs packed into one ascending integer each.
        strides (`LongTensor [L]`): key = Σ code × stride.
        node_code (list of `LongTensor [n_l]`): last code of every node, per depth.
        child_start (list of `LongTensor [n_{l-1} + 1]`): per depth `l`, where the children of each parent begin; entry
            0 belongs to the root.
        first_rank (list of `LongTensor [n_l + 1]`): rank of the first item below every node.
        parent (list of `LongTensor [n_l]`): node one depth above every node; zeros (the root) at depth 0.
        max_children (list of `int`): the widest branching into each depth.
    """

    order: torch.Tensor
    rank: torch.Tensor
    keys: torch.Tensor
    strides: torch.Tensor
    node_code: list[torch.Tensor]
    child_start: list[torch.Tensor]
    first_rank: list[torch.Tensor]
    parent: list[torch.Tensor]
    max_children: list[int]

    @classmethod
    def build(cls, codes: torch.Tensor, codebook_sizes: list[int]) -> SIDTrie:
        """Sort the catalogue and index its prefixes.

        Args:
            codes (`LongTensor [N, L]`): the semantic ID of every item, each unique.
            codebook_sizes (`list[int]`): number of codes of every level.

        Raises:
            ValueError: for an empty catalogue, a code outside its level, or two items with one semantic ID.

        Example:

        ```python
        >>> trie = SIDTrie.build(torch.tensor([[1, 0], [0, 2], [0, 1]]), [2, 3])
        >>> trie.order.tolist(), trie.node_code[0].tolist()
        ([2, 1, 0], [0, 1])

        ```
        """
        if codes.dim() != 2 or codes.shape[1] != len(codebook_sizes):
            raise ValueError(
                f"codes must have shape [items, {len(codebook_sizes)}], one column a level; got {list(codes.shape)}."
            )
        num_items, levels = codes.shape
        if num_items == 0:
            raise ValueError("The catalogue is empty: give the model at least one item with `set_catalog`.")
        sizes = torch.tensor(codebook_sizes, device=codes.device)
        outside = (codes < 0) | (codes >= sizes)
        if bool(outside.any()):
            row, level = outside.nonzero()[0].tolist()
            raise ValueError(
                f"Item {row} has code {int(codes[row, level])} at level {level}, which has only codes 0 to "
                f"{codebook_sizes[level] - 1}."
            )
        strides = torch.ones(levels, dtype=torch.long, device=codes.device)
        for level in range(levels - 2, -1, -1):
            strides[level] = strides[level + 1] * codebook_sizes[level + 1]
        keys, order = ((codes * strides).sum(-1)).sort(stable=True)
        same = (keys[1:] == keys[:-1]).nonzero()
        if len(same):
            first = int(same[0])
            one, two = sorted((int(order[first]), int(order[first + 1])))
            raise ValueError(
                f"Items {one} and {two} share the semantic ID {codes[one].tolist()}: apply a collision rule first, so "
                "that no item hides another."
            )
        rank = torch.empty_like(order)
        rank[order] = torch.arange(num_items, device=codes.device)

        node_code, child_start, first_rank, parent, max_children = [], [], [], [], []
        parent_first = torch.zeros(1, dtype=torch.long, device=codes.device)
        end = torch.tensor([num_items], device=codes.device)
        for level in range(levels):
            prefix = keys // strides[level]
            is_first = torch.ones(num_items, dtype=torch.bool, device=codes.device)
            is_first[1:] = prefix[1:] != prefix[:-1]
            first = is_first.nonzero().squeeze(-1)
            node_code.append(prefix[first] % codebook_sizes[level])
            # A parent's children begin at the node whose first item is the parent's first item.
            starts = torch.cat(
                [torch.searchsorted(first, parent_first), torch.tensor([len(first)], device=codes.device)]
            )
            child_start.append(starts)
            branching = starts[1:] - starts[:-1]
            parent.append(torch.repeat_interleave(torch.arange(len(branching), device=codes.device), branching))
            max_children.append(int(branching.max()))
            first_rank.append(torch.cat([first, end]))
            parent_first = first
        return cls(order, rank, keys, strides, node_code, child_start, first_rank, parent, max_children)

    @property
    def num_items(self) -> int:
        """N, the number of items."""
        return len(self.order)

    def children(self, depth: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of some nodes, padded to the widest branching of that depth.

        Args:
            depth (`int`): depth of the children, 0 for those of the root.
            parents (`LongTensor [...]`): nodes of depth `depth - 1` (zeros stand for the root).

        Returns:
            `nodes (LongTensor [..., C])` and `exists (BoolTensor [..., C])`; where a child does not exist its node is
            some valid index and must not be used.
        """
        starts = self.child_start[depth]
        begin, end = starts[parents], starts[parents + 1]
        nodes = begin.unsqueeze(-1) + torch.arange(self.max_children[depth], device=parents.device)
        exists = nodes < end.unsqueeze(-1)
        return nodes.clamp_(max=len(self.node_code[depth]) - 1), exists

    def prefixes(self, codes: torch.Tensor) -> torch.Tensor:
        """Node of every prefix of some codes, -1 from the first code on that leads to no item (or is -1).

        Args:
            codes (`LongTensor [..., L]`): codes per level.

        Returns:
            `LongTensor [..., L]`: node of depth l at position l.
        """
        nodes = []
        known = torch.ones_like(codes[..., 0], dtype=torch.bool)
        key = torch.zeros_like(codes[..., 0])
        for level in range(codes.shape[-1]):
            known = known & (codes[..., level] >= 0)
            key = key + codes[..., level].clamp(min=0) * self.strides[level]
            rank = torch.searchsorted(self.keys, key).clamp(max=self.num_items - 1)
            known = known & (self.keys[rank] // self.strides[level] == key // self.strides[level])
            # Nodes of a depth ascend with their first rank.
            node = torch.searchsorted(self.first_rank[level], rank, right=True) - 1
            nodes.append(torch.where(known, node, -1))
        return torch.stack(nodes, dim=-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Item index of every semantic ID, -1 where it is no item's (or incomplete, a code being -1).

        Args:
            codes (`LongTensor [..., L]`): codes per level.

        Returns:
            `LongTensor [...]`.
        """
        keys = (codes * self.strides).sum(-1)
        rank = torch.searchsorted(self.keys, keys).clamp_(max=self.num_items - 1)
        found = (self.keys[rank] == keys) & (codes >= 0).all(-1)
        return torch.where(found, self.order[rank], -1)


class Legality:
    """Which items each row of a batch may still be given.

    Legal = allowed (one set for all rows, or one a row) and not excluded. Exclusions are kept as sorted ranks, so that
    asking "is anything legal left below this node?" costs two binary searches, whatever the size of the catalogue.

    Args:
        trie (`SIDTrie`): the catalogue.
        batch_size (`int`): B, the number of rows.
        allowed (`BoolTensor [N]` or `[B, N]`, *optional*): by item index; all items when left out.
        excluded (`LongTensor [B, E]`, *optional*): item indices, padded with -1; duplicates are welcome.
    """

    def __init__(
        self,
        trie: SIDTrie,
        batch_size: int,
        allowed: torch.Tensor | None = None,
        excluded: torch.Tensor | None = None,
    ) -> None:
        self.trie = trie
        self._allowed = self._allowed_before = None
        if allowed is not None:
            self._allowed = allowed[..., trie.order]
            before = self._allowed.cumsum(-1)
            self._allowed_before = torch.nn.functional.pad(before, (1, 0))
        device = trie.order.device
        self._excluded = torch.empty(batch_size, 0, dtype=torch.long, device=device)
        if excluded is not None and excluded.numel():
            self.exclude(excluded)

    def exclude(self, items: torch.Tensor) -> None:
        """Take items out for good.

        Args:
            items (`LongTensor [B, E]`): item indices, -1 for none.
        """
        self._excluded = self._with(self._excluded, self._ranks(items))

    def copy(self) -> Legality:
        """The same for now; what is excluded from one is not excluded from the other."""
        return copy.copy(self)

    def without(self, items: torch.Tensor) -> Legality:
        """What each of R slots of every row may be given, with items of its own taken out besides.

        Args:
            items (`LongTensor [B, R, E]`): item indices, -1 for none.

        Returns:
            Its questions are about `[B, R, ...]`; nothing more can be excluded from it.
        """
        slots = copy.copy(self)
        ranks = self._ranks(items.flatten(1)).reshape(items.shape[0] * items.shape[1], items.shape[2])
        slots._excluded = self._with(self._excluded.repeat_interleave(items.shape[1], 0), ranks)
        return slots

    def _ranks(self, items: torch.Tensor) -> torch.Tensor:
        """Ranks of items `LongTensor [B, E]` that are legal but for exclusions; N for the others."""
        size = self.trie.num_items
        ranks = torch.where(items >= 0, self.trie.rank[items.clamp(min=0)], size)
        if self._allowed is None:
            return ranks
        # An item that is not allowed must not be subtracted a second time.
        inside = ranks.clamp(max=size - 1)
        allowed = self._allowed[inside] if self._allowed.dim() == 1 else self._allowed.gather(1, inside)
        return torch.where(allowed, ranks, size)

    def _with(self, excluded: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        """Rows of sorted ranks and more ranks, sorted, each once and N for the repeated."""
        ranks = torch.cat([excluded, ranks], dim=1).sort(dim=1).values
        repeated = torch.zeros_like(ranks, dtype=torch.bool)
        repeated[:, 1:] = ranks[:, 1:] == ranks[:, :-1]
        return torch.where(repeated, self.trie.num_items, ranks).sort(dim=1).values

    def count(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Number of legal items with ranks in `[first, last)`.

        Args:
            first, last (`LongTensor [B, ...]`): rank bounds.

        Returns:
            `LongTensor [B, ...]`.
        """
        return self._legal_before(last) - self._legal_before(first)

    def children(self, depth: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The children of some nodes, and which have a legal item below them.

        Args:
            depth (`int`): depth of the children, 0 for those of the root.
            parents (`LongTensor [B, ...]`): nodes of depth `depth - 1` (zeros stand for the root).

        Returns:
            `nodes (LongTensor [B, ..., C])` and `legal (BoolTensor [B, ..., C])`; what is not legal may not exist, and
            its node is some valid index.
        """
        trie = self.trie
        starts = trie.child_start[depth]
        step = torch.arange(trie.max_children[depth] + 1, device=parents.device)
        # One child ends where the next begins, and past the last one all edges are the same: nothing lies between.
        edges = torch.minimum(starts[parents].unsqueeze(-1) + step, starts[parents + 1].unsqueeze(-1))
        before = self._legal_before(trie.first_rank[depth][edges])
        nodes = edges[..., :-1].clamp(max=len(trie.node_code[depth]) - 1)
        return nodes, before[..., 1:] > before[..., :-1]

    def _legal_before(self, ranks: torch.Tensor) -> torch.Tensor:
        """Number of legal items below each rank, `LongTensor [B, ...]`."""
        if self._allowed_before is None:
            count = ranks
        elif self._allowed_before.dim() == 1:
            count = self._allowed_before[ranks]
        else:
            count = self._allowed_before.gather(1, ranks.reshape(len(ranks), -1)).view(ranks.shape)
        if self._excluded.shape[1]:
            # A row of exclusions for every row, or for every slot of every row.
            below = torch.searchsorted(self._excluded, ranks.reshape(len(self._excluded), -1))
            count = count - below.view(ranks.shape)
        return count

    def remaining(self) -> torch.Tensor:
        """Number of legal items of every row, `LongTensor [B]`."""
        zero = torch.zeros(self._excluded.shape[0], 1, dtype=torch.long, device=self._excluded.device)
        return self.count(zero, zero + self.trie.num_items).squeeze(1)
