"""The catalogue prior: a softmax over whole items, handed down to the codes that spell them.

A plan vector scores every item of the catalogue at once, plan · item vector. The softmax of these scores is a
distribution over items; what it puts below a prefix, relative to the prefix's siblings, is a distribution over that
level's codes. Added to the item generator's logits it makes the generator a *correction* of a full catalogue softmax:
with a generator that says nothing, the codes' probabilities multiply to exactly that softmax, and the loss on the
codes is exactly its cross-entropy. A beam then knows, when it chooses a first code, how good the items below it are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .catalog_higr import SIDTrie
from .configuration_higr import HiGRConfig

MISSING_CODE = -1e4
"""Logit of a code that leads to no item: finite, because trainers average logits."""

SMALLEST_MASS = 1e-30

CACHED_SCORES = 2**18
"""Scores that are worked on together on a CPU: a megabyte, which stays in its second-level cache."""

GPU_SCORES = 2**28
"""The same on a GPU: a gigabyte, more than keeps it busy."""


class CatalogPrior:
    """What the catalogue softmax of R plan vectors says of every node of the prefix tree.

    Takes R·N·d operations and R·N numbers for N items, once a plan vector.

    Args:
        trie (`SIDTrie`): the catalogue.
        config (`HiGRConfig`): the vocabulary.
        plans (`[R, d]`): plan vectors.
        vectors (`[N, d]`): item vectors in the order of `trie.order`.
        added (`FloatTensor [R, N]`, *optional*): what else speaks for each item, by item index; see
            [`ItemItemScores`].
    """

    def __init__(
        self,
        trie: SIDTrie,
        config: HiGRConfig,
        plans: torch.Tensor,
        vectors: torch.Tensor,
        added: torch.Tensor | None = None,
    ) -> None:
        self.trie, self.config = trie, config
        self._masses = _node_masses(plans, vectors, trie, added)

    def logits(self, level: int, parents: torch.Tensor) -> torch.Tensor:
        """What to add to the logits of one level's group of tokens.

        Args:
            level (`int`): the level that is predicted.
            parents (`LongTensor [R, ...]`): node of depth `level - 1` that the codes so far lead to, one row a plan
                vector; -1 where they lead to no item. Any number at level 0, whose parent is the root.

        Returns:
            `FloatTensor [R, ..., size of the group]`, see [`path_logits`].
        """
        children, exists = _children(self.trie, level, parents)
        row = torch.arange(len(parents), device=parents.device).view(-1, *[1] * parents.dim())
        log_mass = self._masses[level][children, row].clamp(min=SMALLEST_MASS).log()
        columns = _columns(self.trie, self.config, level, children, exists)
        return _group_logits(self.config, level, log_mass, exists, columns)


def path_logits(
    trie: SIDTrie,
    config: HiGRConfig,
    plans: torch.Tensor,
    vectors: torch.Tensor,
    nodes: torch.Tensor,
    added: torch.Tensor | None = None,
    spoken: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    """What the prior adds to the logits along given semantic IDs; differentiable.

    Args:
        trie (`SIDTrie`): the catalogue.
        config (`HiGRConfig`): the vocabulary.
        plans (`[R, d]`): plan vectors. Memory grows with R but not with R·N.
        vectors (`[N, d]`): item vectors in the order of `trie.order`.
        nodes (`LongTensor [R, L]`): the prefixes' nodes, -1 where a prefix leads to no item (`SIDTrie.prefixes`).
        added (`FloatTensor [R, N]`, *optional*): see [`CatalogPrior`]; a constant to the gradients.
        spoken (`LongTensor [R, S]` and `FloatTensor [R, S]`, *optional*): items and what is added to their scores,
            differentiable; an item that stands in a row several times gets the sum.

    Returns:
        A level a `FloatTensor [R, size of the group]`. At level l the codes that go on from the first l codes hold the
        log of their share of the mass below that prefix; codes that lead to no item `MISSING_CODE`; everything below
        an unknown prefix 0. Special and feature tokens, which share the group of level 0, stand where one of its codes
        would at even odds.
    """
    index, values = (None, None) if spoken is None else (trie.rank[spoken[0]], spoken[1].float())
    return _PathLogits.apply(plans, vectors, trie, config, added, nodes, index, values)


def _children(trie: SIDTrie, level: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Children of nodes `[...]`, of the root at level 0, and which of them exist; none below an unknown prefix."""
    if level == 0:  # every node of depth 0, for all alike
        nodes = torch.arange(len(trie.node_code[0]), device=parents.device).expand(*parents.shape, -1)
        return nodes, torch.ones_like(nodes[..., :1], dtype=torch.bool).expand_as(nodes)
    children, exists = trie.children(level, parents.clamp(min=0))
    return children, exists & (parents >= 0)[..., None]


def _columns(
    trie: SIDTrie, config: HiGRConfig, level: int, children: torch.Tensor, exists: torch.Tensor
) -> torch.Tensor:
    """Place of each child's code in the group of tokens; one past the group's end where there is no child."""
    if level == 0:
        return (trie.node_code[0] + config.level_offsets[0]).expand_as(children)
    return torch.where(exists, trie.node_code[level][children], config.codebook_sizes[level])


def _group_logits(
    config: HiGRConfig, level: int, log_mass: torch.Tensor, exists: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """From log-masses of children `[..., C]` to logits by token of the group; not differentiable."""
    size, others = config.codebook_sizes[level], config.level_offsets[0] if level == 0 else 0
    shares = log_mass.masked_fill(~exists, MISSING_CODE).log_softmax(-1)
    # Children that do not exist write into a spare column.
    logits = shares.new_full((*shares.shape[:-1], others + size + 1), MISSING_CODE)
    # Filled, not assigned: a number that is assigned travels from the host, which a CUDA graph cannot hold.
    logits[..., :others].fill_(-math.log(size))
    logits = logits.scatter_(-1, columns, shares)[..., :-1]
    return logits.masked_fill_(~exists.any(-1, keepdim=True), 0.0)


def _node_masses(
    plans: torch.Tensor, vectors: torch.Tensor, trie: SIDTrie, added: torch.Tensor | None
) -> list[torch.Tensor]:
    """Per level the mass `[nodes, R]` below every node, in units of each column's best item.

    Nodes stand in rows, so that sums over neighbouring nodes read and write whole cache lines. In float32 whatever the
    model's precision: a sum over thousands of items would lose the small ones.
    """
    scores = _scores(plans.float(), vectors.float(), trie, added)
    scores -= scores.amax(0)
    masses = [scores.exp_()]
    for level in range(len(trie.node_code) - 1, 0, -1):
        above = masses[0].new_zeros(len(trie.node_code[level - 1]), len(plans))
        masses.insert(0, above.index_add_(0, trie.parent[level], masses[0]))
    return masses


def _scores(
    plans: torch.Tensor,
    vectors: torch.Tensor,
    trie: SIDTrie,
    added: torch.Tensor | None,
    ranks: torch.Tensor | None = None,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of every item, by rank, under every plan vector, float32 `[N, R]`; `values` are added at `ranks`."""
    with torch.autocast(plans.device.type, enabled=False):
        scores = vectors @ plans.T
    if added is not None:
        scores += added.detach().float().T[trie.order]
    if ranks is not None:
        scores.T.scatter_add_(1, ranks, values)
    return scores


class _PathLogits(torch.autograd.Function):
    """See [`path_logits`]. The plan vectors are scored a block at a time.

    By hand, because autograd would keep a dozen tensors of N × R. A block's scores stay in the processor's cache for
    all that is done to them, and the backward pass computes them again: no tensor of N × R exists for many R.
    """

    @staticmethod
    def forward(ctx, plans, vectors, trie, config, added, nodes, ranks, values):
        levels = range(config.num_levels)
        wanted = [_children(trie, level, nodes[:, max(level - 1, 0)]) for level in levels]
        wide, columns = vectors.float(), plans.float()
        rank = torch.arange(trie.num_items, device=plans.device)
        best = columns.new_empty(len(plans))
        picked = [columns.new_empty(children.shape) for children, _ in wanted]
        for rows in _blocks(len(plans), trie.num_items, plans.device):
            mass = _scores(columns[rows], wide, trie, *(_of(rows, extra) for extra in (added, ranks, values)))
            best[rows] = mass.amax(0)
            mass = mass.sub_(best[rows]).exp_()
            for level in reversed(levels[1:]):
                picked[level][rows] = mass.gather(0, wanted[level][0][rows].T).T
                # Children stand side by side; summing runs of rows is what an embedding bag does fastest.
                first = trie.child_start[level][:-1]
                mass = nn.functional.embedding_bag(rank[: len(mass)], mass, first, mode="sum")
            picked[0][rows] = mass.T
        tokens = [_columns(trie, config, level, *wanted[level]) for level in levels]
        ctx.trie = trie
        children = [nodes for nodes, _ in wanted]
        ctx.save_for_backward(
            plans,
            vectors,
            added,
            ranks,
            values,
            best,
            *[mass.clamp_(min=SMALLEST_MASS) for mass in picked],
            *children,
            *tokens,
        )
        return tuple(
            _group_logits(config, level, picked[level].log(), wanted[level][1], tokens[level]) for level in levels
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        plans, vectors, added, ranks, values, best, *rest = ctx.saved_tensors
        levels, trie = len(grads), ctx.trie
        picked, children, tokens = rest[:levels], rest[levels : 2 * levels], rest[2 * levels :]
        of_mass = [_mass_gradient(*level) for level in zip(grads, picked, tokens, strict=True)]
        wide, columns = vectors.float(), plans.float()
        of_plans, of_vectors = torch.empty_like(columns), torch.zeros_like(wide)
        of_values = None if values is None else torch.empty_like(values)
        for rows in _blocks(len(plans), trie.num_items, plans.device):
            mass = _scores(columns[rows], wide, trie, *(_of(rows, extra) for extra in (added, ranks, values)))
            above = of_mass[0][rows].T.contiguous()
            for level in range(1, levels):
                above = above.index_select(0, trie.parent[level])
                above.scatter_add_(0, children[level][rows].T, of_mass[level][rows].T)
            of_scores = mass.sub_(best[rows]).exp_().mul_(above)
            if of_values is not None:
                of_values[rows] = of_scores.T.gather(1, ranks[rows])
            with torch.autocast(plans.device.type, enabled=False):
                of_plans[rows] = of_scores.T @ wide
                of_vectors.addmm_(of_scores, columns[rows])
        return of_plans.to(plans.dtype), of_vectors.to(vectors.dtype), None, None, None, None, None, of_values


def _mass_gradient(grad: torch.Tensor, mass: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """From the gradient of a group's logits `[R, G]` to that of its children's masses `[R, C]`."""
    missing = tokens == grad.shape[1]
    grad = grad.float().gather(1, tokens.clamp(max=grad.shape[1] - 1)).masked_fill_(missing, 0.0)
    # Of log(mass / sum of masses); a row without children has neither.
    whole = mass.masked_fill(missing, 0.0).sum(1, keepdim=True).clamp_(min=SMALLEST_MASS)
    return (grad / mass).sub_(grad.sum(1, keepdim=True) / whole).masked_fill_(missing, 0.0)


def _of(rows: slice, extra: torch.Tensor | None) -> torch.Tensor | None:
    return None if extra is None else extra[rows]


def _blocks(rows: int, num_items: int, device: torch.device) -> Iterator[slice]:
    """Which of R plan vectors are scored together."""
    scores = CACHED_SCORES if device.type == "cpu" else GPU_SCORES
    size = max(16, scores // num_items // 16 * 16)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


__all__ = ["CatalogPrior", "path_logits"]
