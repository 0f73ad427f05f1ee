"""Positives of the contrastive loss: who is near, and who occurs together."""

from __future__ import annotations

import numpy as np
import pytest

from higr_hf.semantic_ids import cooccurrence_neighbours, cosine_neighbours, merge_positives


def test_cosine_neighbours_equal_brute_force():
    x = np.random.default_rng(0).normal(size=(40, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    table = cosine_neighbours(x, threshold=0.6, max_neighbours=4)
    for row in range(40):
        near = [int(j) for j in np.argsort(-cosines[row]) if cosines[row, j] >= 0.6][:4]
        assert table[row].tolist() == near + [-1] * (4 - len(near))


def test_the_nearest_are_kept_below_the_threshold_on_demand():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    assert (cosine_neighbours(x) == -1).all()
    assert cosine_neighbours(x, min_neighbours=1)[:, 0].tolist() == [1, 2, 1]


def test_identical_and_zero_items():
    table = cosine_neighbours(np.array([[1.0], [1.0], [0.0]]), max_neighbours=2)
    assert table.tolist() == [[1, -1], [0, -1], [-1, -1]]


def test_a_catalogue_of_one_item_has_no_neighbours():
    assert cosine_neighbours(np.ones((1, 3)), max_neighbours=2, min_neighbours=2).tolist() == [[-1, -1]]


def test_cooccurrence_by_hand():
    index = {"a": 0, "b": 1, "c": 2}
    histories = [["a", "b", "c"], ["a", "b"], ["b", "a", "unknown"]]
    # Side by side: a-b three times, b-c once. a-b: 3 / sqrt(3 * 3); b-c: 1 / sqrt(3 * 1).
    table = cooccurrence_neighbours(histories, index, window=1, min_count=1, max_neighbours=2)
    assert table.tolist() == [[1, -1], [0, 2], [1, -1]]
    assert cooccurrence_neighbours(histories, index, window=1, min_count=2)[2].max() == -1
    assert cooccurrence_neighbours(histories, index, window=2, min_count=1, max_neighbours=2)[0].tolist() == [1, 2]


def test_repeats_make_no_item_its_own_neighbour():
    assert cooccurrence_neighbours([["a", "a", "a"]], {"a": 0}, min_count=1).max() == -1


def test_no_histories_give_no_neighbours():
    assert cooccurrence_neighbours([], {"a": 0, "b": 1}, max_neighbours=3).tolist() == [[-1] * 3] * 2


def test_merging_checks_the_tables():
    merged = merge_positives(np.array([[1], [0]]), np.array([[-1, -1], [0, -1]]))
    assert merged.tolist() == [[1, -1, -1], [0, 0, -1]]
    with pytest.raises(ValueError, match="item indices"):
        merge_positives(np.array([[2], [0]]))
    with pytest.raises(ValueError, match=r"\[2, P\]"):
        merge_positives(np.array([[1], [0]]), np.array([[1]]))
