"""Slate metrics as plain functions over arrays of item indices.

Slates and targets are int64 arrays, one row a user, padded with -1. Every `*_per_user` function returns float64 `[U]`
with NaN for users the metric does not exist for; the function without the suffix is the mean over the others.

The ranking metrics follow the HiGR protocol (arXiv 2512.24787, evaluation): a slate O of M items against the user's
target items T, binary gains, an item recommended twice counts once. Effective views are a narrower T: see
[`keep_views`].
"""

from __future__ import annotations

import numpy as np

PADDING = -1


def _slates(items: np.ndarray, name: str) -> np.ndarray:
    items = np.asarray(items)
    if items.ndim != 2:
        raise ValueError(f"{name} has shape {items.shape}, expected [users, items].")
    if items.size and not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"{name} holds {items.dtype}, expected integer item indices padded with {PADDING}.")
    return items.astype(np.int64, copy=False)


def _first_occurrences(items: np.ndarray) -> np.ndarray:
    """bool `[U, M]`: legal slots whose item stands in no earlier slot of the row."""
    earlier = np.tril(np.ones((items.shape[1], items.shape[1]), dtype=bool), k=-1)
    repeated = ((items[:, :, None] == items[:, None, :]) & earlier).any(axis=2)
    return (items >= 0) & ~repeated


def mean_over_users(values: np.ndarray) -> float:
    """Mean of a per-user array over the users the metric exists for; NaN when there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _gains(slates: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Binary gains bool `[U, M]`, and the number of distinct target items int64 `[U]`."""
    slates, targets = _slates(slates, "slates"), _slates(targets, "targets")
    if len(slates) != len(targets):
        raise ValueError(f"{len(slates)} slates for {len(targets)} targets: one row a user in both.")
    hit = (slates[:, :, None] == targets[:, None, :]).any(axis=2)
    return hit & _first_occurrences(slates), _first_occurrences(targets).sum(axis=1)


def keep_views(targets: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The targets that were effectively viewed; the others become padding.

    Args:
        targets: int64 `[U, T]`.
        views: bool `[U, T]`, engaged above the source's threshold.
    """
    targets, views = np.asarray(targets), np.asarray(views, dtype=bool)
    if targets.shape != views.shape:
        raise ValueError(f"views have shape {views.shape}, targets {targets.shape}.")
    return np.where(views, targets, PADDING)


def hit_per_user(slates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 where the slate holds at least one target item, else 0; NaN without targets. Float64 `[U]`.

    Example:
        >>> hit_per_user(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [-1, -1]]))
        array([ 1., nan])
    """
    gains, sizes = _gains(slates, targets)
    return np.where(sizes > 0, gains.any(axis=1), np.nan)


def recall_per_user(slates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """|O ∩ T| / |T| over distinct items; NaN without targets. Float64 `[U]`."""
    gains, sizes = _gains(slates, targets)
    return np.where(sizes > 0, gains.sum(axis=1) / np.maximum(sizes, 1), np.nan)


def ndcg_per_user(slates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Normalised discounted cumulative gain, gains 0 or 1; NaN without targets. Float64 `[U]`.

    DCG = Σ_m gain_m / log2(m + 1), m from 1; the ideal slate of the same length holds min(M, |T|) targets in front.
    """
    gains, sizes = _gains(slates, targets)
    slots = gains.shape[1]
    discounts = 1.0 / np.log2(np.arange(2, slots + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(sizes, slots)]
    return np.where(sizes > 0, (gains @ discounts) / np.where(ideal > 0, ideal, 1.0), np.nan)


def hit(slates: np.ndarray, targets: np.ndarray) -> float:
    """Mean of [`hit_per_user`] over the users that have targets."""
    return mean_over_users(hit_per_user(slates, targets))


def recall(slates: np.ndarray, targets: np.ndarray) -> float:
    """Mean of [`recall_per_user`] over the users that have targets."""
    return mean_over_users(recall_per_user(slates, targets))


def ndcg(slates: np.ndarray, targets: np.ndarray) -> float:
    """Mean of [`ndcg_per_user`] over the users that have targets."""
    return mean_over_users(ndcg_per_user(slates, targets))


# ---- beyond accuracy


def diversity_per_user(slates: np.ndarray, embeddings: np.ndarray, chunk_size: int = 4096) -> np.ndarray:
    """Intra-list diversity: 1 - mean cosine over all pairs of legal slots. Float64 `[U]`.

    An item that stands twice is a pair of cosine 1. A zero vector has cosine 0 to everything. NaN for slates with
    fewer than two legal slots.

    Args:
        slates: int64 `[U, M]`.
        embeddings: float `[N, E]`, one row an item.
        chunk_size: users handled at a time; memory is `chunk_size * M * E`.
    """
    slates = _slates(slates, "slates")
    embeddings = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(norms > 0, norms, 1)
    result = np.full(len(slates), np.nan)
    for start in range(0, len(slates), chunk_size):
        rows = slates[start : start + chunk_size]
        legal = _legal(rows, len(embeddings))
        vectors = np.where(legal[:, :, None], units[np.where(legal, rows, 0)], 0).astype(np.float64)
        # Σ_{i≠j} <v_i, v_j> = |Σ v|² - Σ |v|²: no pairs are enumerated.
        cosines = (vectors.sum(axis=1) ** 2).sum(axis=1) - (vectors**2).sum(axis=(1, 2))
        pairs = legal.sum(axis=1) * (legal.sum(axis=1) - 1)
        result[start : start + chunk_size] = np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), np.nan)
    return result


def diversity(slates: np.ndarray, embeddings: np.ndarray) -> float:
    """Mean of [`diversity_per_user`] over the slates with two items or more."""
    return mean_over_users(diversity_per_user(slates, embeddings))


def category_diversity_per_user(slates: np.ndarray, categories: np.ndarray, chunk_size: int = 4096) -> np.ndarray:
    """Share of pairs of legal slots that have no category in common. Float64 `[U]`, NaN with fewer than two slots.

    Args:
        slates: int64 `[U, M]`.
        categories: bool `[N, C]`, one row an item; an item without category shares none, an item that stands twice
            is a pair that shares everything.
    """
    slates, categories = _slates(slates, "slates"), np.asarray(categories, dtype=bool)
    upper = np.triu(np.ones((slates.shape[1], slates.shape[1]), dtype=bool), k=1)
    result = np.full(len(slates), np.nan)
    for start in range(0, len(slates), chunk_size):
        rows = slates[start : start + chunk_size]
        legal = _legal(rows, len(categories))
        labels = categories[np.where(legal, rows, 0)].astype(np.float32)
        alike = (labels @ labels.transpose(0, 2, 1) > 0) | (rows[:, :, None] == rows[:, None, :])
        pair = legal[:, :, None] & legal[:, None, :] & upper
        count = pair.sum(axis=(1, 2))
        different = (pair & ~alike).sum(axis=(1, 2))
        result[start : start + chunk_size] = np.where(count > 0, different / np.maximum(count, 1), np.nan)
    return result


def category_diversity(slates: np.ndarray, categories: np.ndarray) -> float:
    """Mean of [`category_diversity_per_user`] over the slates with two items or more."""
    return mean_over_users(category_diversity_per_user(slates, categories))


def _legal(slates: np.ndarray, num_items: int, allowed: np.ndarray | None = None) -> np.ndarray:
    legal = (slates >= 0) & (slates < num_items)
    return legal if allowed is None else legal & np.asarray(allowed, dtype=bool)[np.where(legal, slates, 0)]


def coverage(slates: np.ndarray, num_items: int) -> float:
    """Share of the catalogue's N items that stand in at least one slate."""
    slates = _slates(slates, "slates")
    return len(np.unique(slates[_legal(slates, num_items)])) / num_items


def duplicates_per_user(slates: np.ndarray) -> np.ndarray:
    """Share of filled slots that repeat an item of an earlier slot. Float64 `[U]`, NaN for an empty slate."""
    slates = _slates(slates, "slates")
    filled = (slates >= 0).sum(axis=1)
    return np.where(filled > 0, 1 - _first_occurrences(slates).sum(axis=1) / np.maximum(filled, 1), np.nan)


def duplicates(slates: np.ndarray) -> float:
    """Mean of [`duplicates_per_user`] over the slates that are not empty."""
    return mean_over_users(duplicates_per_user(slates))


def validity_per_user(slates: np.ndarray, num_items: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Share of a slate's M slots that hold a legal item. Float64 `[U]`.

    Args:
        slates: int64 `[U, M]`; -1 where the semantic ID named no item, or where the slate is short.
        num_items: N, the catalogue's size.
        allowed: bool `[N]`, *optional*: items that may be recommended (removed ones may not).
    """
    slates = _slates(slates, "slates")
    return _legal(slates, num_items, allowed).mean(axis=1) if slates.shape[1] else np.full(len(slates), np.nan)


def validity(slates: np.ndarray, num_items: int, allowed: np.ndarray | None = None) -> float:
    """Mean of [`validity_per_user`]."""
    return mean_over_users(validity_per_user(slates, num_items, allowed))


def negative_share_per_user(slates: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Share of a slate's filled slots that hold an item the user disliked; lower is better. Float64 `[U]`.

    Args:
        slates: int64 `[U, M]`.
        negatives: int64 `[U, K]`, items the user gave negative feedback to (before the slate, or in what was held
            out), padded with -1. NaN for users with none.
    """
    slates, negatives = _slates(slates, "slates"), _slates(negatives, "negatives")
    if len(slates) != len(negatives):
        raise ValueError(f"{len(slates)} slates for {len(negatives)} rows of negatives: one row a user in both.")
    filled = slates >= 0
    disliked = filled & (slates[:, :, None] == negatives[:, None, :]).any(axis=2)
    known = filled.any(axis=1) & (negatives >= 0).any(axis=1)
    return np.where(known, disliked.sum(axis=1) / np.maximum(filled.sum(axis=1), 1), np.nan)


def negative_share(slates: np.ndarray, negatives: np.ndarray) -> float:
    """Mean of [`negative_share_per_user`] over the users with negative feedback."""
    return mean_over_users(negative_share_per_user(slates, negatives))
