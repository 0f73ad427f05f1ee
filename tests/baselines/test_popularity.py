from __future__ import annotations

import numpy as np
from datasets import Dataset

from higr_hf.baselines import Popularity


def fitted() -> Popularity:
    train = Dataset.from_dict({"history_item_ids": [["a", "b", "b"], ["b", "d", "unknown"], []]})
    return Popularity(["a", "b", "c", "d"]).fit(train)


def test_items_come_by_frequency_and_ties_in_catalogue_order():
    assert fitted().ranking.tolist() == [1, 0, 3, 2]


def test_excluded_items_are_left_out_and_missing_slots_say_so():
    slates = fitted().recommend([[], [1], [0, 1, 3], [0, 1, 2, 3]], slate_size=3)
    assert slates.tolist() == [[1, 0, 3], [0, 3, 2], [2, -1, -1], [-1, -1, -1]]


def test_it_answers_the_evaluator():
    batch = {"exclude_indices": [np.array([1]), np.array([], dtype=np.int64)]}
    assert fitted()(batch, slate_size=2).tolist() == [[0, 3], [1, 0]]
