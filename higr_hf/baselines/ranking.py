"""From scores to slates. NumPy alone: the worker of another environment loads this file by its path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def top_items(scores: np.ndarray, slate_size: int, exclude: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """The best items of every user that are not excluded, best first; equal scores in the catalogue's order.

    Args:
        scores: float `[U, N]`; items at -inf cannot be recommended, NaN is refused.
        slate_size: M.
        exclude: item indices each user may not get.

    Returns:
        int64 `[U, M]` item indices, -1 where a user has nothing left.

    Raises:
        ValueError: for scores that are NaN.

    Example:
        >>> top_items(np.array([[0.1, 0.3, 0.2], [0.5, 0.5, 0.0]]), 2, exclude=[[1], []]).tolist()
        [[2, 0], [0, 1]]
    """
    scores = np.array(scores, dtype=np.float32)
    if np.isnan(scores).any():
        row, item = np.argwhere(np.isnan(scores))[0].tolist()
        raise ValueError(f"The score of item {item} for user row {row} is NaN: the model has diverged.")
    if exclude is not None:
        for row, items in enumerate(exclude):
            scores[row, np.asarray(items, dtype=np.int64)] = -np.inf
    width = min(slate_size, scores.shape[1])
    slates = np.full((len(scores), slate_size), -1, dtype=np.int64)
    if not width:
        return slates
    # What is above the M-th best score is in for sure; among its equals the first of the catalogue are.
    edge = -np.partition(-scores, width - 1, axis=1)[:, width - 1]
    for row, (values, least) in enumerate(zip(scores, edge, strict=True)):
        kept = np.flatnonzero((values >= least) & (values > -np.inf))
        best = kept[np.argsort(-values[kept], kind="stable")][:width]
        slates[row, : len(best)] = best
    return slates
