"""What happens when two items get the same codes, and how items that come later get theirs.

A semantic ID must name one item: a shared one would make an item unreachable, or turn it into another. Two rules:

- `nearest-free` (the default) keeps D tokens an item. In a bucket of items with the same codes the item nearest to
  their codeword keeps them (ties: the lower row); the others, nearest first, take the nearest free code of the last
  level under the same prefix. An item whose prefix is full goes, after all others, to the nearest prefix with space.
- `extra-token` (TIGER, arXiv 2305.05065) appends one more level: the item's rank in its bucket, in the same order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from higr_hf.modeling_crq_vae import CRQVAEModel
from higr_hf.quantization_crq_vae import squared_distances

COLLISION_RULES = ("nearest-free", "extra-token")


class _Allocator:
    """The free semantic IDs of a catalogue, and the way to the one nearest to an item."""

    def __init__(self, model: CRQVAEModel, embeddings: torch.Tensor, codebook_sizes: Sequence[int]) -> None:
        self.model = model
        self.sizes = list(codebook_sizes)
        # capacity[d]: how many semantic IDs share one prefix of length d.
        self.capacity = [math.prod(self.sizes[depth:]) for depth in range(len(self.sizes) + 1)]
        self.used: Counter[tuple[int, ...]] = Counter()
        with torch.no_grad():
            self.latents = torch.cat([model.embed(block) for block in embeddings.split(8192)])

    def has_space(self, prefix: tuple[int, ...]) -> bool:
        return self.used[prefix] < self.capacity[len(prefix)]

    def take(self, sid: tuple[int, ...]) -> tuple[int, ...]:
        for depth in range(len(sid) + 1):
            self.used[sid[:depth]] += 1
        return sid

    def place(self, row: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Take the free semantic ID that shares the longest prefix with `wanted`, and is nearest below it."""
        depth = next(d for d in range(len(wanted), -1, -1) if self.has_space(wanted[:d]))
        sid = wanted[:depth]
        while len(sid) < len(self.sizes):
            order = np.argsort(self._distances(row, sid), kind="stable").tolist()
            sid = next(longer for code in order if self.has_space(longer := (*sid, code)))
        return self.take(sid)

    @torch.no_grad()
    def _distances(self, row: int, prefix: tuple[int, ...]) -> np.ndarray:
        if len(prefix) >= self.model.config.num_levels:
            # The disambiguation level has no codebook: the lowest free rank is as good as any.
            return np.arange(self.sizes[len(prefix)])
        codes = torch.tensor([prefix], dtype=torch.int64, device=self.latents.device)
        residual = self.latents[row : row + 1] - self.model.quantizer.lookup(codes).sum(1)
        return squared_distances(residual, self.model.quantizer.codebooks[len(prefix)])[0].cpu().numpy()


@torch.no_grad()
def _order_in_buckets(model: CRQVAEModel, embeddings: torch.Tensor, raw_codes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows from well to badly quantised, and each row's rank in its bucket."""
    codes = torch.from_numpy(raw_codes).to(embeddings.device)
    gaps = torch.cat(
        [
            (model.embed(x) - model.quantizer.lookup(c).sum(1)).square().sum(1)
            for x, c in zip(embeddings.split(8192), codes.split(8192), strict=True)
        ]
    )
    order = np.argsort(gaps.cpu().numpy(), kind="stable")
    _, bucket = np.unique(raw_codes, axis=0, return_inverse=True)
    bucket = bucket.reshape(-1)
    by_bucket = order[np.argsort(bucket[order], kind="stable")]
    starts = np.searchsorted(bucket[by_bucket], bucket[by_bucket])
    rank = np.empty(len(raw_codes), dtype=np.int64)
    rank[by_bucket] = np.arange(len(raw_codes)) - starts
    return order, rank


def resolve_collisions(
    model: CRQVAEModel,
    embeddings: torch.Tensor,
    raw_codes: np.ndarray,
    *,
    rule: str = "nearest-free",
    extra_capacity: int | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Give every item a semantic ID of its own.

    Args:
        model ([`CRQVAEModel`]): the quantiser that made the codes.
        embeddings (float `[N, E]`): of the items.
        raw_codes (int64 `[N, D]`): what `model.encode(embeddings)` gave.
        rule (`str`): `"nearest-free"` or `"extra-token"`, see the module's text.
        extra_capacity (`int`, *optional*): size of the disambiguation level under `extra-token`; by default the
            largest bucket. A larger one leaves room for items that come later.

    Returns:
        int64 `[N, L]` distinct codes (L = D, or D + 1 under `extra-token`), and the size of every level.

    Raises:
        ValueError: for an unknown rule, or when the codebooks cannot write N different semantic IDs.
    """
    sizes = list(model.config.codebook_sizes)
    if rule not in COLLISION_RULES:
        raise ValueError(f"Unknown collision rule {rule!r}; choose one of {COLLISION_RULES}.")
    order, rank = _order_in_buckets(model, embeddings, raw_codes)
    if rule == "extra-token":
        largest = int(rank.max()) + 1
        extra = largest if extra_capacity is None else extra_capacity
        if extra < largest:
            raise ValueError(
                f"extra_capacity={extra} is too small: {largest} items share one semantic ID. Raise it to at least "
                f"{largest}, or use larger codebooks."
            )
        return np.column_stack([raw_codes, rank]), [*sizes, extra]
    if len(raw_codes) > math.prod(sizes):
        raise ValueError(
            f"{len(raw_codes)} items do not fit into the {math.prod(sizes)} semantic IDs that codebook_sizes={sizes} "
            'can write: use larger codebooks, more levels, or collision_rule="extra-token".'
        )
    allocator = _Allocator(model, embeddings, sizes)
    codes = raw_codes.copy()
    losers = []
    for row in order.tolist():
        if rank[row] == 0:
            allocator.take(tuple(raw_codes[row].tolist()))
        else:
            losers.append(row)
    overflow = []
    for row in losers:
        wanted = tuple(raw_codes[row].tolist())
        if allocator.has_space(wanted[:-1]):
            codes[row] = allocator.place(row, wanted)
        else:
            # Last, so that nobody from elsewhere takes the place of an item under its own prefix.
            overflow.append(row)
    for row in overflow:
        codes[row] = allocator.place(row, tuple(raw_codes[row].tolist()))
    return codes, sizes


def assign_new(
    model: CRQVAEModel,
    embeddings: torch.Tensor | np.ndarray,
    taken: np.ndarray,
    codebook_sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """Semantic IDs for items that join a catalogue; the ones already given out never change.

    In row order every new item takes the free semantic ID that shares the longest prefix with its own codes and is
    nearest below it.

    Args:
        model ([`CRQVAEModel`]): the quantiser of the catalogue.
        embeddings (float `[n, E]`): of the new items, made as the old ones were.
        taken (int64 `[N, L]`): semantic IDs in use, those of removed items included.
        codebook_sizes (sequence of `int`, *optional*): size of every level; needed when `taken` has the disambiguation
            level of `extra-token`, by default those of the model.

    Returns:
        int64 `[n, L]`.

    Raises:
        ValueError: for NaN embeddings, a table of another width, or more items than free semantic IDs.
    """
    sizes = list(model.config.codebook_sizes if codebook_sizes is None else codebook_sizes)
    if taken.ndim != 2 or taken.shape[1] != len(sizes):
        raise ValueError(
            f"taken has the shape {list(taken.shape)}, but semantic IDs have {len(sizes)} levels of sizes {sizes}; "
            "pass the codebook_sizes of the tokenizer."
        )
    embeddings = torch.as_tensor(embeddings, dtype=torch.float32, device=model.device)
    raw_codes = model.encode(embeddings).cpu().numpy()
    free = math.prod(sizes) - len(taken)
    if len(raw_codes) > free:
        raise ValueError(
            f"{len(raw_codes)} new items, but only {free} free semantic IDs: fit a quantiser with larger codebooks."
        )
    allocator = _Allocator(model, embeddings, sizes)
    for row in taken.tolist():
        allocator.take(tuple(row))
    return np.array([allocator.place(row, tuple(code)) for row, code in enumerate(raw_codes.tolist())], dtype=np.int64)
