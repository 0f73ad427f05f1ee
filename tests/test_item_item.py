"""Fitting item-item tables: against dense regressions of a few lines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from higr_hf.baselines import EASE
from higr_hf.data import DataError
from higr_hf.data.embeddings import training_lists
from higr_hf.item_item import attach_item_item, detach_item_item, fit_item_item
from tests.model_tester import HiGRModelTester

ITEMS = [f"i{number}" for number in range(12)]


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(4)
    rows = [[ITEMS[item] for item in rng.choice(12, size, replace=False)] for size in rng.integers(1, 9, 40)]
    users = [str(user) for user in range(len(rows))]
    return Dataset.from_dict({"user_id": users, "history_item_ids": rows, "target_item_ids": [[] for _ in rows]})


def dense(tables, channel):
    table = np.zeros((12, 12))
    np.put_along_axis(table, tables.neighbours[channel].astype(int), tables.weights[channel], axis=1)
    return table


def ridge_by_hand(train, decays, slate_size, l2, max_events):
    inputs, targets = [], []
    for row in train["history_item_ids"]:
        row = [ITEMS.index(item) for item in row]
        for position in range(1, len(row)):
            seen = row[max(position - max_events, 0) : position]
            blocks = []
            for decay in decays:
                weights = np.exp(-np.arange(len(seen))[::-1] / decay)
                block = np.zeros(12)
                np.add.at(block, seen, weights / np.linalg.norm(weights))
                blocks.append(block)
            inputs.append(np.concatenate(blocks))
            target = np.zeros(12)
            np.add.at(target, row[position : position + slate_size], 1.0)
            targets.append(target)
    x, y = np.array(inputs), np.array(targets)
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)


def test_transitions_are_a_ridge_regression_of_the_next_items(train):
    tables = fit_item_item(train, ITEMS, decays=[2.0, 5.0], slate_size=3, neighbours=12, l2=4.0, max_events=4)
    expected = ridge_by_hand(train, [2.0, 5.0], 3, 4.0, 4)
    np.testing.assert_allclose(dense(tables, 0), expected[:12], atol=1e-5)
    np.testing.assert_allclose(dense(tables, 1), expected[12:], atol=1e-5)


def test_decay_zero_is_ease(train):
    tables = fit_item_item(train, ITEMS, decays=[0.0], neighbours=12, co_engagement_l2=3.0)
    np.testing.assert_allclose(dense(tables, 0), EASE(ITEMS, l2=3.0).fit(train).weights, atol=1e-6)


def test_only_the_largest_entries_of_the_most_frequent_items_are_kept(train):
    whole = fit_item_item(train, ITEMS, decays=[3.0, 0.0], neighbours=12)
    few = fit_item_item(train, ITEMS, decays=[3.0, 0.0], neighbours=4)
    assert few.neighbours.shape == (2, 12, 4)
    for channel in range(2):
        largest = np.sort(np.abs(dense(whole, channel)), axis=1)[:, -4:]
        np.testing.assert_allclose(np.sort(np.abs(few.weights[channel]), axis=1), largest, atol=1e-6)
    rare = fit_item_item(train, ITEMS, decays=[3.0, 0.0], neighbours=4, max_items=5)
    counts = np.bincount([ITEMS.index(item) for row in train["history_item_ids"] for item in row], minlength=12)
    spoken = {int(item) for item in rare.neighbours[rare.weights != 0]}
    assert spoken <= set(np.argsort(-counts, kind="stable")[:5].tolist())


@pytest.mark.parametrize("wrong", [{"l2": 0.0}, {"neighbours": 0}, {"decays": []}, {"decays": [-2.0]}], ids=str)
def test_a_setting_that_cannot_work_is_refused(train, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fit_item_item(train, ITEMS, **wrong)


def test_attaching_changes_slates_and_needs_a_fitting_model(train):
    tester = HiGRModelTester(num_items=12)
    model = tester.model(catalog_prior=True)
    tables = fit_item_item(train, ITEMS, decays=[3.0, 0.0], neighbours=6)
    prompt = torch.tensor([tester.prompt(model.config, [3, 4])])
    before = model.generate(prompt, return_dict_in_generate=True).scores
    attach_item_item(model, tables, [0.0, 0.0])
    torch.testing.assert_close(model.generate(prompt, return_dict_in_generate=True).scores, before)
    attach_item_item(model, tables, [5.0, 1.0])
    assert not torch.equal(model.generate(prompt, return_dict_in_generate=True).scores, before)
    with pytest.raises(ValueError, match="one scale a table"):
        attach_item_item(model, tables, [1.0])
    with pytest.raises(ValueError, match="catalog_prior"):
        attach_item_item(tester.model(), tables, [1.0, 1.0])


def test_tables_are_taken_off_and_put_back(train):
    tester = HiGRModelTester(num_items=12)
    model = tester.model(catalog_prior=True)
    prompt = torch.tensor([tester.prompt(model.config, [3, 4])])

    def scores():
        return model.generate(prompt, return_dict_in_generate=True).scores

    bare = scores()
    nothing = detach_item_item(model)
    nothing.attach(model)
    assert torch.equal(scores(), bare)
    attach_item_item(model, fit_item_item(train, ITEMS, decays=[3.0, 0.0], neighbours=6), [5.0, 1.0])
    told = scores()
    tables = detach_item_item(model)
    assert model.config.item_item_decays == [] and torch.equal(scores(), bare)
    assert not [name for name in model.state_dict() if "item_item" in name]
    with pytest.raises(ZeroDivisionError), tables.attached(model):
        assert torch.equal(scores(), told)
        1 / 0
    assert torch.equal(scores(), bare)
    tables.attach(model)
    with tables.attached(model):
        pass
    assert model.config.item_item_decays == [3.0, 0.0] and torch.equal(scores(), told)


@pytest.fixture(scope="module")
def receipts():
    rng = np.random.default_rng(7)
    before = [[ITEMS[item] for item in rng.integers(0, 12, size)] for size in rng.integers(1, 9, 30)]
    lists = [[ITEMS[item] for item in rng.choice(12, size, replace=False)] for size in rng.integers(2, 6, 30)]
    users = [str(row // 3) for row in range(30)]
    return Dataset.from_dict({"user_id": users, "history_item_ids": before, "target_item_ids": lists})


def test_lists_are_told_from_what_stood_before_them(receipts, monkeypatch):
    monkeypatch.setattr("higr_hf.item_transitions._LISTS_AT_ONCE", 7)
    fitted = fit_item_item(
        receipts, ITEMS, decays=[2.0, 5.0], neighbours=12, l2=4.0, max_events=4, whole_lists=True, max_items=11
    )
    counts = np.zeros(12)
    first = {}
    for row in receipts:
        first.setdefault(row["user_id"], row["history_item_ids"])
    for items in [*first.values(), *receipts["target_item_ids"]]:
        for item in items:
            counts[ITEMS.index(item)] += 1
    dropped = np.argsort(-counts, kind="stable")[-1]
    x, y = np.zeros((30, 24)), np.zeros((30, 12))
    for row, (before, items) in enumerate(zip(receipts["history_item_ids"], receipts["target_item_ids"], strict=True)):
        seen = [ITEMS.index(item) for item in before if ITEMS.index(item) != dropped][-4:]
        for channel, decay in enumerate([2.0, 5.0]):
            weights = np.exp(-np.arange(len(seen))[::-1] / decay)
            np.add.at(x[row], np.array(seen, dtype=int) + 12 * channel, weights / np.linalg.norm(weights))
        y[row, [ITEMS.index(item) for item in items if ITEMS.index(item) != dropped]] = 1
    expected = np.linalg.solve(x.T @ x + 4 * np.eye(24), x.T @ y)
    np.testing.assert_allclose(np.concatenate([dense(fitted, 0), dense(fitted, 1)]), expected, atol=1e-5)


def test_without_lists_there_is_nothing_to_tell(train):
    with pytest.raises(DataError, match="no lists"):
        fit_item_item(train, ITEMS, decays=[2.0], whole_lists=True)


def test_a_list_of_an_unknown_item_is_refused(receipts):
    with pytest.raises(DataError, match="i11"):
        training_lists(receipts, ITEMS[:11])
