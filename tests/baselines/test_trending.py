"""Popularity of the days before a request, alone and beside another baseline."""

from __future__ import annotations

import math

import numpy as np
import pytest
from datasets import Dataset

from higr_hf.baselines import EASE, Baseline, Mixture, Popularity, Trending
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.evaluation import SlateEvaluator
from higr_hf.trends_higr import DAY

ITEMS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def train() -> Dataset:
    """Day 100: a five times. Day 101: b twice. Day 102: c and b."""
    items = [["a"] * 5 + ["b", "b"], ["c", "b"]]
    times = [[100 * DAY + 9] * 5 + [101 * DAY, 101 * DAY + 1], [102 * DAY, 103 * DAY - 1]]
    return Dataset.from_dict(
        {
            "user_id": ["u", "v"],
            "history_item_ids": items,
            "history_timestamps": times,
            "target_item_ids": [[], []],
            "target_timestamps": [[], []],
        }
    )


def test_scores_are_the_share_of_all_and_how_far_the_days_before_are_from_it(train):
    trending = Trending(ITEMS, days=1, smoothing=2.0).fit(train)
    (scores,) = trending.score_blocks([[0]], [102 * DAY + 7])  # day 101 is what counts
    share = [6 / 12, 4 / 12, 2 / 12]
    recent, expected = [0, 2, 0], [2 * 5 / 9, 2 * 3 / 9, 2 * 1 / 9]
    by_hand = [math.log(q * (n + 2) / (e + 2)) for q, n, e in zip(share, recent, expected, strict=True)]
    assert scores[0].tolist() == pytest.approx(by_hand, abs=1e-5)
    (bare,) = Trending(ITEMS, days=1, smoothing=2.0, popularity=False).fit(train).score_blocks([[0]], [102 * DAY])
    assert (scores[0] - bare[0]).tolist() == pytest.approx(np.log(share).tolist(), abs=1e-5)


def test_every_user_gets_what_was_popular_before_their_request(train):
    trending = Trending(ITEMS, days=1, smoothing=0.1).fit(train)
    at = [101 * DAY, 102 * DAY, 0]
    assert trending.recommend([[], [], []], 1, times=at).tolist() == [[0], [1], [0]]
    batch = {"history_indices": [[], []], "exclude_indices": [[], [1]], "request_timestamps": at[:2]}
    assert trending(batch, 1).tolist() == [[0], [2]]  # of a and c, which nobody had, c is missed less
    del batch["request_timestamps"]  # now: day 102 had c and b, of which c is rarer
    assert trending(batch, 1).tolist() == trending.recommend([[], []], 1, [[], [1]]).tolist() == [[2], [2]]
    assert trending.recommend([[]], 2, [[2]]).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="2 times for 1 histories"):
        trending.recommend([[]], 1, times=at[:2])


def test_of_the_newest_days_alone_what_came_before_them_is_no_trend(train):
    newest = Trending(ITEMS, days=2, smoothing=2.0, max_days=2, popularity=False).fit(train)  # days 101 and 102
    (scores,) = newest.score_blocks([[0]] * 2, [101 * DAY, 102 * DAY])
    assert scores[0].tolist() == [0, 0, 0]  # day 100, that of a, lies before them
    recent, expected = [0, 2, 0], [2 * 5 / 9, 2 * 3 / 9, 2 * 1 / 9]
    by_hand = [math.log((n + 2) / (e + 2)) for n, e in zip(recent, expected, strict=True)]
    assert scores[1].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_mixture_tells_the_part_that_reads_the_time(train, tmp_path):
    log = synthetic_log(num_users=30, num_items=12, num_topics=3, length=60)
    splits = leave_last_out(log)
    ease, trending = EASE(log.item_ids), Trending(log.item_ids, days=1, popularity=False)
    mixture = Mixture(log.item_ids, first=ease, second=trending, weight=0.5).fit(splits["train"])
    assert mixture.reads_time and not Mixture(log.item_ids, first=ease, second=EASE(log.item_ids)).reads_time
    evaluator = SlateEvaluator(splits["test"], log.item_ids, num_resamples=0, progress=False)
    batch = evaluator.rows(range(len(splits["test"])))
    histories, times = batch["history_indices"], batch["request_timestamps"]
    assert times == [row[0] for row in splits["test"]["target_timestamps"]]
    (found,) = mixture.score_blocks(histories, times)
    (trend,) = trending.score_blocks(histories, times)
    np.testing.assert_allclose(found, ease.scores(histories) + np.float32(0.5) * trend, rtol=1e-6)
    outer = Mixture(log.item_ids, first=mixture, second=ease, weight=2.0)
    again = Baseline.from_pretrained(outer.save_pretrained(tmp_path / "outer"))
    (nested,) = again.score_blocks(histories, times)
    np.testing.assert_allclose(nested, found + 2 * ease.scores(histories), rtol=1e-5, atol=1e-6)
    assert evaluator.evaluate(mixture).metrics["ndcg@5"] > 0


def test_saved_and_loaded_it_is_the_same(train, tmp_path):
    trending = Trending(ITEMS, days=2).fit(train)
    again = Baseline.from_pretrained(trending.save_pretrained(tmp_path / "trending"))
    assert again.settings == trending.settings and again.num_parameters() == 12
    at = [102 * DAY]
    np.testing.assert_array_equal(*(next(iter(each.score_blocks([[0]], at))) for each in (trending, again)))
    with pytest.raises(ValueError, match="events of shape"):
        Trending(ITEMS[:2], days=2).load_arrays(trending.arrays())


def test_untold_it_ranks_by_now(train):
    popular = Popularity(ITEMS).fit(train)
    assert not popular.reads_time
    untold = Trending(ITEMS, days=9).fit(train)  # all days: no trend, the share of all alone
    assert untold.recommend([[]], 3).tolist() == popular.recommend([[]], 3).tolist()
