"""Encoded histories: continued, cut or laid side by side, they are what `generate` encodes itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.baselines.onerec import OneRecConfig, OneRecForSlateGeneration
from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.serving.contexts import HistoryEncoder, HistoryTokens
from tests.model_tester import ADDED_SCORES, HiGRModelTester

TESTER = HiGRModelTester()
EVENTS = st.lists(st.tuples(st.integers(0, 23), st.integers(-1, 2), st.integers(-1, 1)), max_size=12)
VARIANTS = {
    "plain": {},
    "prior": {"catalog_prior": True, "dense_head": False},
    "item-item tables": {**ADDED_SCORES, "dense_head": False},
    "bidirectional": {"encoder_attention": "bidirectional"},
    "two encoder layers": {"encoder_layers": 2, "pooling": "max"},
    "no generator context": {"generator_context": False},
    "a generator a slot": {"shared_generator": False},
}
MODELS = {name: TESTER.model(**overrides) for name, overrides in VARIANTS.items()}


def prompt(events) -> torch.Tensor:
    """`<bos>`, items with their features, `<slate>`."""
    config = MODELS["plain"].config
    tokens = [config.bos_token_id]
    for item, feedback, time in events:
        tokens += TESTER.item_tokens(config, [item])
        tokens += [config.feature_offset + feedback] if feedback >= 0 else []
        tokens += [config.feature_offset + config.num_feedback_levels + time] if time >= 0 else []
    return torch.tensor([*tokens, config.slate_token_id])


def slates(model, rows, **arguments):
    batch = TESTER.batch([row.tolist() for row in rows])
    return model.generate(**batch, exclude_history=True, return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize("name", VARIANTS)
@given(histories=st.lists(st.tuples(EVENTS, EVENTS), min_size=1, max_size=4))
def test_a_continued_context_is_the_plain_one(name, histories):
    model = MODELS[name]
    encoder = HistoryEncoder(model)
    old = [prompt(before) for before, _ in histories]
    # What comes later shares some of what was there: all, the first half, or nothing.
    rows = [prompt([*before[: len(before) * (number % 3) // 2], *later][:12])
            for number, (before, later) in enumerate(histories)]  # fmt: skip
    kept = encoder.encode([encoder.split(row) for row in old])
    encoded = encoder.encode([encoder.split(row) for row in rows], kept)
    context = encoder.assemble(encoded)
    batch = TESTER.batch([row.tolist() for row in rows])
    layout = model._prompt_layout(batch["input_ids"], batch["attention_mask"])
    with torch.inference_mode():
        plain = model._encode_prompt(batch["input_ids"], layout, model.model.trie().lookup(layout.codes))
    assert torch.equal(context.length, plain.length)
    pairs = [(context.encoded, plain.encoded)]
    for ours, theirs in ((context.planner, plain.planner), *zip(context.generators, plain.generators, strict=True)):
        for one, two in zip(ours, theirs, strict=True):
            assert (one is None) == (two is None)
            pairs += [] if one is None else [(x.transpose(1, 2), y.transpose(1, 2)) for x, y in zip(one, two)]  # noqa: B905
    for row, length in enumerate(context.length.tolist()):
        for one, two in pairs:
            torch.testing.assert_close(one[row, :length], two[row, :length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", SLATE_MODES)
@pytest.mark.parametrize("name", VARIANTS)
def test_slates_from_a_context_are_the_plain_slates(name, mode):
    model = MODELS[name]
    encoder = HistoryEncoder(model)
    rows = [prompt([(item, item % 4 - 1, -1) for item in items]) for items in ([], [3], [1, 2, 3, 4, 5, 6, 7])]
    kept = encoder.encode([encoder.split(row) for row in (rows[0], rows[0], rows[1])])
    context = encoder.assemble(encoder.encode([encoder.split(row) for row in rows], kept), units=13)
    ours, plain = slates(model, rows, slate_mode=mode, context=context), slates(model, rows, slate_mode=mode)
    assert torch.equal(ours.slates, plain.slates) and torch.equal(ours.candidates, plain.candidates)
    torch.testing.assert_close(ours.scores, plain.scores, atol=1e-5, rtol=1e-5)


def test_the_flat_decoder_reads_contexts_too():
    torch.manual_seed(0)
    plain = TESTER.config()
    sizes = {name: getattr(plain, name) for name in ("codebook_sizes", "num_items", "hidden_size", "max_history")}
    model = OneRecForSlateGeneration(OneRecConfig(**sizes, intermediate_size=32, num_attention_heads=2)).eval()
    model.set_catalog(TESTER.codes)
    encoder = HistoryEncoder(model)
    rows = [TESTER.batch([TESTER.prompt(model.config, items)])["input_ids"][0] for items in ([1, 2], [5])]
    context = encoder.assemble(encoder.encode([encoder.split(row) for row in rows]))
    batch = TESTER.batch([row.tolist() for row in rows])
    ours, theirs = (model.generate(**batch, slate_size=3, context=given) for given in (context, None))
    assert torch.equal(ours, theirs)


def test_only_what_is_new_is_encoded():
    encoder = HistoryEncoder(MODELS["plain"])
    (first,) = encoder.encode([encoder.split(prompt([(1, 0, 0), (2, -1, -1)]))])
    assert (encoder.encoded_units, encoder.reused_units) == (3, 0)  # `<bos>` and two events
    (longer,) = encoder.encode([encoder.split(prompt([(1, 0, 0), (2, -1, -1), (3, 1, -1)]))], [first])
    assert (encoder.encoded_units, encoder.reused_units) == (4, 3)
    encoder.encode([encoder.split(prompt([(1, 0, 0), (2, 2, -1), (3, 1, -1)]))], [longer])  # a rating came late
    assert (encoder.encoded_units, encoder.reused_units) == (6, 5)
    (same,) = encoder.encode([longer.prompt], [longer])
    assert same is longer and encoder.encoded_units == 6
    (cut,) = encoder.encode([first.prompt], [longer])
    assert torch.equal(cut.context, longer.context[:, :3]) and encoder.encoded_units == 6
    assert cut.context.untyped_storage().nbytes() < longer.context.untyped_storage().nbytes()


def test_a_bidirectional_history_is_encoded_whole_or_not_at_all():
    encoder = HistoryEncoder(MODELS["bidirectional"])
    (first,) = encoder.encode([encoder.split(prompt([(1, 0, 0)]))])
    assert encoder.encode([first.prompt], [first])[0] is first and encoder.encoded_units == 2
    encoder.encode([encoder.split(prompt([(1, 0, 0), (2, 0, 0)]))], [first])
    assert (encoder.encoded_units, encoder.reused_units) == (5, 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_documented_size_is_the_size(name):
    encoder = HistoryEncoder(MODELS[name])
    (row,) = encoder.encode([encoder.split(prompt([(1, 0, 0), (2, 0, -1)]))])
    assert row.nbytes == 3 * encoder.unit_bytes
    assert row.keys.untyped_storage().nbytes() + row.context.untyped_storage().nbytes() == row.nbytes


@given(one=EVENTS, two=EVENTS)
def test_shared_units_by_definition(one, two):
    encoder = HistoryEncoder(MODELS["plain"])
    ours, theirs = encoder.split(prompt(one)), encoder.split(prompt(two))
    agree = [a == b for a, b in zip(one, two)]  # noqa: B905
    expected = 1 + (agree.index(False) if False in agree else len(agree))
    assert ours.shared(theirs) == theirs.shared(ours) == expected
    assert isinstance(ours, HistoryTokens) and len(ours.ends) == len(one) + 1
