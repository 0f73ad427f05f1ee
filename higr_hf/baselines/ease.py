"""EASE: a linear item-item model in closed form (Steck, "Embarrassingly Shallow Autoencoders", WWW 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import scipy.sparse

from ..data.embeddings import training_sequences
from .base import Arrays, ScoringBaseline, check_rows

if TYPE_CHECKING:
    from datasets import Dataset


class EASE(ScoringBaseline):
    r"""Scores an item by the items of the history: x·B with B = I − P·diag(1/P), P = (XᵀX + λI)⁻¹, diag(B) = 0.

    X is the binary matrix of users and items of the training split. P is dense, so the catalogue's size is what costs:
    `max_items` keeps the most frequent ones, and the others cannot be recommended.

    Args:
        item_ids: the catalogue; the place in it is the item index.
        l2: λ.
        max_items: how many items may have weights; all by default.
        max_gigabytes: refuse to start where the closed form would need more memory.

    Raises:
        ValueError: for settings that cannot work, and in `fit` for a catalogue that does not fit the memory.

    Example:
        >>> ease = EASE(log.item_ids, l2=10.0).fit(splits["train"])
        >>> ease.recommend([[0, 1]], slate_size=2, exclude=[[0, 1]]).shape
        (1, 2)
    """

    kind = "ease"

    def __init__(
        self,
        item_ids: Sequence[str],
        *,
        l2: float = 300.0,
        max_items: int | None = None,
        max_gigabytes: float = 8.0,
    ) -> None:
        super().__init__(item_ids, l2=l2, max_items=max_items, max_gigabytes=max_gigabytes)
        if not l2 > 0:
            raise ValueError(f"l2 must be positive, got {l2}: without it the Gram matrix need not be invertible.")
        if max_items is not None and max_items < 1:
            raise ValueError(f"max_items must be at least 1, got {max_items}.")
        self.l2, self.max_gigabytes = l2, max_gigabytes
        size = self.num_items if max_items is None else min(max_items, self.num_items)
        self.kept = np.arange(size)
        self.weights = np.zeros((size, size), dtype=np.float32)

    def fit(self, train: Dataset, validation: Dataset | None = None) -> EASE:
        """Invert the Gram matrix of the training histories."""
        size = len(self.kept)
        # The Gram matrix, its factor and the float32 weights stand side by side.
        needed = size**2 * (8 + 8 + 4) / 2**30
        if needed > self.max_gigabytes:
            fits = int((self.max_gigabytes * 2**30 / 20) ** 0.5)
            raise ValueError(
                f"EASE over {size} items needs about {needed:.1f} GiB, more than max_gigabytes={self.max_gigabytes}: "
                f"keep the {fits} most frequent items with max_items={fits}, or allow more memory."
            )
        events, lengths = training_sequences(train, self.item_ids)
        counts = np.bincount(events, minlength=self.num_items)
        self.kept = np.sort(np.argsort(-counts, kind="stable")[:size])
        inputs = self._matrix(np.split(events, np.cumsum(lengths)[:-1]))
        gram = (inputs.T @ inputs).toarray()
        gram[np.diag_indices(size)] += self.l2
        inverse = _inverse(gram)
        scale = -1.0 / np.diag(inverse)
        inverse *= scale  # columns, as in the paper's B_ij = −P_ij / P_jj
        np.fill_diagonal(inverse, 0.0)
        self.weights = inverse.astype(np.float32)
        return self

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """x·B; see [`ScoringBaseline.scores`]."""
        found = self._matrix(histories).astype(np.float32) @ self.weights
        if len(self.kept) == self.num_items:
            return found
        scores = np.full((len(histories), self.num_items), -np.inf, dtype=np.float32)
        scores[:, self.kept] = found
        return scores

    def num_parameters(self) -> int:
        """Weights off the diagonal."""
        return len(self.kept) * (len(self.kept) - 1)

    def arrays(self) -> Arrays:
        """`kept`, int64 `[n]` item indices, and `weights`, float32 `[n, n]`."""
        return {"kept": self.kept, "weights": self.weights}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take up the weights."""
        size = len(self.kept)
        check_rows(self, arrays, kept=(size,), weights=(size, size))
        self.kept, self.weights = arrays["kept"], arrays["weights"]

    def _matrix(self, histories: Sequence[np.ndarray]) -> scipy.sparse.csr_matrix:
        """Histories over the kept items as a binary matrix, float64 `[U, n]`."""
        place = np.full(self.num_items, -1, dtype=np.int64)
        place[self.kept] = np.arange(len(self.kept))
        rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
        columns = place[np.concatenate([np.asarray(items, dtype=np.int64) for items in [[], *histories]])]
        known = columns >= 0
        shape = (len(histories), len(self.kept))
        matrix = scipy.sparse.csr_matrix((np.ones(known.sum()), (rows[known], columns[known])), shape)
        matrix.data[:] = 1.0  # duplicates were summed: an item had twice is an item had
        return matrix


def _inverse(gram: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric positive definite matrix `[n, n]`, in its own memory."""
    lapack = scipy.linalg.get_lapack_funcs
    factorise, invert = lapack(("potrf", "potri"), (gram,))
    factor, failed = factorise(gram, lower=False, overwrite_a=True)
    inverse, failed_too = invert(factor, lower=False, overwrite_c=True)
    if failed or failed_too:
        raise ValueError("The regularised Gram matrix is not positive definite in float64: raise l2.")
    return np.triu(inverse) + np.triu(inverse, 1).T
