"""How a rejected slate is made from a chosen one: the objectives, as plain functions over item indices.

A slate is an int64 array `[M]` of item indices. Every function returns the rejected slate, or raises [`NoPair`] with
the reason why this slate has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANKING, INTEREST, DIVERSITY = "ranking", "interest", "diversity"
OBJECTIVES = (RANKING, INTEREST, DIVERSITY)
"""HiGR's three, each a function below."""
ON_POLICY = "on_policy"
"""Ours: the rejected slate is what the starting model recommends, which takes a model instead of a function."""
ALL_OBJECTIVES = (*OBJECTIVES, ON_POLICY)
PERMUTATIONS = ("random", "swap", "reverse")
NEGATIVE_CHOICES = ("random", "similar")


class NoPair(ValueError):
    """A slate that gives no pair for an objective; the message is the reason, short enough to be counted by."""


@dataclass(frozen=True)
class Window:
    """A run of a user's events that becomes a chosen slate.

    Attributes:
        items: int64 `[M]`, distinct, by descending feedback; equal feedback keeps the order of time.
        feedback: float64 `[M]`, descending; unknown feedback is -inf.
        start: position of its earliest event in the user's sequence: all before it is history.
    """

    items: np.ndarray
    feedback: np.ndarray
    start: int


def cut_windows(
    items: np.ndarray, feedback: np.ndarray, positive: np.ndarray, slate_size: int, count: int
) -> list[Window]:
    """The newest `count` slates of a sequence, newest first, none overlapping another.

    Args:
        items: int64 `[n]`, oldest first.
        feedback: float64 `[n]`, NaN where unknown.
        positive: bool `[n]`, events that may stand in a slate.
        slate_size: M, distinct items a slate; a repeated item counts by its latest event.
        count: how many slates are wanted.

    Returns:
        As many as the sequence holds, perhaps none.

    Example:
        >>> (window,) = cut_windows(np.arange(4), np.array([5.0, 3, 4, 3]), np.ones(4, bool), 3, 1)
        >>> window.items.tolist(), window.start
        ([2, 1, 3], 1)
    """
    windows: list[Window] = []
    chosen: dict[int, int] = {}  # item -> position of its latest event
    for position in range(len(items) - 1, -1, -1):
        if len(windows) == count:
            break
        if not positive[position] or int(items[position]) in chosen:
            continue
        chosen[int(items[position])] = position
        if len(chosen) == slate_size:
            place = np.sort(np.fromiter(chosen.values(), np.int64))
            score = np.where(np.isnan(feedback[place]), -np.inf, feedback[place])
            order = np.argsort(-score, kind="stable")
            windows.append(Window(items[place][order], score[order], position))
            chosen = {}
    return windows


def reject_ranking(window: Window, generator: np.random.Generator, permutation: str = "random") -> np.ndarray:
    """The same items in an order that contradicts their feedback.

    The identity is never returned, nor any permutation that only moves items of equal feedback: it would be as good.

    Args:
        window: the chosen slate.
        generator: source of randomness.
        permutation: `random`, `swap` (two items of different feedback trade places: the hardest to tell) or `reverse`
            (ascending feedback: the easiest).
    """
    if window.feedback.min() == window.feedback.max():
        raise NoPair("all feedback equal")
    if permutation == "reverse":
        return window.items[::-1].copy()
    size = len(window.items)
    if permutation == "random":
        for _ in range(16):
            order = generator.permutation(size)
            if (window.feedback[order] != window.feedback).any():
                return window.items[order]
    first, second = np.nonzero(window.feedback[:, None] > window.feedback[None, :])
    pick = int(generator.integers(len(first)))
    rejected = window.items.copy()
    rejected[[first[pick], second[pick]]] = rejected[[second[pick], first[pick]]]
    return rejected


def reject_interest(
    window: Window,
    negatives: np.ndarray,
    generator: np.random.Generator,
    *,
    swaps: int | None = None,
    vectors: np.ndarray | None = None,
) -> np.ndarray:
    """The chosen slate with items replaced by ones that this user gave negative feedback to.

    Args:
        window: the chosen slate.
        negatives: int64 `[n]`, distinct, the most wanted first; those of the chosen slate are left out here.
        generator: draws the places that are replaced when not all are.
        swaps: items replaced at most, `None` for all M. Fewer make a pair that is harder to tell apart.
        vectors: float `[N, E]`, unit rows; given, a place gets the negative most similar to what it held.
    """
    negatives = negatives[~np.isin(negatives, window.items)]
    if not len(negatives):
        raise NoPair("no negative feedback outside the slate")
    size = len(window.items)
    number = min(size if swaps is None else swaps, size, len(negatives))
    places = np.sort(generator.permutation(size)[:number])
    rejected = window.items.copy()
    if vectors is None:
        rejected[places] = negatives[:number]
        return rejected
    similarity = vectors[window.items[places]] @ vectors[negatives].T
    for row, place in enumerate(places):
        best = int(similarity[row].argmax())
        rejected[place] = negatives[best]
        similarity[:, best] = -np.inf
    return rejected


def reject_diversity(
    window: Window, history: np.ndarray, vectors: np.ndarray, allowed: np.ndarray, skip: int = 0
) -> np.ndarray:
    """The chosen slate's first item, followed by the M - 1 items most similar to it: a repetitive slate.

    Items of the history and of the chosen slate are left out: the first are no recommendation, the second are liked.

    Args:
        window: the chosen slate.
        history: int64 `[H]`, items that may not appear.
        vectors: float `[N, E]`, unit rows.
        allowed: bool `[N]`, items that may be recommended.
        skip: nearest neighbours that are passed over. More make the slate less repetitive, the pair harder.
    """
    anchor, size = int(window.items[0]), len(window.items)
    similarity = np.where(allowed, vectors @ vectors[anchor], -np.inf)
    similarity[history] = -np.inf
    similarity[window.items] = -np.inf
    candidates = np.flatnonzero(np.isfinite(similarity))
    if len(candidates) < size - 1 + skip:
        raise NoPair("too few items outside the history")
    if size == 1:
        raise NoPair("a slate of one item")
    order = candidates[np.argsort(-similarity[candidates], kind="stable")]
    return np.concatenate([[anchor], order[skip : skip + size - 1]]).astype(np.int64)
