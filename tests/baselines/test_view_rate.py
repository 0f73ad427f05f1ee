"""How often an item's exposures become views, by hand, alone and beside another baseline."""

from __future__ import annotations

import math

import pytest
from datasets import Dataset

from higr_hf.baselines import Baseline, ItemItem, Mixture, ViewRate

ITEMS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def train() -> Dataset:
    """a was viewed once in four, b three times in four, c never in two; nobody was shown d."""
    return Dataset.from_dict(
        {
            "user_id": ["u", "v"],
            "history_item_ids": [["a", "b", "a", "b", "c"], ["b", "a"]],
            "history_views": [[True, True, False, True, False], [False, False]],
            "target_item_ids": [[], ["c", "a", "b"]],
            "target_views": [[], [False, False, True]],
        }
    )


def test_scores_are_the_smoothed_rate_over_that_of_all_items(train):
    (scores,) = ViewRate(ITEMS, smoothing=2.0).fit(train).scores([[0]])
    share = 4 / 10
    by_hand = [math.log((v + 2 * share) / (n + 2) / share) for v, n in ((1, 4), (3, 4), (0, 2), (0, 0))]
    assert scores.tolist() == pytest.approx(by_hand, abs=1e-6)
    assert scores[3] == 0
    assert scores.dtype == "float32"


def test_everybody_is_recommended_what_is_viewed_most_surely(train):
    rates = ViewRate(ITEMS, smoothing=2.0).fit(train)
    assert rates.recommend([[], [0]], 2, exclude=[[], [1]]).tolist() == [[1, 3], [3, 0]]


def test_without_views_nothing_is_known(train):
    unseen = train.map(
        lambda row: {"history_views": [False] * len(row["history_item_ids"]), "target_views": [False] * 3}
    )
    assert not ViewRate(ITEMS).fit(unseen).scores([[0]]).any()


def test_a_smoothing_below_zero_is_refused():
    with pytest.raises(ValueError, match="smoothing must be positive, got 0"):
        ViewRate(ITEMS, smoothing=0)


def test_mixed_and_loaded_again_it_scores_the_same(train, tmp_path):
    first, second = ItemItem(ITEMS, neighbours=2, l2=1.0), ViewRate(ITEMS, smoothing=3.0)
    mixture = Mixture(ITEMS, first=first, second=second, weight=0.5).fit(train)
    assert mixture.num_parameters() == first.num_parameters() + 4 + 1
    assert mixture.scores([[0, 1]])[0] == pytest.approx(first.scores([[0, 1]])[0] + 0.5 * second.scores([[0]])[0])
    mixture.save_pretrained(tmp_path / "mixture")
    again = Baseline.from_pretrained(tmp_path / "mixture")
    assert again.scores([[0, 1]]).tolist() == mixture.scores([[0, 1]]).tolist()
