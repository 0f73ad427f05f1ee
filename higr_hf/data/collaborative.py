"""Item vectors from who follows whom in the training histories.

Co-occurrences within a window of a history become positive pointwise mutual information, and its leading eigenvectors
the vectors (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", 2014). Chosen over a
truncated SVD of the degree-normalised user-item matrix by a measurement on the MovieLens-1M validation slates, 64
dimensions: scoring by the mean cosine to the last five events plus log popularity, recall@20 was .265 against .242,
and 90 % against 84 % of an item's ten neighbours shared a genre with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from .errors import DataError

WINDOW = 10  # events either side; 3 and 5 measured lower
SMOOTHING = 0.75  # exponent of the context distribution: rare contexts would otherwise dominate the PMI
_DENSE = 512  # below so many items a full eigendecomposition is faster than an iterative one, and always defined


def collaborative_embeddings(
    items: np.ndarray, lengths: np.ndarray, *, num_items: int, dim: int = 64, window: int = WINDOW
) -> np.ndarray:
    """Vectors from the training histories. Deterministic: fixed start vector, fixed signs.

    Args:
        items: int64 `[events]`, item indices of all histories, one after the other, each oldest first.
        lengths: int64 `[users]`, events of each history.
        num_items: N.
        dim: size of the vectors; at most N of them carry anything.
        window: how many events apart two items of a history still count as occurring together.

    Returns:
        float32 `[N, min(dim, N)]`; the row of an item without co-occurrence is zero.

    Raises:
        DataError: no two items occur together, or `dim` or `window` is below 1.

    Example:
        >>> vectors = collaborative_embeddings(np.array([0, 1, 0, 1, 2, 3]), np.array([2, 2, 2]), num_items=4, dim=2)
        >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        True
    """
    if dim < 1 or window < 1:
        raise DataError(f"dim and window must be at least 1, got {dim} and {window}")
    information = positive_mutual_information(co_occurrence(items, lengths, num_items=num_items, window=window))
    if not information.nnz:
        raise DataError("no two different items occur together in the training histories: use kind='text'")
    width = min(dim, num_items)
    if num_items <= max(_DENSE, dim + 1):
        values, vectors = scipy.linalg.eigh(information.toarray(), subset_by_index=(num_items - width, num_items - 1))
    else:
        start = np.random.default_rng(0).standard_normal(num_items)
        values, vectors = scipy.sparse.linalg.eigsh(information, width, which="LA", v0=start)
    order = np.argsort(-values, kind="stable")
    values, vectors = values[order], vectors[:, order]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    vectors = vectors * signs * np.sqrt(np.maximum(values, 0))
    vectors[np.asarray(information.sum(axis=1)).ravel() == 0] = 0  # exactly, not up to rounding
    return vectors.astype(np.float32)


def co_occurrence(items: np.ndarray, lengths: np.ndarray, *, num_items: int, window: int) -> scipy.sparse.csr_matrix:
    """Symmetric counts `[N, N]`: how often two different items stand at most `window` events apart in a history."""
    user = np.repeat(np.arange(len(lengths)), lengths)
    shape = (num_items, num_items)
    counts = scipy.sparse.csr_matrix(shape, dtype=np.float64)
    for distance in range(1, min(window, max(int(lengths.max(initial=1)) - 1, 0)) + 1):
        first, second = items[:-distance], items[distance:]
        together = (user[:-distance] == user[distance:]) & (first != second)
        pairs = (first[together], second[together])
        counts = counts + scipy.sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape)
    return (counts + counts.T).tocsr()


def positive_mutual_information(counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """`max(0, log p(i, j) / (p(i) p(j)^0.75))`, made symmetric."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    context = totals**SMOOTHING
    context /= max(context.sum(), 1e-12)
    entries = counts.tocoo()
    values = np.log(entries.data / (totals[entries.row] * context[entries.col]))
    matrix = scipy.sparse.csr_matrix((np.maximum(values, 0), (entries.row, entries.col)), counts.shape)
    matrix.eliminate_zeros()
    return ((matrix + matrix.T) / 2).tocsr()


def fill_cold(vectors: np.ndarray, categories: Sequence[Sequence[str]]) -> np.ndarray:
    """Give every all-zero row the mean direction of the seen items that share a category with it.

    Where no seen item does, it gets the mean of all seen items. Two cold items of the same categories stay identical:
    nothing in the log tells them apart, and the semantic IDs' collision rule takes over.

    Args:
        vectors: float32 `[N, E]`, zero rows being the cold items.
        categories: N lists of category names.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = norms[:, 0] > 0
    if seen.all() or not seen.any():
        return vectors
    unit = vectors / np.where(norms > 0, norms, 1)
    members: dict[str, list[int]] = {}
    for row in np.flatnonzero(seen):
        for name in categories[row]:
            members.setdefault(name, []).append(row)
    means = {name: unit[rows].mean(axis=0) for name, rows in members.items()}
    overall = unit[seen].mean(axis=0)
    filled = vectors.copy()
    for row in np.flatnonzero(~seen):
        known = [means[name] for name in categories[row] if name in means]
        filled[row] = np.mean(known, axis=0) if known else overall
    return filled
