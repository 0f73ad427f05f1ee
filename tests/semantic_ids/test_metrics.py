"""Tokenizer metrics against values computed by hand, and against plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.semantic_ids import (
    code_usage,
    collision_rate,
    concentration,
    consistency,
    multi_item_groups,
    prefix_cosine,
    prefix_groups,
    residual_norms,
    tokenizer_metrics,
)
from tests.test_modeling_crq_vae import identity_model

# Two groups of the prefix (0, 0) and (1, 2), and one item alone.
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 2, 0], [1, 2, 3], [2, 0, 0]])
CATEGORIES = [["a"], ["a", "b"], ["b"], ["c"], ["a", "d"], ["e"]]


def test_collision_by_hand():
    assert collision_rate(CODES) == pytest.approx(1 / 6)
    assert collision_rate(np.zeros((1, 3), dtype=np.int64)) == 0.0


def test_groups_by_hand():
    assert multi_item_groups(CODES) == 2
    assert np.bincount(prefix_groups(CODES)).tolist() == [3, 2, 1]
    assert prefix_groups(CODES, depth=0).tolist() == [0] * 6


def test_consistency_by_hand():
    # Pairs inside groups: (0,1) share a, (0,2) nothing, (1,2) share b, (3,4) nothing: 2 of 4.
    assert consistency(CODES, CATEGORIES) == pytest.approx(2 / 4)
    # First categories: a a b | c a: only (0,1).
    assert consistency(CODES, CATEGORIES, match="first") == pytest.approx(1 / 4)
    assert consistency(CODES, CATEGORIES, match="all") == 0.0


def test_consistency_leaves_unlabelled_items_out():
    assert consistency(CODES, [["a"], [], ["a"], ["c"], [], ["e"]]) == 1.0
    assert math.isnan(consistency(CODES, [[]] * 6))
    assert math.isnan(consistency(CODES[[0, 3, 5]], [["a"], ["b"], ["c"]]))


def test_consistency_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="match"):
        consistency(CODES, CATEGORIES, match="most")


def test_the_order_of_categories_counts_for_first_only():
    codes = np.array([[0, 0], [0, 1]])
    assert consistency(codes, [["a", "b"], ["b", "a"]], match="all") == 1.0
    assert consistency(codes, [["a", "b"], ["b", "a"]], match="first") == 0.0


def test_concentration_by_hand():
    # (0,0): a or b has 2 of 3; (1,2): 1 of 2; alone: 1 of 1.
    assert concentration(CODES, CATEGORIES) == pytest.approx(4 / 6)
    assert concentration(CODES, CATEGORIES, multi_item_only=True) == pytest.approx(3 / 5)
    assert math.isnan(concentration(CODES[[0, 3, 5]], [["a"], ["b"], ["c"]], multi_item_only=True))


def test_usage_and_perplexity_by_hand():
    usage, perplexity = code_usage(np.array([[0], [1], [2], [3]]), [8])
    assert usage == [0.5] and perplexity == pytest.approx([4.0])
    assert code_usage(np.zeros((5, 1), dtype=np.int64), [4])[1] == pytest.approx([1.0])


def test_prefix_cosine_by_hand():
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0]])
    vectors = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert prefix_cosine(codes, vectors) == pytest.approx(1 / 3)
    assert math.isnan(prefix_cosine(codes[[0, 3]], vectors[[0, 3]]))


def test_residual_norms_by_hand():
    model = identity_model([[2.0], [10.0]], [[0.5], [10.0]])
    # 3 leaves 1, then 0.5; 11 leaves 1, then 0.5; the mean norm of the inputs is 7.
    assert residual_norms(model, torch.tensor([[3.0], [11.0]])) == pytest.approx([1 / 7, 0.5 / 7])


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=20), st.data()
)
def test_consistency_equals_a_loop_over_pairs(rows, data):
    codes = np.array(rows)
    labels = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)
    categories = data.draw(st.lists(labels, min_size=len(rows), max_size=len(rows)))
    pairs = [
        (i, j) for i, j in itertools.combinations(range(len(rows)), 2) if tuple(codes[i, :2]) == tuple(codes[j, :2])
    ]
    found = consistency(codes, categories)
    if not pairs:
        assert math.isnan(found)
    else:
        shared = sum(bool(set(categories[i]) & set(categories[j])) for i, j in pairs)
        assert found == pytest.approx(shared / len(pairs))


def test_all_of_them_under_flat_names():
    found = tokenizer_metrics(CODES, [3, 3, 4], categories=CATEGORIES, embeddings=np.eye(6))
    assert found["collision"] == pytest.approx(1 / 6)
    assert found["prefix_pairs"] == 4 and found["multi_item_prefixes"] == 2
    # Of the 15 pairs of the catalogue (0,1), (0,4), (1,2), (1,4) share a category.
    assert found["consistency_chance"] == pytest.approx(4 / 15)
    assert found["usage_1"] == 1.0 and found["usage_3"] == 0.75
    assert "consistency" not in tokenizer_metrics(CODES, [3, 3, 4])
