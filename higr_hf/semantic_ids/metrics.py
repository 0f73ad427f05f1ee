"""Metrics that judge a set of semantic IDs (not a slate).

A *prefix group* holds the items that share all codes but the last. Definitions follow HiGR, arXiv 2512.24787; what an
item with several categories means is said at each function. Shapes: N items, D levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from higr_hf.modeling_crq_vae import CRQVAEModel

Match = Literal["any", "first", "all"]
_BLOCK = 2048


def collision_rate(codes: np.ndarray) -> float:
    """1 − distinct semantic IDs / items, of codes int64 `[N, D]`.

    Example:

    ```python
    >>> import numpy as np
    >>> collision_rate(np.array([[0, 1], [0, 1], [0, 2], [1, 0]]))
    0.25

    ```
    """
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def prefix_groups(codes: np.ndarray, depth: int | None = None) -> np.ndarray:
    """Group number, int64 `[N]`, of items that share their first `depth` codes (by default all but the last)."""
    depth = codes.shape[1] - 1 if depth is None else depth
    if depth == 0:
        return np.zeros(len(codes), dtype=np.int64)
    return np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def multi_item_groups(codes: np.ndarray) -> int:
    """How many prefix groups hold more than one item; consistency says nothing where they are few."""
    return int((np.bincount(prefix_groups(codes)) > 1).sum())


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of every group."""
    if not len(groups):
        return []
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])


def _pairs_with_the_same(groups: np.ndarray, labels: np.ndarray) -> int:
    both = np.unique(np.stack([groups, labels], 1), axis=0, return_counts=True)[1]
    return _pairs(both.astype(np.int64))


def _multi_hot(categories: Sequence[Sequence[str]]) -> np.ndarray:
    names = sorted({name for item in categories for name in item})
    index = {name: column for column, name in enumerate(names)}
    table = np.zeros((len(categories), len(names)), dtype=np.float32)
    for row, item in enumerate(categories):
        table[row, [index[name] for name in item]] = 1
    return table


def _pairs_that_overlap(groups: np.ndarray, categories: Sequence[Sequence[str]]) -> int:
    if all(len(item) == 1 for item in categories):
        return _pairs_with_the_same(groups, np.unique([item[0] for item in categories], return_inverse=True)[1])
    table = _multi_hot(categories)
    ordered = 0
    for members in _members(groups):
        for start in range(0, len(members) if len(members) > 1 else 0, _BLOCK):
            ordered += int((table[members[start : start + _BLOCK]] @ table[members].T > 0).sum())
        ordered -= len(members) if len(members) > 1 else 0
    return ordered // 2


def consistency(codes: np.ndarray, categories: Sequence[Sequence[str]], *, match: Match = "any") -> float:
    """P(two items share the category | they share the prefix), over all pairs inside prefix groups.

    Items without a category are left out.

    Args:
        codes (int64 `[N, D]`).
        categories: the categories of every item.
        match (`str`): when two items with several categories share "the" category: `"any"` if they have one in common
            (the headline figure), `"first"` if the first one is the same, `"all"` if the sets are equal.

    Returns:
        `float`: in [0, 1], NaN when no two items share a prefix.

    Example:

    ```python
    >>> import numpy as np
    >>> codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
    >>> round(consistency(codes, [["a"], ["a", "b"], ["b"], ["c"]]), 4)
    0.6667

    ```
    """
    labelled = np.array([len(item) > 0 for item in categories], dtype=bool)
    if not labelled.any():
        return float("nan")
    groups = np.unique(prefix_groups(codes)[labelled], return_inverse=True)[1].reshape(-1)
    kept = [tuple(categories[row]) for row in np.flatnonzero(labelled)]
    pairs = _pairs(np.bincount(groups).astype(np.int64))
    if pairs == 0:
        return float("nan")
    if match == "any":
        return _pairs_that_overlap(groups, kept) / pairs
    if match not in ("first", "all"):
        raise ValueError(f'match must be "any", "first" or "all", got {match!r}.')
    keys = [item[0] if match == "first" else "\0".join(sorted(set(item))) for item in kept]
    return _pairs_with_the_same(groups, np.unique(keys, return_inverse=True)[1].reshape(-1)) / pairs


def concentration(codes: np.ndarray, categories: Sequence[Sequence[str]], *, multi_item_only: bool = False) -> float:
    """Share of items that have the majority category of their prefix group.

    The majority category is the one most items of the group have (an item with several categories counts for each of
    them; ties: the first by name). Items without a category are left out.

    Args:
        codes (int64 `[N, D]`).
        categories: the categories of every item.
        multi_item_only (`bool`): leave out groups of one item, which always agree with themselves.

    Returns:
        `float`: in [0, 1], NaN when no item is left.
    """
    labelled = np.array([len(item) > 0 for item in categories], dtype=bool)
    groups = prefix_groups(codes)[labelled]
    table = _multi_hot([categories[row] for row in np.flatnonzero(labelled)])
    agreeing = total = 0
    for members in _members(groups):
        if len(members) > int(multi_item_only):
            agreeing += int(table[members].sum(0).max())
            total += len(members)
    return agreeing / total if total else float("nan")


def code_usage(codes: np.ndarray, codebook_sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Share of each level's codes that some item has, and the perplexity 2^entropy of the level's codes.

    Args:
        codes (int64 `[N, D]`).
        codebook_sizes (sequence of `int`): K of every level.

    Returns:
        two lists of D floats: usage in (0, 1], perplexity in [1, K].
    """
    usage, perplexity = [], []
    for level, size in enumerate(codebook_sizes):
        share = np.bincount(codes[:, level], minlength=size) / len(codes)
        used = share[share > 0]
        usage.append(float((share > 0).mean()))
        perplexity.append(float(np.exp(-(used * np.log(used)).sum())))
    return usage, perplexity


def prefix_cosine(codes: np.ndarray, embeddings: np.ndarray) -> float:
    """Consistency without labels: the mean cosine of embeddings `[N, E]` over all pairs inside prefix groups."""
    groups = prefix_groups(codes)
    pairs = _pairs(np.bincount(groups).astype(np.int64))
    if pairs == 0:
        return float("nan")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = (embeddings / np.where(norms > 0, norms, 1)).astype(np.float64)
    sums = np.zeros((groups.max() + 1, embeddings.shape[1]))
    np.add.at(sums, groups, unit)
    # Σ_{i<j} x_i·x_j = (‖Σ x_i‖² − Σ ‖x_i‖²) / 2, so no pair is ever formed.
    return float(((sums**2).sum() - (unit**2).sum()) / 2 / pairs)


@torch.no_grad()
def residual_norms(model: CRQVAEModel, embeddings: torch.Tensor) -> list[float]:
    """Mean norm of what each level leaves over, relative to the mean norm of the latents: D floats, falling to 0."""
    latents = torch.cat([model.embed(block) for block in embeddings.split(8192)])
    scale = latents.norm(dim=1).mean().clamp_min(1e-12)
    norms = torch.zeros(model.config.num_levels, dtype=latents.dtype, device=latents.device)
    for block in latents.split(8192):
        result = model.quantize(block)
        norms += (result.residuals - result.codewords).norm(dim=2).sum(0)
    return (norms / len(latents) / scale).tolist()


def tokenizer_metrics(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    *,
    categories: Sequence[Sequence[str]] | None = None,
    embeddings: np.ndarray | None = None,
) -> dict[str, float]:
    """All of the above that the inputs allow, under flat names; levels are numbered from 1.

    Args:
        codes (int64 `[N, D]`): the raw codes, before any collision rule.
        codebook_sizes (sequence of `int`): K of every level.
        categories (*optional*): the categories of every item.
        embeddings (float `[N, E]`, *optional*): for the mean cosine inside prefix groups.
    """
    usage, perplexity = code_usage(codes, codebook_sizes)
    metrics = {
        "collision": collision_rate(codes),
        "multi_item_prefixes": float(multi_item_groups(codes)),
        "prefix_pairs": float(_pairs(np.bincount(prefix_groups(codes)).astype(np.int64))),
    }
    if categories is not None:
        categories = list(categories)  # a column of a dataset is slow to read item by item, here many times over
        together = np.zeros((len(codes), 1), dtype=np.int64)
        for name, match in (("consistency", "any"), ("consistency_first", "first"), ("consistency_all", "all")):
            metrics[name] = consistency(codes, categories, match=match)
            metrics[f"{name}_chance"] = consistency(together, categories, match=match)
        metrics["concentration"] = concentration(codes, categories)
        metrics["concentration_multi"] = concentration(codes, categories, multi_item_only=True)
    if embeddings is not None:
        metrics["prefix_cosine"] = prefix_cosine(codes, embeddings)
    for level in range(len(codebook_sizes)):
        metrics[f"usage_{level + 1}"] = usage[level]
        metrics[f"perplexity_{level + 1}"] = perplexity[level]
    return metrics
