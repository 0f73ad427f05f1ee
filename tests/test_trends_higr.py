"""Trend scores: by their definition, counted on splits, and told the time by every way of decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import HiGRConfig, HiGRForSlateGeneration, HiGRTokenizer, SlateRecommendationPipeline
from higr_hf.data import DataError, leave_last_out
from higr_hf.data.synthetic import synthetic_log
from higr_hf.deployment import FixedShapeDecoder
from higr_hf.evaluation import SlateEvaluator
from higr_hf.recommender import SlateRecommender
from higr_hf.trends import ItemTrends, attach_trends, fit_trends
from higr_hf.trends_higr import DAY, NEWEST, TrendScores
from tests.model_tester import HiGRModelTester

START = 19_000 * DAY


@pytest.fixture(scope="module")
def tester():
    return HiGRModelTester()


def table(counts: np.ndarray, days: int = 2, smoothing: float = 1.5) -> ItemTrends:
    """Of counts `[P, N]` of each day."""
    before = np.concatenate([np.zeros_like(counts[:1]), counts.cumsum(0)]).astype(np.int32)
    return ItemTrends(days, smoothing, START, before)


def scores_of(trends: ItemTrends, scale: float = 1.0) -> TrendScores:
    periods, items = trends.events.shape
    scores = TrendScores(
        HiGRConfig(
            num_items=items, catalog_prior=True, trend_days=trends.days, trend_periods=periods - 1,
            trend_start=trends.start, trend_scale=scale, trend_smoothing=trends.smoothing,
        )
    )  # fmt: skip
    scores.events.copy_(torch.from_numpy(trends.events))
    return scores


def by_hand(counts: np.ndarray, day: int, days: int, smoothing: float) -> list[float]:
    """The definition, in plain Python."""
    day = min(max(day, 0), len(counts))
    window = [int(sum(row)) for row in zip(*counts[max(day - days, 0) : day].tolist(), strict=True)]
    window = window or [0] * counts.shape[1]
    total, every = counts.sum(0), counts.sum()
    found = []
    for item, recent in enumerate(window):
        expected = sum(window) * (total[item] / every if every else 0.0)
        found.append(math.log((recent + smoothing) / (expected + smoothing)))
    return found


@settings(max_examples=40)
@given(
    counts=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=6),
    day=st.integers(-2, 9),
    second=st.integers(0, DAY - 1),
    days=st.integers(1, 4),
)
def test_scores_are_their_definition_at_any_second_of_the_day(counts, day, second, days):
    counts = np.array(counts)
    scores = scores_of(table(counts, days), scale=2.0)(torch.tensor([START + day * DAY + second]))
    expected = [2.0 * value for value in by_hand(counts, day, days, 1.5)]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_happens_on_the_day_of_the_request_or_later_is_not_recent():
    before, calm, busy = [[3, 1], [2, 2]], [[2, 2]] * 2, [[4, 0], [0, 4]]  # of one sum, so of the same shares of all
    at = torch.tensor([START + 2 * DAY + 5])
    first, second = (scores_of(table(np.array([*before, *later])))(at) for later in (calm, busy))
    assert torch.equal(first, second) and first.any()


def test_now_is_after_the_newest_day(tester):
    counts = np.random.default_rng(0).integers(0, 9, (5, tester.num_items))
    scores = scores_of(table(counts))
    now, late, next_day = scores(torch.tensor([NEWEST, START + 99 * DAY, START + 5 * DAY]))
    assert torch.equal(now, late) and torch.equal(now, next_day)
    assert now.tolist() == pytest.approx(by_hand(counts, 5, 2, 1.5), abs=1e-5)


@pytest.fixture(scope="module")
def log():
    return synthetic_log(num_users=20, num_items=24, length=60, seed=3)


def test_every_training_event_is_counted_once_on_its_day(log):
    train = leave_last_out(log, slate_size=2)["train"]
    trends = fit_trends(train, log.item_ids, days=3)
    index = {item: row for row, item in enumerate(log.item_ids)}
    counts = np.zeros((len(trends.events) - 1, len(index)), dtype=int)
    for items, times in zip(train["history_item_ids"], train["history_timestamps"], strict=True):
        for item, second in zip(items, times, strict=True):
            counts[(second - trends.start) // DAY, index[item]] += 1
    assert trends.start % DAY == 0 and counts[0].any() and counts[-1].any()
    np.testing.assert_array_equal(np.diff(trends.events, axis=0), counts)
    assert not trends.events[0].any()


def test_old_days_can_be_kept_as_one(log):
    train = leave_last_out(log, slate_size=2)["train"]
    whole, short = (fit_trends(train, log.item_ids, days=2, max_days=days) for days in (None, 2))
    np.testing.assert_array_equal(short.events, whole.events[-3:])
    now = torch.tensor([NEWEST])
    assert torch.equal(scores_of(short)(now), scores_of(whole)(now))


@pytest.mark.parametrize(
    "options", [{"days": 0}, {"days": 1.5}, {"smoothing": 0.0}, {"max_days": 0}, {"max_days": 6}], ids=str
)
def test_settings_out_of_range_are_refused(log, options):
    train = leave_last_out(log, slate_size=2)["train"]
    with pytest.raises(ValueError, match=next(iter(options))):
        fit_trends(train, log.item_ids, **options)


def test_an_item_outside_the_catalogue_is_refused(log):
    with pytest.raises(DataError, match="not among the items"):
        fit_trends(leave_last_out(log, slate_size=2)["train"], log.item_ids[1:])


@pytest.fixture
def model(tester):
    model = tester.model(catalog_prior=True)
    counts = np.random.default_rng(1).integers(0, 9, (6, tester.num_items))
    attach_trends(model, table(counts), scale=3.0)
    return model


@pytest.mark.parametrize("mode", ["sequential", "plan_once", "verified", "first_plan"])
def test_generate_is_told_when(tester, model, mode):
    prompts = tester.batch([tester.prompt(model.config, row) for row in ([1, 2], [3])])
    times = [START + 3 * DAY, START + 4 * DAY]
    options = {"slate_size": 3, "slate_mode": mode, "num_beams": 24, "return_dict_in_generate": True}
    found = model.generate(**prompts, request_time=times, **options)
    for row, second in enumerate(times):
        alone = tester.batch([tester.prompt(model.config, ([1, 2], [3])[row])])
        # What the prior is given by hand in place of the table.
        wanted = model.model.trends(torch.tensor([second]))
        original, model._added_scores = model._added_scores, lambda *_, wanted=wanted: wanted
        try:
            by_hand = model.generate(**alone, **options)
        finally:
            model._added_scores = original
        assert found.slates[row].tolist() == by_hand.slates[0].tolist()
        assert found.scores[row].tolist() == pytest.approx(by_hand.scores[0].tolist(), abs=1e-5)
    now = model.generate(**prompts, **options)
    assert torch.equal(now.scores, model.generate(**prompts, request_time=[NEWEST] * 2, **options).scores)
    assert not torch.equal(now.scores, found.scores)


def test_evaluator_recommender_and_pipeline_say_when(tester, model, log):
    ids = [f"i{row}" for row in range(tester.num_items)]
    tokenizer = HiGRTokenizer.from_codes(
        ids, tester.codes.numpy(), list(tester.codebook_sizes), num_feedback_levels=3, num_time_buckets=2
    )
    test = leave_last_out(log, slate_size=2)["test"]
    attach_trends(model, fit_trends(test, ids, days=1, smoothing=0.1), scale=5.0)
    evaluator = SlateEvaluator(test, ids, slate_size=2, num_resamples=0, progress=False)
    batch = evaluator.rows([0, 3])
    times = [min(test[row]["target_timestamps"]) for row in (0, 3)]
    assert batch["request_timestamps"] == times and not [name for name in batch if name.startswith("target_")]
    recommender = SlateRecommender(model, tokenizer, 2)
    assert recommender.inputs(batch)["request_time"] == times
    judged = recommender.generate(batch)
    pipe = SlateRecommendationPipeline(model, tokenizer)
    for row, history in enumerate(batch["history_item_ids"]):
        options = {"slate_size": 2, "exclude_history": False}
        slate = pipe({"history": history, "request_time": times[row]}, **options)
        assert [place["score"] for place in slate] == pytest.approx(judged.scores[row].tolist(), abs=1e-5)
        first_day = pipe({"history": history, "request_time": 0}, **options)
        assert [place["score"] for place in first_day] != pytest.approx(judged.scores[row].tolist(), abs=1e-3)
    with pytest.raises(ValueError, match="request_time must be a number of seconds"):
        pipe({"history": ["i1"], "request_time": "today"})


def test_fixed_shapes_are_asked_now(tester, model):
    prompts = tester.batch([tester.prompt(model.config, row) for row in ([1, 2], [3, 4])])["input_ids"]
    decode = FixedShapeDecoder(model, batch_size=2, prompt_length=prompts.shape[1], slate_size=3, num_beams=5)
    found, unfit = decode(prompts)
    assert not unfit.any()
    assert torch.equal(
        found.slates, model.generate(prompts, slate_size=3, num_beams=5, return_dict_in_generate=True).slates
    )


@pytest.mark.parametrize("times", [[1], [1, 2, 3], [[1, 2]], [1.0, math.nan]], ids=str)
def test_times_that_are_not_one_a_prompt_are_refused(tester, model, times):
    prompts = tester.batch([tester.prompt(model.config, row) for row in ([1, 2], [3])])
    with pytest.raises(ValueError, match="request_time"):
        model.generate(**prompts, request_time=times)


def test_milliseconds_are_told_from_seconds(tester, model):
    prompts = tester.batch([tester.prompt(model.config, [1, 2])])
    with pytest.raises(ValueError, match="1700000000000 seconds, past the year 5000: milliseconds"):
        model.generate(**prompts, request_time=[1_700_000_000_000])


def test_training_does_not_see_them(tester, model):
    bare = tester.model(catalog_prior=True)
    rows = tester.batch([tester.flat(model.config, [1, 2], [3, 4, 5, 6])])
    assert torch.equal(model(**rows).logits, bare(**rows).logits)


def test_a_checkpoint_keeps_them(tester, model, tmp_path):
    model.save_pretrained(tmp_path)
    again = HiGRForSlateGeneration.from_pretrained(tmp_path)
    assert (again.config.trend_days, again.config.trend_scale) == (2, 3.0)
    at = torch.tensor([START + 3 * DAY])
    assert torch.equal(again.model.trends(at), model.model.trends(at))


def test_new_items_have_no_trend(model):
    scores = model.model.trends
    model.config.num_items += 2
    before = scores(torch.tensor([START + 3 * DAY]))
    scores.grow(2)
    after = scores(torch.tensor([START + 3 * DAY]))
    assert torch.equal(after[:, :-2], before) and not after[:, -2:].any()


@pytest.mark.parametrize(
    ("changes", "trends", "message"),
    [
        ({"catalog_prior": False}, table(np.ones((2, 24), dtype=int)), "catalog_prior=True"),
        ({}, table(np.ones((2, 7), dtype=int)), "Trends of 7 items"),
    ],
    ids=["prior", "items"],
)
def test_a_table_that_does_not_fit_is_refused(tester, changes, trends, message):
    with pytest.raises(ValueError, match=message):
        attach_trends(tester.model(**{"catalog_prior": True, **changes}), trends, 1.0)


def test_a_scale_must_be_a_number(model):
    with pytest.raises(ValueError, match="scale"):
        attach_trends(model, table(np.ones((2, 24), dtype=int)), math.nan)


@pytest.mark.parametrize(
    "changes", [{"trend_days": 3}, {"trend_periods": 3}, {"trend_smoothing": 0.0}, {"trend_days": -1}], ids=str
)
def test_a_configuration_that_cannot_work_is_refused(changes):
    with pytest.raises(ValueError, match="trend_days"):
        HiGRConfig(catalog_prior=True, num_items=4, **changes)
    with pytest.raises(ValueError, match="catalog_prior=True"):
        HiGRConfig(num_items=4, trend_days=2, trend_periods=3)
