"""Item-item scores: by their definition, inside the catalogue's softmax, and the same in a search as on a path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import HiGRConfig, HiGRForSlateGeneration
from higr_hf.prior_higr import path_logits
from tests.model_tester import ITEM_ITEM, HiGRModelTester


@pytest.fixture(scope="module")
def tester():
    return HiGRModelTester()


@pytest.fixture(scope="module")
def model(tester):
    return tester.model(**ITEM_ITEM)


def by_hand(model, history):
    """The sum of the definition, in plain Python."""
    config, tables = model.config, model.model.item_item
    scores = [0.0] * config.num_items
    for channel, (decay, scale) in enumerate(zip(config.item_item_decays, config.item_item_scales, strict=True)):
        ages = range(len(history) - 1, -1, -1)
        weights = [math.exp(-age / decay) if decay else 1.0 for age in ages]
        norm = math.sqrt(sum(weight**2 for weight in weights)) if decay else 1.0
        for item, weight in zip(history, weights, strict=True):
            for place in range(config.item_item_neighbours):
                other = int(tables.neighbours[channel, item, place])
                scores[other] += scale * weight / norm * float(tables.weights[channel, item, place])
    return scores


@settings(max_examples=30)
@given(history=st.lists(st.integers(0, 23), max_size=9), before=st.integers(0, 3), after=st.integers(0, 3))
def test_scores_are_the_sum_of_their_definition_wherever_the_history_stands(model, history, before, after):
    row = torch.tensor([[-1] * before + history + [-1] * after], dtype=torch.long)
    assert model.model.item_item(row)[0].tolist() == pytest.approx(by_hand(model, history), abs=1e-5)


def test_an_event_that_is_no_known_item_ages_nobody(model):
    scores = model.model.item_item
    assert torch.equal(scores(torch.tensor([[4, -1, 7]])), scores(torch.tensor([[-1, 4, 7]])))


def test_queries_see_the_beginning_of_their_sequence(model):
    items = torch.tensor([[-1, 3, 4, 5], [-1, 9, 9, -1]])
    context = torch.tensor([[1, 3], [4, 2]])
    found = model.model.item_item.of_queries(items, context)
    for row in range(2):
        for query in range(2):
            seen = [item for item in items[row, : context[row, query]].tolist() if item >= 0]
            assert found[row, query].tolist() == pytest.approx(by_hand(model, seen), abs=1e-5)


def test_the_codes_shares_multiply_to_a_softmax_of_both(tester, model):
    trie = model.model.trie()
    plans = torch.randn(tester.num_items, 16, generator=torch.Generator().manual_seed(1))
    added = torch.randn(tester.num_items, tester.num_items, generator=torch.Generator().manual_seed(2))
    vectors = model.model.ranked_item_vectors()
    logits = path_logits(trie, model.config, plans, vectors, trie.prefixes(tester.codes), added)
    row = torch.arange(tester.num_items)
    got = sum(
        group[row, tester.codes[:, level] + (model.config.level_offsets[0] if level == 0 else 0)]
        for level, group in enumerate(logits)
    )
    expected = (plans @ model.item_vectors().T + added).log_softmax(-1).diagonal()
    torch.testing.assert_close(got, expected)


def test_a_history_longer_than_the_prompt_counts(tester, model):
    prompt = torch.tensor([tester.prompt(model.config, [3, 4])])
    kwargs = {"return_dict_in_generate": True, "num_beams": tester.num_items}
    short = model.generate(prompt, **kwargs)
    assert torch.equal(model.generate(prompt, history=[[3, 4]], **kwargs).scores, short.scores)
    long = model.generate(prompt, history=[[8, 1, 3, 4]], **kwargs)
    assert not torch.equal(long.scores, short.scores)
    with pytest.raises(ValueError, match=r"history\[0\] names item 24"):
        model.generate(prompt, history=[[24]])


def test_tables_travel_with_the_model(tester, model, tmp_path):
    model.save_pretrained(tmp_path)
    again = HiGRForSlateGeneration.from_pretrained(tmp_path)
    prompt = torch.tensor([tester.prompt(model.config, [3, 4])])
    assert again.config.item_item_decays == [2.0, 0.0]
    assert torch.equal(again.generate(prompt), model.generate(prompt))


def test_new_items_speak_for_nothing(tester):
    tables = tester.model(**ITEM_ITEM).model.item_item
    before = tables(torch.tensor([[1, 2]]))
    tables.config.num_items += 2
    tables.grow(2)
    after = tables(torch.tensor([[1, 2, 24]]))
    assert after.shape == (1, 26) and not after[0, 24:].any()
    assert not torch.equal(after[:, :24], before)  # the new event is one all the same: the others are older by it


@pytest.mark.parametrize(
    "changes",
    [
        {"item_item_scales": [1.0]},
        {"item_item_decays": [-1.0, 0.0]},
        {"item_item_neighbours": 0},
        {"catalog_prior": False},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_is_refused(changes):
    with pytest.raises(ValueError, match="item_item_decays"):
        HiGRConfig(**{**ITEM_ITEM, **changes})
