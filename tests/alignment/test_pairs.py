from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.alignment.pairs import NoPair, Window, cut_windows, reject_diversity, reject_interest, reject_ranking


def window(feedback: list[float], items: list[int] | None = None) -> Window:
    return Window(np.array(items or range(len(feedback))), np.array(feedback, dtype=float), start=7)


def test_a_slate_is_ordered_by_feedback_and_ties_by_time():
    items, feedback = np.array([9, 8, 7, 6, 5, 4]), np.array([1.0, 3, 5, 3, np.nan, 5])
    (found,) = cut_windows(items, feedback, np.ones(6, dtype=bool), 5, 1)
    assert found.items.tolist() == [7, 4, 8, 6, 5], "unknown feedback comes last"
    assert found.start == 1


def test_windows_do_not_overlap_and_skip_what_may_not_stand_in_them():
    items = np.array([1, 2, 3, 4, 5, 6, 7])
    positive = np.array([1, 1, 0, 1, 1, 0, 1], dtype=bool)
    found = cut_windows(items, np.zeros(7), positive, 2, 5)
    assert [(row.items.tolist(), row.start) for row in found] == [([5, 7], 4), ([2, 4], 1)]


def test_a_repeated_item_counts_by_its_latest_event():
    (found,) = cut_windows(np.array([2, 1, 3, 1]), np.array([5.0, 5, 1, 2]), np.ones(4, dtype=bool), 3, 1)
    assert found.items.tolist() == [2, 1, 3] and found.feedback.tolist() == [5, 2, 1]
    assert cut_windows(np.array([1, 1, 1]), np.zeros(3), np.ones(3, dtype=bool), 2, 1) == []


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=6).map(lambda v: sorted(v, reverse=True)),
    st.integers(0, 99),
    st.sampled_from(["random", "swap", "reverse"]),
)
def test_a_permutation_contradicts_the_feedback(feedback, seed, permutation):
    slate = window(feedback)
    generator = np.random.default_rng(seed)
    if len(set(feedback)) == 1:
        with pytest.raises(NoPair, match="all feedback equal"):
            reject_ranking(slate, generator, permutation)
        return
    rejected = reject_ranking(slate, generator, permutation)
    assert sorted(rejected) == sorted(slate.items)
    assert slate.feedback[rejected].tolist() != feedback  # items are their own places here
    if permutation == "swap":
        assert (rejected != slate.items).sum() == 2


def test_disliked_items_take_places_in_their_order():
    slate = window([5, 4, 3], items=[1, 2, 3])
    rejected = reject_interest(slate, np.array([8, 2, 9]), np.random.default_rng(0))
    places = np.flatnonzero(rejected != slate.items)
    assert len(places) == 2, "2 stands in the slate, so two negatives are left"
    assert rejected[places].tolist() == [8, 9]
    one = reject_interest(slate, np.array([8, 9]), np.random.default_rng(0), swaps=1)
    assert (one != slate.items).sum() == 1 and 8 in one
    with pytest.raises(NoPair, match="no negative feedback"):
        reject_interest(slate, np.array([1, 3]), np.random.default_rng(0))


def test_similar_negatives_replace_what_they_resemble():
    vectors = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    slate = window([5, 4, 3], items=[0, 1, 2])
    rejected = reject_interest(slate, np.array([5, 3, 4]), np.random.default_rng(0), vectors=vectors)
    assert rejected.tolist() == [3, 4, 5]


def test_look_alikes_of_the_anchor():
    angle = np.linspace(0, 1.5, 8)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    slate = window([5, 4, 3], items=[0, 7, 2])
    allowed = np.ones(8, dtype=bool)
    allowed[3] = False
    assert reject_diversity(slate, np.array([1]), vectors, allowed).tolist() == [0, 4, 5]
    assert reject_diversity(slate, np.array([1]), vectors, allowed, skip=1).tolist() == [0, 5, 6]
    with pytest.raises(NoPair, match="too few items"):
        reject_diversity(slate, np.array([1, 4, 5]), vectors, allowed)
