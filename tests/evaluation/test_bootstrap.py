"""Bootstrap over users: right width, right sign, missing users left out, the same answer twice."""

from __future__ import annotations

import numpy as np
import pytest

from higr_hf.evaluation.bootstrap import PairedDifference, confidence_intervals, paired_bootstrap


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    low, high = confidence_intervals({"m": values})["m"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.15 * half)


def test_users_that_do_not_count_are_left_out():
    values = np.array([1.0, np.nan, 1.0, np.nan])
    result = confidence_intervals({"a": values, "none": np.full(4, np.nan), "b": np.zeros(4)}, num_resamples=200)
    assert result["a"] == (1.0, 1.0) and result["b"] == (0.0, 0.0) and np.isnan(result["none"]).all()
    assert confidence_intervals({}) == {}
    assert np.isnan(confidence_intervals({"a": np.array([])})["a"]).all()


def test_a_paired_difference_is_seen_where_users_differ_more_than_systems():
    rng = np.random.default_rng(1)
    user = rng.normal(0, 10, 500)
    better, worse = user + 0.3 + rng.normal(0, 1, 500), user + rng.normal(0, 1, 500)
    result = paired_bootstrap(better, worse)
    assert result.low > 0 and result.p_value < 0.01 and result.num_users == 500
    np.testing.assert_allclose(result.difference, (better - worse).mean())
    mirrored = paired_bootstrap(worse, better)
    np.testing.assert_allclose([mirrored.low, mirrored.high], [-result.high, -result.low])
    assert paired_bootstrap(better, worse) == result, "the seed decides"


def test_equal_systems_do_not_differ():
    values = np.random.default_rng(2).random(50)
    assert paired_bootstrap(values, values).p_value == 1.0
    noise = np.random.default_rng(3).normal(0, 1, (2, 400))
    assert paired_bootstrap(*noise).p_value > 0.05


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        paired_bootstrap(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="No user"):
        paired_bootstrap(np.array([1.0, np.nan]), np.array([np.nan, 1.0]))


def test_a_difference_reads_as_a_sentence():
    difference = PairedDifference(difference=0.05678, low=0.0459, high=0.0676, p_value=0.002, num_users=943)
    assert str(difference) == "+0.0568 (interval +0.0459 to +0.0676, p = 0.002, 943 users)"
