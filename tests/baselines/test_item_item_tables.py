from __future__ import annotations

import numpy as np
import pytest

from higr_hf.baselines import Baseline, ItemItem
from higr_hf.item_item import fit_item_item

from .test_popularity import rows

ITEMS = ["a", "b", "c", "d"]
TRAIN = rows(["a", "b", "c"], ["a", "b", "d"], ["b", "c"], ["a", "c", "d"])
SETTINGS = {"decays": [2.0, 0.0], "scales": [3.0, 0.5], "neighbours": 3, "l2": 1.0, "co_engagement_l2": 1.0}


def test_scores_are_the_tables_weighted_sum(tmp_path):
    baseline = ItemItem(ITEMS, **SETTINGS).fit(TRAIN)
    options = {name: value for name, value in SETTINGS.items() if name != "scales"}
    tables = fit_item_item(TRAIN, ITEMS, **options)
    dense = np.zeros((2, 4, 4))
    for channel in range(2):
        np.put_along_axis(dense[channel], tables.neighbours[channel].astype(int), tables.weights[channel], axis=1)
    weight = np.exp(-np.array([1, 0]) / 2.0)
    weight /= np.linalg.norm(weight)
    expected = 3.0 * weight @ dense[0][[0, 1]] + 0.5 * dense[1][[0, 1]].sum(0)
    np.testing.assert_allclose(baseline.scores([np.array([0, 1]), np.array([2])])[0], expected, rtol=1e-5)
    assert baseline.num_parameters() == 2 * 4 * 3

    again = Baseline.from_pretrained(baseline.save_pretrained(tmp_path / "tables"))
    histories = [np.array([0, 1]), np.array([], dtype=np.int64)]
    np.testing.assert_array_equal(again.scores(histories), baseline.scores(histories))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="item_item_decays"):
        ItemItem(ITEMS, decays=[2.0], scales=[1.0, 2.0])
    with pytest.raises(ValueError, match="l2 must be positive"):
        ItemItem(ITEMS, **{**SETTINGS, "l2": 0.0}).fit(TRAIN)
