"""SlateEvaluator on a split small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from higr_hf.evaluation import EvaluationResult, SlateEvaluator

ITEMS = ["a", "b", "c", "d", "e"]
VECTORS = np.eye(5, 3) + np.eye(5, 3, k=-3)
SPLIT = {
    "user_id": ["u0", "u1", "u2"],
    "history_item_ids": [["a", "b"], ["zzz", "c"], []],
    "history_negatives": [["d"], [], []],
    "target_negatives": [["d", "a"], ["b", "gone"], []],
    "target_item_ids": [["c", "d"], ["a", "gone"], ["e", "b"]],
    "target_views": [[True, False], [False, False], [True, True]],
}
SLATES = np.array([[2, 4], [0, 1], [3, -1]])


def make(split=None, **kwargs) -> SlateEvaluator:
    kwargs = {"slate_size": 2, "progress": False, "embeddings": VECTORS, "batch_size": 2, **kwargs}
    return SlateEvaluator(Dataset.from_dict(split or SPLIT), ITEMS, **kwargs)


def answer(batch) -> np.ndarray:
    return SLATES[[int(user[1]) for user in batch["user_id"]]]


def test_metrics_by_hand():
    result = make(categories=[["x"], ["x"], ["y"], ["y"], ["x", "y"]]).evaluate(answer)
    discount = 1 / math.log2(3)
    expected = {
        "hit@2": 2 / 3,
        "recall@2": (1 / 2 + 1 / 2 + 0) / 3,
        "ndcg@2": (1 / (1 + discount)) * 2 / 3,
        "view_hit@2": 1 / 2,
        "view_recall@2": 1 / 2,
        "view_ndcg@2": 1 / 2,
        "diversity": 1.0,
        "category_diversity": 0.0,
        "coverage": 5 / 5,
        "duplicates": 0.0,
        "validity": (1 + 1 + 1 / 2) / 3,
        "negative_share": 0.0,
        "held_out_negative_share": (0 + 1 / 2) / 2,  # u0's slate is c, e; u1's a, b
    }
    assert result.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value), name
    assert result.counts == {"users": 3, "users_with_targets": 3, "users_with_views": 2, "unknown_targets": 1}
    assert result.primary_metric == "ndcg@2" and result.primary_value == result.metrics["ndcg@2"]
    low, high = result.intervals["hit@2"]
    assert 0 <= low <= result.metrics["hit@2"] <= high <= 1
    assert result.timings["seconds"] >= 0 and SlateEvaluator.greater_is_better


def test_the_recommender_sees_no_target_and_knows_what_is_excluded():
    batches = []

    def spy(batch):
        batches.append(batch)
        return torch.from_numpy(answer(batch))

    make(exclude_history=True).evaluate(spy)
    assert [len(batch["user_id"]) for batch in batches] == [2, 1]
    assert not [name for name in batches[0] if name.startswith("target_")]
    assert [row.tolist() for row in batches[0]["history_indices"]] == [[0, 1], [2]]
    assert [row.tolist() for row in batches[0]["exclude_indices"]] == [[0, 1], [2]]
    batches.clear()
    make().evaluate(spy)
    assert [row.tolist() for row in batches[0]["exclude_indices"]] == [[], []]


@pytest.mark.parametrize(
    ("slates", "message"),
    [
        (lambda batch: np.zeros((1, 2), dtype=int), r"shape \(1, 2\) for 2 users"),
        (lambda batch: np.zeros((2, 3), dtype=int), r"expected \(2, 2\)"),
        (lambda batch: np.zeros((2, 2)), "float64"),
        (lambda batch: np.array([[4, 3], [2, 0]]), "'u1' was recommended item index 2"),
    ],
)
def test_wrong_answers_are_refused(slates, message):
    with pytest.raises(ValueError, match=message):
        make(exclude_history=True).evaluate(slates)


def test_short_slates_and_illegal_items_lower_validity():
    result = make().evaluate(lambda batch: np.full((len(batch["user_id"]), 1), 0))
    assert result.metrics["validity"] == 0.5 and result.slates.shape == (3, 2)
    allowed = np.array([False, True, True, True, True])
    assert make(allowed=allowed).evaluate(answer).metrics["validity"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    # 5 is the index that the unknown target got: no recommender can hit it by luck.
    behind = make().evaluate(lambda batch: np.full((len(batch["user_id"]), 2), 5))
    assert behind.metrics["hit@2"] == 0 and behind.metrics["validity"] == 0 and math.isnan(behind.metrics["diversity"])


def test_splits_that_cannot_be_evaluated_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['target_item_ids'\]"):
        make({"user_id": ["u"], "history_item_ids": [["a"]]})
    with pytest.raises(ValueError, match="not train"):
        make({"user_id": ["u"], "history_item_ids": [["a"]], "target_item_ids": [[]]})
    with pytest.raises(ValueError, match="Row 1: 1 target_views for 2"):
        make({**SPLIT, "target_views": [[True, True], [True], [True, True]]})
    with pytest.raises(ValueError, match="embeddings has 4 rows"):
        make(embeddings=VECTORS[:4])
    with pytest.raises(ValueError, match="primary_metric 'mrr' is not measured"):
        make(primary_metric="mrr").evaluate(answer)


def test_without_optional_columns_only_the_rest_is_measured():
    split = {name: SPLIT[name] for name in ("user_id", "history_item_ids", "target_item_ids")}
    result = make(split, embeddings=None, num_resamples=0).evaluate(answer)
    assert set(result.metrics) == {"hit@2", "recall@2", "ndcg@2", "coverage", "duplicates", "validity"}
    assert result.intervals == {}


def test_history_diversity():
    np.testing.assert_allclose(make().history_diversity(), [1.0, math.nan, math.nan])
    with pytest.raises(ValueError, match="embeddings"):
        make(embeddings=None).history_diversity()


def test_paired_comparison_follows_the_users_not_the_rows():
    first, second = make().evaluate(answer), make().evaluate(lambda batch: np.full((len(batch["user_id"]), 2), -1))
    gap = first.compare(second)
    assert gap.difference == pytest.approx(first.primary_value) and gap.num_users == 3
    shuffled = make({name: column[::-1] for name, column in SPLIT.items()}).evaluate(answer)
    assert first.compare(shuffled).difference == 0 and first.compare(shuffled).low == 0
    with pytest.raises(ValueError, match="different users"):
        first.compare(make({**SPLIT, "user_id": ["u0", "u1", "u3"]}).score(SLATES))
    with pytest.raises(ValueError, match="No per-user values of 'coverage'"):
        first.compare(second, "coverage")


def test_results_survive_a_file(tmp_path):
    result = make().evaluate(lambda batch: np.full((len(batch["user_id"]), 2), -1))
    result.save(tmp_path / "r")
    loaded = EvaluationResult.load(tmp_path / "r")
    for name, values in result.per_user.items():
        np.testing.assert_array_equal(loaded.per_user[name], values)
    assert math.isnan(loaded.metrics["diversity"]) and loaded.metrics["hit@2"] == 0
    assert (loaded.counts, loaded.timings, loaded.user_ids) == (result.counts, result.timings, result.user_ids)
    assert loaded.slates.tolist() == result.slates.tolist()
    (tmp_path / "r" / "per_user.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="no whole evaluation result"):
        EvaluationResult.load(tmp_path / "r")
