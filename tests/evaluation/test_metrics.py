"""Every slate metric against values worked out by hand, and against slow loops on random slates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf.evaluation import metrics

# Four users: two hits with a repeated slot, no hit, no targets, targets that repeat and are fewer than the slots.
SLATES = np.array([[3, 1, 3, 7], [5, 6, -1, -1], [0, 1, 2, 3], [9, 4, 8, 4]])
TARGETS = np.array([[1, 3, 5], [1, 2, 3], [-1, -1, -1], [4, 4, -1]])
NAN = math.nan


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_hit_by_hand():
    close(metrics.hit_per_user(SLATES, TARGETS), [1, 0, NAN, 1])
    close(metrics.hit(SLATES, TARGETS), 2 / 3)


def test_recall_by_hand():
    close(metrics.recall_per_user(SLATES, TARGETS), [2 / 3, 0, NAN, 1])
    close(metrics.recall(SLATES, TARGETS), (2 / 3 + 0 + 1) / 3)


def test_ndcg_by_hand():
    # User 0: gains 1 1 0 0 of an ideal 1 1 1; user 3: gain in slot 2 only, one distinct target.
    first = (1 + 1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)
    close(metrics.ndcg_per_user(SLATES, TARGETS), [first, 0, NAN, 1 / math.log2(3)])
    close(metrics.ndcg(SLATES, TARGETS), (first + 1 / math.log2(3)) / 3)


def test_more_targets_than_slots_still_reach_one():
    close(metrics.ndcg([[1, 2]], [[2, 1, 3]]), 1.0)
    close(metrics.recall([[1, 2]], [[2, 1, 3]]), 2 / 3)


def test_views_narrow_the_targets():
    views = np.array([[True, False, False], [True, True, True], [True, True, True], [False, False, False]])
    viewed = metrics.keep_views(TARGETS, views)
    assert viewed.tolist() == [[1, -1, -1], [1, 2, 3], [-1, -1, -1], [-1, -1, -1]]
    close(metrics.recall_per_user(SLATES, viewed), [1, 0, NAN, NAN])
    close(metrics.ndcg_per_user(SLATES, viewed), [1 / math.log2(3), 0, NAN, NAN])
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        metrics.keep_views(TARGETS, views[:2])


def test_no_user_with_targets_is_nan_and_empty_input_runs():
    assert math.isnan(metrics.hit(SLATES[2:3], TARGETS[2:3]))
    assert math.isnan(metrics.ndcg(np.zeros((0, 5), dtype=int), np.zeros((0, 5), dtype=int)))
    assert metrics.ndcg(np.zeros((1, 0), dtype=int), np.array([[1]])) == 0


def test_diversity_by_hand():
    embeddings = np.array([[1.0, 0], [2, 0], [0, 3], [-1, 0], [0, 0]])
    slates = np.array([[0, 1, 2], [0, 3, -1], [0, 0, -1], [2, -1, -1], [0, 4, -1]])
    # Cosines of user 0: 1, 0, 0; then -1; then an item twice; one item only; a zero vector.
    close(metrics.diversity_per_user(slates, embeddings), [2 / 3, 2, 0, NAN, 1])
    close(metrics.diversity(slates, embeddings), (2 / 3 + 2 + 0 + 1) / 4)


def test_category_diversity_by_hand():
    categories = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    slates = np.array([[0, 1, 2], [2, 3, -1], [3, 3, -1], [1, -1, -1]])
    close(metrics.category_diversity_per_user(slates, categories), [2 / 3, 1, 0, NAN])
    close(metrics.category_diversity(slates, categories), (2 / 3 + 1 + 0) / 3)


def test_coverage_duplicates_and_validity_by_hand():
    assert metrics.coverage(SLATES, 20) == 10 / 20
    assert metrics.coverage(SLATES, 5) == 5 / 5
    close(metrics.duplicates_per_user(np.vstack([SLATES, [[-1] * 4]])), [1 / 4, 0, 0, 1 / 4, NAN])
    close(metrics.duplicates(SLATES), 1 / 8)
    close(metrics.validity_per_user(SLATES, 9), [1, 0.5, 1, 3 / 4])
    allowed = np.ones(9, dtype=bool)
    allowed[3] = False
    close(metrics.validity_per_user(SLATES, 9, allowed), [0.5, 0.5, 3 / 4, 3 / 4])
    close(metrics.validity(SLATES, 10), 3.5 / 4)


def test_negative_share_by_hand():
    negatives = np.array([[3, 9], [5, -1], [-1, -1], [1, 2]])
    close(metrics.negative_share_per_user(SLATES, negatives), [0.5, 0.5, NAN, 0])
    close(metrics.negative_share(SLATES, negatives), 1 / 3)


@pytest.mark.parametrize(
    ("slates", "targets", "message"),
    [
        ([1, 2], [[1]], r"slates has shape \(2,\)"),
        ([[1.0]], [[1]], "slates holds float64"),
        ([[1]], [[1], [2]], "1 slates for 2 targets"),
    ],
)
def test_bad_arrays_are_refused(slates, targets, message):
    with pytest.raises(ValueError, match=message):
        metrics.hit_per_user(np.array(slates), np.array(targets))


def slate_rows(width, users):
    return st.lists(st.lists(st.integers(-1, 6), min_size=width, max_size=width), min_size=users, max_size=users)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ranking_metrics_agree_with_plain_loops(data):
    users, slots, size = (data.draw(st.integers(1, 4)) for _ in range(3))
    slates, targets = data.draw(slate_rows(slots, users)), data.draw(slate_rows(size, users))
    for row, (slate, target) in enumerate(zip(slates, targets, strict=True)):
        wanted = {item for item in target if item >= 0}
        seen, dcg = set(), 0.0
        for slot, item in enumerate(slate):
            if item in wanted and item not in seen:
                seen.add(item)
                dcg += 1 / math.log2(slot + 2)
        ideal = sum(1 / math.log2(slot + 2) for slot in range(min(slots, len(wanted))))
        expected = [bool(seen), len(seen) / len(wanted), dcg / ideal] if wanted else [NAN] * 3
        functions = (metrics.hit_per_user, metrics.recall_per_user, metrics.ndcg_per_user)
        close([function(slates, targets)[row] for function in functions], expected)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_diversity_agrees_with_pairs(data):
    slates = np.array(data.draw(slate_rows(4, 3)))
    embeddings = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    result = metrics.diversity_per_user(slates, embeddings, chunk_size=2)
    for slate, value in zip(slates, result, strict=True):
        items = [item for item in slate if item >= 0]
        pairs = [units[a] @ units[b] for i, a in enumerate(items) for b in items[i + 1 :]]
        np.testing.assert_allclose(value, 1 - np.mean(pairs) if pairs else NAN, atol=1e-5)
