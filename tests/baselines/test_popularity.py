from __future__ import annotations

import numpy as np
import pandas as pd
from datasets import Dataset

from higr_hf.baselines import Popularity
from higr_hf.data import basket_splits, read_log


def rows(*histories: list[str], targets: list[list[str]] | None = None, users: list[str] | None = None) -> Dataset:
    """Rows as a train split has them."""
    return Dataset.from_dict(
        {
            "user_id": users or [f"u{number}" for number in range(len(histories))],
            "history_item_ids": list(histories),
            "target_item_ids": targets or [[] for _ in histories],
        }
    )


def fitted() -> Popularity:
    return Popularity(["a", "b", "c", "d"]).fit(rows(["a", "b", "b"], ["b", "d"], []))


def test_items_come_by_frequency_and_ties_in_catalogue_order():
    assert fitted().ranking.tolist() == [1, 0, 3, 2]


def test_excluded_items_are_left_out_and_missing_slots_say_so():
    slates = fitted().recommend([[]] * 4, slate_size=3, exclude=[[], [1], [0, 1, 3], [0, 1, 2, 3]])
    assert slates.tolist() == [[1, 0, 3], [0, 3, 2], [2, -1, -1], [-1, -1, -1]]


def test_an_item_excluded_twice_costs_one_place():
    assert fitted().recommend([[]], slate_size=3, exclude=[[1, 1, 1]]).tolist() == [[0, 3, 2]]


def test_nothing_is_excluded_unless_asked():
    assert fitted().recommend([[1]], slate_size=2).tolist() == [[1, 0]]


def test_own_items_come_first_by_frequency_then_age():
    popularity = Popularity(["a", "b", "c", "d"], own_first=True).fit(rows(["a", "b", "b"], ["b", "d"]))
    history = np.array([3, 2, 0, 2, 3])
    assert popularity.recommend([history, []], slate_size=4).tolist() == [[3, 2, 0, 1], [1, 0, 3, 2]]
    assert popularity.recommend([history], slate_size=3, exclude=[[3, 0]]).tolist() == [[2, 1, -1]]


def test_it_answers_the_evaluator():
    batch = {"history_indices": [[1], []], "exclude_indices": [np.array([1]), np.array([], dtype=np.int64)]}
    assert fitted()(batch, slate_size=2).tolist() == [[0, 3], [1, 0]]


def test_events_of_overlapping_basket_histories_count_once():
    """The rows of real lists repeat their user's history: `a` was bought once, before four lists of `b` and `c`."""
    bought = ["a", "b", "c", "b", "d", "b", "c", "b", "d", "b", "c"]
    basket = ["0", "1", "1", "2", "2", "3", "3", "4", "4", "5", "5"]
    log = read_log(
        pd.DataFrame({"user_id": "u", "item_id": bought, "timestamp": range(11), "basket_id": basket}),
        missing_items="add",
    )
    train = basket_splits(log)["train"]
    assert len(train) == 3
    # Training ends with the third list; the two after it are held out.
    assert Popularity(["a", "b", "c", "d"]).fit(train).counts.tolist() == [1, 3, 2, 1]
