from __future__ import annotations

import numpy as np
import pytest

from higr_hf.baselines import EASE, Baseline

from .test_popularity import rows

ITEMS = ["a", "b", "c", "d"]
TRAIN = rows(["a", "b"], ["a", "b", "b"], ["b", "c"], ["a", "c", "d"])


def test_the_weights_are_the_papers_worked_out_by_hand():
    """Two items, two users: X = [[1, 1], [1, 0]], XᵀX + I = [[3, 1], [1, 2]], P = [[2, -1], [-1, 3]] / 5.

    B_ij = -P_ij / P_jj: B_01 = 1/3, B_10 = 1/2.
    """
    ease = EASE(["a", "b"], l2=1.0).fit(rows(["a", "b"], ["a"]))
    np.testing.assert_allclose(ease.weights, [[0, 1 / 3], [1 / 2, 0]], rtol=1e-6)


def test_the_weights_minimise_the_papers_objective():
    """The Lagrangian's gradient, (XᵀX + λI) B - XᵀX, may only differ from 0 on the diagonal."""
    ease = EASE(ITEMS, l2=0.7).fit(TRAIN)
    x = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]], dtype=np.float64)
    gram = x.T @ x
    gradient = (gram + 0.7 * np.eye(4)) @ ease.weights - gram
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-5)
    np.testing.assert_array_equal(np.diag(ease.weights), 0)


def test_a_history_is_a_set():
    ease = EASE(ITEMS, l2=1.0).fit(TRAIN)
    once, twice = ease.scores([np.array([0, 1]), np.array([1, 0, 0])])
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(once, ease.weights[0] + ease.weights[1], rtol=1e-6)


def test_rare_items_beyond_the_limit_are_never_recommended():
    ease = EASE(ITEMS, l2=1.0, max_items=2).fit(TRAIN)  # b four times, a three times
    assert ease.kept.tolist() == [0, 1]
    assert ease.recommend([[0], [2]], slate_size=3).tolist() == [[1, 0, -1], [0, 1, -1]]
    assert ease.num_parameters() == 2


def test_a_catalogue_too_large_for_the_memory_is_refused_with_what_would_fit():
    with pytest.raises(ValueError, match="max_items=2317"):
        EASE([f"i{number}" for number in range(5000)], max_gigabytes=0.1).fit(TRAIN)


@pytest.mark.parametrize("options", [{"l2": 0.0}, {"max_items": 0}])
def test_settings_that_cannot_work(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EASE(ITEMS, **options)


def test_it_loads_again_with_the_same_scores(tmp_path):
    ease = EASE(ITEMS, l2=2.0, max_items=3).fit(TRAIN)
    loaded = Baseline.from_pretrained(ease.save_pretrained(tmp_path / "ease"))
    assert loaded.settings == ease.settings
    np.testing.assert_array_equal(loaded.scores([[0, 1]]), ease.scores([[0, 1]]))
