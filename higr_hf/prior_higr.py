"""The catalogue prior: a softmax over whole items, handed down to the codes that spell them.

A plan vector scores every item of the catalogue at once, plan · item vector. The softmax of these scores is a
distribution over items; what it puts below a prefix, relative to the prefix's siblings, is a distribution over that
level's codes. Added to the item generator's logits it makes the generator a *correction* of a full catalogue softmax:
with a generator that says nothing, the codes' probabilities multiply to exactly that softmax, and the loss on the
codes is exactly its cross-entropy. A beam then knows, when it chooses a first code, how good the items below it are.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .catalog_higr import SIDTrie
from .configuration_higr import HiGRConfig

MISSING_CODE = -1e4
"""Logit of a code that leads to no item: finite, because trainers average logits."""

SMALLEST_MASS = 1e-30


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
        return _group_logits(self.trie, self.config, level, log_mass, children, exists)


def path_logits(
    trie: SIDTrie,
    config: HiGRConfig,
    plans: torch.Tensor,
    vectors: torch.Tensor,
    nodes: torch.Tensor,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the prior adds to the logits along given semantic IDs; differentiable.

    Args:
        trie (`SIDTrie`): the catalogue.
        config (`HiGRConfig`): the vocabulary.
        plans (`[R, d]`): plan vectors.
        vectors (`[N, d]`): item vectors in the order of `trie.order`.
        nodes (`LongTensor [R, L]`): the prefixes' nodes, -1 where a prefix leads to no item (`SIDTrie.prefixes`).
        added (`FloatTensor [R, N]`, *optional*): see [`CatalogPrior`]; a constant to the gradients.

    Returns:
        `FloatTensor [R, L, G]`, G the size of the largest group of tokens. At level l the codes that go on from the
        first l codes hold the log of their share of the mass below that prefix; codes that lead to no item
        `MISSING_CODE`; everything below an unknown prefix, and past the end of a smaller group, 0. Special and feature
        tokens, which share the group of level 0, stand where one of its codes would at even odds.
    """
    wanted = [_children(trie, level, nodes[:, max(level - 1, 0)]) for level in range(config.num_levels)]
    found = _NodeLogMass.apply(plans, vectors, trie, added, *(children for children, _ in wanted))
    groups = [_group_logits(trie, config, level, log_mass, *wanted[level]) for level, log_mass in enumerate(found)]
    size = config.largest_group
    return torch.stack([nn.functional.pad(logits, (0, size - logits.shape[-1])) for logits in groups], dim=1)


def _children(trie: SIDTrie, level: int, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Children of nodes `[...]`, of the root at level 0, and which of them exist; none below an unknown prefix."""
    if level == 0:
        return trie.children(0, torch.zeros_like(parents))
    children, exists = trie.children(level, parents.clamp(min=0))
    return children, exists & (parents >= 0)[..., None]


def _group_logits(
    trie: SIDTrie,
    config: HiGRConfig,
    level: int,
    log_mass: torch.Tensor,
    children: torch.Tensor,
    exists: torch.Tensor,
) -> torch.Tensor:
    """From log-masses of children `[..., C]` to logits by token of the group."""
    size = config.codebook_sizes[level]
    shares = log_mass.masked_fill(~exists, MISSING_CODE).log_softmax(-1)
    # Children that do not exist write into a spare column.
    column = torch.where(exists, trie.node_code[level][children], size)
    logits = shares.new_full((*shares.shape[:-1], size + 1), MISSING_CODE).scatter(-1, column, shares)[..., :size]
    logits = torch.where(exists.any(-1, keepdim=True), logits, 0.0)
    if level == 0:
        others = logits.new_full((*logits.shape[:-1], config.level_offsets[0]), -math.log(size))
        logits = torch.cat([others, logits], dim=-1)
    return logits


def _node_masses(
    plans: torch.Tensor, vectors: torch.Tensor, trie: SIDTrie, added: torch.Tensor | None
) -> list[torch.Tensor]:
    """Per level the mass `[nodes, R]` below every node, in units of each column's best item.

    Nodes stand in rows, so that sums over neighbouring nodes read and write whole cache lines. In float32 whatever the
    model's precision: a sum over thousands of items would lose the small ones.
    """
    with torch.autocast(plans.device.type, enabled=False):
        scores = vectors.float() @ plans.float().T
    if added is not None:
        scores += added.detach().float().T[trie.order]
    scores -= scores.amax(0)
    masses = [scores.exp_()]
    for level in range(len(trie.node_code) - 1, 0, -1):
        above = masses[0].new_zeros(len(trie.node_code[level - 1]), len(plans))
        masses.insert(0, above.index_add_(0, trie.parent[level], masses[0]))
    return masses


class _NodeLogMass(torch.autograd.Function):
    """Log-masses of chosen nodes. By hand, because autograd would keep and clear a dozen tensors of N × R."""

    @staticmethod
    def forward(ctx, plans, vectors, trie, added, *wanted):
        masses = _node_masses(plans, vectors, trie, added)
        picked = [
            mass.gather(0, nodes.T).clamp_(min=SMALLEST_MASS) for mass, nodes in zip(masses, wanted, strict=True)
        ]
        ctx.trie, ctx.shapes = trie, [mass.shape for mass in masses]
        ctx.save_for_backward(plans, vectors, masses[-1], *picked, *wanted)
        return tuple(mass.log().T for mass in picked)

    @staticmethod
    def backward(ctx, *grads):
        plans, vectors, mass, *rest = ctx.saved_tensors
        picked, wanted = rest[: len(grads)], rest[len(grads) :]
        above = None
        for level, grad in enumerate(grads):
            if above is None:
                below = mass.new_zeros(ctx.shapes[level])
            else:
                below = above.index_select(0, ctx.trie.parent[level])
            above = below.scatter_add_(0, wanted[level].T, grad.T.float() / picked[level])
        scores = above.mul_(mass)
        with torch.autocast(plans.device.type, enabled=False):
            of_plans, of_vectors = scores.T @ vectors.float(), scores @ plans.float()
        return of_plans.to(plans.dtype), of_vectors.to(vectors.dtype), None, None, *(None for _ in wanted)


__all__ = ["CatalogPrior", "path_logits"]
