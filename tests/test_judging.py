"""One judge for training and alignment: whatever it is told reaches the decoding and the metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.judging import SlateJudge
from tests.model_tester import HiGRModelTester

LOG = synthetic_log(num_users=20, num_items=HiGRModelTester().num_items, num_topics=2, length=8)


@pytest.fixture(scope="module")
def judged() -> tuple[SlateJudge, HiGRForSlateGeneration]:
    tester = HiGRModelTester()
    tokenizer = HiGRTokenizer.from_codes(LOG.item_ids, tester.codes.numpy(), tester.codebook_sizes, 3, 2)
    model = tester.model(dropout=0.0, tokenizer_fingerprint=tokenizer.fingerprint).eval()
    splits = leave_last_out(LOG, slate_size=2)
    return SlateJudge(splits=splits, tokenizer=tokenizer, slate_size=2, generation={"num_beams": 4}), model


def test_it_decodes_as_it_was_told_but_for_changes(judged):
    judge, model = judged
    recommender = replace(judge, wish=1).recommender(model)
    assert (recommender.slate_size, recommender.wish, recommender.generation) == (2, 1, {"num_beams": 4})
    changed = judge.recommender(model, generation={"num_beams": 1})
    assert changed.generation == {"num_beams": 1} and changed.wish is None


def test_history_comes_back_only_where_it_may(judged):
    judge, model = judged
    histories = [set(row) for row in judge.splits["test"]["history_item_ids"]]

    def repeated(judge: SlateJudge) -> int:
        slates = judge.evaluate(model, "test", num_resamples=0, progress=False).slates
        items = [[judge.tokenizer.item_ids[item] for item in slate] for slate in slates]
        return sum(len(history & set(slate)) for history, slate in zip(histories, items, strict=True))

    assert repeated(judge) == 0
    assert repeated(replace(judge, exclude_history=False)) > 0, "a model that knows nothing avoids nothing"


def test_users_who_watch_are_drawn_by_the_seed(judged):
    judge, _ = judged
    drawn = judge.watched_users(5)
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) == judge.watched_users(5)
    assert drawn != replace(judge, seed=1).watched_users(5)
    assert judge.watched_users(None) == judge.watched_users(99) == list(range(20))
    rows = judge.splits["validation"].select(drawn)
    assert judge.evaluator(rows, num_resamples=0).user_ids == list(rows["user_id"])
