"""Repeat scores: by their definition, for queries as for whole histories, and with their gradient in the softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import HiGRConfig, HiGRForSlateGeneration
from higr_hf.prior_higr import path_logits
from higr_hf.repeats_higr import GAIN, RepeatScores
from tests.model_tester import HiGRModelTester

DECAYS = [3.0, 0.0]
REPEATS = {"catalog_prior": True, "repeat_decays": DECAYS}


@pytest.fixture(scope="module")
def tester():
    return HiGRModelTester()


@pytest.fixture(scope="module")
def model(tester):
    return tester.model(**REPEATS)


def by_hand(scores: RepeatScores, history: list[int]) -> list[float]:
    """The definition, in plain Python."""
    found = [0.0] * scores.config.num_items
    for item in set(history):
        total = scores.bias[item].item()
        for decay, weight in zip(DECAYS, scores.weight.tolist(), strict=True):
            ages = [age for age, other in enumerate(reversed(history)) if other == item]
            total += weight * math.log1p(sum(math.exp(-age / decay) if decay else 1.0 for age in ages))
        found[item] = GAIN * total
    return found


@settings(max_examples=30)
@given(history=st.lists(st.integers(0, 6), max_size=9), before=st.integers(0, 3), after=st.integers(0, 3))
def test_scores_are_their_definition_wherever_the_history_stands(model, history, before, after):
    scores = model.model.repeats
    row = torch.tensor([[-1] * before + history + [-1] * after], dtype=torch.long)
    assert scores(row)[0].tolist() == pytest.approx(by_hand(scores, history), abs=1e-5)


@settings(max_examples=30)
@given(rows=st.lists(st.lists(st.integers(-1, 4), min_size=8, max_size=8), min_size=1, max_size=3), data=st.data())
def test_queries_see_the_beginning_of_their_sequence(model, rows, data):
    scores = model.model.repeats
    context = [[data.draw(st.integers(1, 8)) for _ in range(3)] for _ in rows]
    index, values = scores.of_queries(torch.tensor(rows), torch.tensor(context))
    dense = values.new_zeros(len(rows), 3, scores.config.num_items).scatter_add(2, index, values)
    for row, seen in zip(dense, zip(rows, context, strict=True), strict=True):
        for found, length in zip(row, seen[1], strict=True):
            expected = by_hand(scores, [item for item in seen[0][:length] if item >= 0])
            assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_codes_shares_multiply_to_a_softmax_of_both_and_gradients_reach_both(tester, model):
    trie = model.model.trie()
    generator = torch.Generator().manual_seed(1)
    plans = torch.randn(tester.num_items, 16, generator=generator, requires_grad=True)
    index = torch.randint(tester.num_items, (tester.num_items, 5), generator=generator)
    values = torch.randn(tester.num_items, 5, generator=generator, requires_grad=True)
    vectors = model.model.ranked_item_vectors()
    logits = path_logits(trie, model.config, plans, vectors, trie.prefixes(tester.codes), None, (index, values))
    row = torch.arange(tester.num_items)
    got = sum(
        group[row, tester.codes[:, level] + (model.config.level_offsets[0] if level == 0 else 0)]
        for level, group in enumerate(logits)
    )
    scores = (plans @ model.item_vectors().T).scatter_add(1, index, values)  # an item named twice gets the sum
    expected = scores.log_softmax(-1).diagonal()
    torch.testing.assert_close(got, expected)
    weight = torch.randn(tester.num_items, generator=generator)
    wanted = torch.autograd.grad((expected * weight).sum(), (plans, values), retain_graph=True)
    for mine, theirs in zip(torch.autograd.grad((got * weight).sum(), (plans, values)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_log_of_repeats_teaches_them(tester):
    """Everybody gets the item of two events ago again: counting says it, and it is learnt from nothing."""
    torch.manual_seed(0)
    model = HiGRForSlateGeneration(
        tester.config(catalog_prior=True, repeat_decays=[1.0], num_feedback_levels=0, num_time_buckets=0)
    )
    model.set_catalog(tester.codes)
    assert not any(parameter.any() for parameter in model.model.repeats.parameters())
    optimizer = torch.optim.Adam(model.model.repeats.parameters(), lr=0.01)

    def loss() -> torch.Tensor:
        pairs = torch.randint(tester.num_items, (32, 2))
        ids = torch.tensor([tester.prompt(model.config, [a, b, a, b])[:-1] for a, b in pairs.tolist()])
        return model(input_ids=ids, labels=ids).loss

    losses = []
    for _ in range(100):
        losses.append(loss())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert model.model.repeats.weight.item() * GAIN > 1.0
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])


def test_they_travel_with_the_model_and_grow_with_its_catalogue(tester, model, tmp_path):
    model.save_pretrained(tmp_path)
    again = HiGRForSlateGeneration.from_pretrained(tmp_path)
    prompt = torch.tensor([tester.prompt(model.config, [3, 4, 3])])
    assert again.config.repeat_decays == DECAYS and again.config.reads_whole_history
    assert torch.equal(again.generate(prompt), model.generate(prompt))
    scores = again.model.repeats
    told = scores(torch.tensor([[3, 4]]))
    scores.config.num_items += 2
    scores.grow(2)
    assert torch.equal(scores(torch.tensor([[3, 4]]))[:, :24], told)
    assert scores(torch.tensor([[25]]))[0, 25].item() == pytest.approx(
        GAIN * sum(weight * math.log(2) for weight in scores.weight.tolist()), abs=1e-5
    )


@pytest.mark.parametrize("changes", [{"repeat_decays": [-1.0]}, {"catalog_prior": False}], ids=str)
def test_a_configuration_that_cannot_work_is_refused(changes):
    with pytest.raises(ValueError, match="repeat_decays"):
        HiGRConfig(**{**REPEATS, **changes})
