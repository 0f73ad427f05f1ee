from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.baselines import EASE, Baseline, Popularity, ScoringBaseline, top_items
from higr_hf.baselines.early_stopping import KeepBest, TrainingClock
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.evaluation import SlateEvaluator


class Fixed(ScoringBaseline):
    """Scores that were written down, the same row for everybody."""

    kind = "fixed-for-tests"
    block_size = 2

    def __init__(self, item_ids: Sequence[str], *, row: list[float]) -> None:
        super().__init__(item_ids, row=row)
        self.row = row

    def fit(self, train, validation=None) -> Fixed:
        return self

    def scores(self, histories) -> np.ndarray:
        return np.tile(np.array(self.row, dtype=np.float32), (len(histories), 1))

    def num_parameters(self) -> int:
        return 0

    def arrays(self) -> dict[str, np.ndarray]:
        return {}

    def load_arrays(self, arrays) -> None:
        assert not arrays


@given(st.data())
def test_the_best_are_those_of_a_full_sort(data):
    users, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    level = st.integers(-2, 2)  # few levels, so that there are ties
    scores = np.array(
        data.draw(st.lists(st.lists(level, min_size=items, max_size=items), min_size=users, max_size=users))
    )
    exclude = [data.draw(st.lists(st.integers(0, items - 1))) for _ in range(users)]
    size = data.draw(st.integers(1, 10))
    slates = top_items(scores, size, exclude)
    for row, slate in enumerate(slates.tolist()):
        legal = [item for item in range(items) if item not in exclude[row]]
        expected = sorted(legal, key=lambda item: (-scores[row, item], item))[:size]
        assert slate == expected + [-1] * (size - len(expected))


def test_a_model_that_diverged_is_found_out():
    with pytest.raises(ValueError, match="item 1 for user row 0 is NaN"):
        top_items(np.array([[0.0, np.nan]]), 1)


def test_scores_come_in_blocks_with_their_own_exclusions():
    baseline = Fixed(["a", "b", "c"], row=[0.1, 0.3, 0.2])
    slates = baseline.recommend([[]] * 5, 2, exclude=[[], [1], [2], [0, 1], []])
    assert slates.tolist() == [[1, 2], [2, 0], [1, 0], [2, -1], [1, 2]]
    with pytest.raises(ValueError, match="4 lists of excluded items for 5 histories"):
        baseline.recommend([[]] * 5, 2, exclude=[[]] * 4)


def test_no_users_no_slates():
    assert Fixed(["a"], row=[0.0]).recommend([], 3).shape == (0, 3)


def test_any_kind_loads_through_the_base_class(tmp_path):
    Fixed(["a", "b"], row=[0.0, 1.0]).save_pretrained(tmp_path / "saved")
    loaded = Baseline.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, Fixed)
    assert loaded.recommend([[]], 2).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="no EASE"):
        EASE.from_pretrained(tmp_path / "saved")


def test_what_is_saved_is_safetensors_and_json(tmp_path):
    Popularity(["a"]).save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"baseline.json", "baseline.safetensors"}


def test_a_cut_or_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere holds no whole baseline"):
        Baseline.from_pretrained(tmp_path / "nowhere")
    path = Popularity(["a", "b"]).save_pretrained(tmp_path / "saved")
    config = json.loads((path / "baseline.json").read_text())
    (path / "baseline.json").write_text(json.dumps({**config, "item_ids": ["a"]}))
    with pytest.raises(ValueError, match="counts of shape"):
        Baseline.from_pretrained(path)
    (path / "baseline.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no whole baseline"):
        Baseline.from_pretrained(path)


def test_baselines_answer_the_evaluator_on_the_whole_catalogue():
    log = synthetic_log(num_users=40, num_items=60, num_topics=3, length=30, noise=0.2)
    splits = leave_last_out(log)
    evaluator = SlateEvaluator(splits["test"], log.item_ids, exclude_history=True, progress=False)
    popular = evaluator.evaluate(Popularity(log.item_ids).fit(splits["train"]))
    ease = evaluator.evaluate(EASE(log.item_ids, l2=5.0).fit(splits["train"]))
    assert popular.metrics["validity"] == ease.metrics["validity"] == 1
    assert ease.metrics["ndcg@5"] > popular.metrics["ndcg@5"]


def test_the_best_epoch_is_kept_and_ties_are_no_gain():
    best, kept = KeepBest(patience=3), iter(["first", "second"])
    scores = {5: 0.2, 10: 0.4, 15: 0.4, 20: 0.1, 25: 0.3}
    given = iter(scores.values())
    stops = [best.judge(epoch, lambda: next(given), lambda: next(kept)) for epoch in scores]
    assert stops == [False, False, False, False, True]
    assert (best.epoch, best.score, best.state) == (10, 0.4, "second")
    assert [judgement[:2] for judgement in best.history] == list(scores.items())


def test_without_patience_training_goes_on():
    best = KeepBest(patience=0)
    assert not any(best.judge(epoch, float, dict) for epoch in range(1, 50))


def test_training_and_judging_are_timed_apart():
    time = [0.0]

    def passes(seconds: float, result: float = 0.0) -> float:
        time[0] += seconds
        return result

    best = KeepBest(patience=0, clock=TrainingClock(lambda: time[0]))
    for epoch, score in ((1, 0.2), (2, 0.1)):
        passes(10.0)
        best.judge(epoch, lambda score=score: passes(3.0, score), lambda: passes(1.0))
    # Only the first was better: a copy of the state was taken, and is no training either.
    assert best.history == [(1, 0.2, 10.0, 4.0), (2, 0.1, 20.0, 7.0)]
