"""Decoding of one shape: the slates of generate(), and not one step that waits for the device."""

from __future__ import annotations

import pytest
import torch

from higr_hf.baselines.onerec import OneRecConfig, OneRecForSlateGeneration
from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.deployment import FixedShapeDecoder
from tests.host_waits import HostWaits
from tests.model_tester import ADDED_SCORES, HiGRModelTester

TESTER = HiGRModelTester()
HISTORIES = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
VARIANTS = {
    "plain": {},
    "item-item": ADDED_SCORES,
    "bidirectional": {"encoder_attention": "bidirectional", "pooling": "max"},
    "a generator a slot": {"shared_generator": False, "generator_context": False},
    "reranked": {"dense_head": True, "rerank_weight": 0.5},
}


def flat_model() -> OneRecForSlateGeneration:
    torch.manual_seed(3)
    config = TESTER.config().to_dict()
    fields = (
        "codebook_sizes num_items hidden_size intermediate_size slate_size num_attention_heads encoder_layers "
        "planner_layers generator_layers max_history initializer_range embedding_range"
    )
    sizes = {name: config[name] for name in fields.split()}
    model = OneRecForSlateGeneration(OneRecConfig(**sizes)).eval()
    model.set_catalog(TESTER.codes)
    return model


def prompts(model, histories=HISTORIES) -> torch.Tensor:
    return TESTER.batch([TESTER.prompt(model.config, items) for items in histories])["input_ids"]


def assert_same(found, expected, batch: int) -> None:
    for name in ("sequences", "slates", "candidates"):
        assert torch.equal(found[name], expected[name]), name
    for name in ("scores", "candidate_scores"):
        torch.testing.assert_close(found[name], expected[name])
    assert len(found.slates) == batch


@pytest.mark.parametrize("mode", SLATE_MODES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padded", [False, True])
def test_slates_are_those_of_generate_and_nothing_waits(mode, variant, padded):
    model = TESTER.model(**VARIANTS[variant])
    model.set_catalog(TESTER.codes, active=torch.arange(TESTER.num_items) != 11)
    histories = [[1, 2], [4], [7, 8, 9]] if padded else HISTORIES
    rows, exclude = prompts(model, histories), torch.tensor([[10, 12], [13, -1], [-1, -1]])
    given = {"slate_size": 3, "num_beams": 4, "slate_mode": mode, "exclude_history": True}
    expected = model.generate(rows, exclude=exclude, return_dict_in_generate=True, **given)
    decode = FixedShapeDecoder(
        model, batch_size=3, prompt_length=rows.shape[1], max_excluded=2, padded=padded, **given
    )
    with HostWaits() as waits:
        found, unfit = decode(rows, exclude)
    assert waits.found == []
    assert_same(found, expected, 3)
    assert not unfit.any() and 11 not in found.candidates


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_the_flat_decoder_likewise(beams, padded):
    model = flat_model()
    rows = prompts(model, [[1, 2], [4], [7, 8, 9]] if padded else HISTORIES)
    given = {"slate_size": 4, "num_beams": beams, "exclude_history": True}
    expected = model.generate(rows, return_dict_in_generate=True, **given)
    decode = FixedShapeDecoder(model, batch_size=3, prompt_length=rows.shape[1], padded=padded, **given)
    with HostWaits() as waits:
        found, unfit = decode(rows)
    assert waits.found == []
    assert_same(found, expected, 3)
    assert not unfit.any()


@pytest.mark.parametrize("kind", ["higr", "flat"])
def test_missing_slots_hold_nothing(kind):
    model = TESTER.model() if kind == "higr" else flat_model()
    rows, exclude = prompts(model), torch.arange(22).expand(3, -1)
    given = {"slate_size": 4, "num_beams": 3, "allow_short": True}
    expected = model.generate(rows, exclude=exclude, return_dict_in_generate=True, **given)
    decode = FixedShapeDecoder(model, batch_size=3, prompt_length=rows.shape[1], max_excluded=22, **given)
    with HostWaits() as waits:
        found, unfit = decode(rows, exclude)
    assert waits.found == [] and not unfit.any()
    assert_same(found, expected, 3)
    assert (found.slates[:, 2:] == -1).all() and (found.slates[:, :2] >= 0).all()


def test_prompts_that_generate_refuses_are_named():
    model = TESTER.model(max_history=2)
    config, length = model.config, 1 + 3 * 3 + 1
    good = TESTER.prompt(config, [1, 2])
    empty, long = [], TESTER.prompt(config, [1, 2, 3])
    begun = [*TESTER.prompt(config, [1]), *TESTER.item_tokens(config, [4])]
    specials = [config.bos_token_id] * 8
    rows = TESTER.batch([good, empty, long, begun, specials, good, good], pad_to=length)["input_ids"]
    exclude = torch.full((7, 24), -1)
    exclude[5, :22] = torch.arange(22)
    exclude[6, 0] = 24
    decode = FixedShapeDecoder(model, batch_size=7, prompt_length=length, slate_size=3, max_excluded=24)
    found, unfit = decode(rows, exclude)
    assert unfit.tolist() == [False, True, True, True, True, True, True]
    alone = model.generate(rows[:1], slate_size=3, return_dict_in_generate=True)
    assert torch.equal(found.slates[:1], alone.slates)
    for row in (1, 2, 3, 5, 6):
        with pytest.raises(ValueError, match=r"Prompt 0|exclude"):
            model.generate(rows[row : row + 1], slate_size=3, exclude=exclude[row : row + 1])


def test_a_short_prompt_is_named_where_none_was_announced():
    model = TESTER.model()
    rows = prompts(model, [[1, 2, 3], [4]])
    decode = FixedShapeDecoder(model, batch_size=2, prompt_length=rows.shape[1], padded=False)
    assert decode(rows)[1].tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slate_mode": "eager"}, "slate_mode must be one of"),
        ({"slate_size": 0}, "slate_size must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_excluded": -1}, "max_excluded must be at least 0"),
        ({"rerank_weight": 1.0}, "dense_head=True"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    model = TESTER.model(dense_head=False)
    with pytest.raises(ValueError, match=message):
        FixedShapeDecoder(model, **{"batch_size": 1, "prompt_length": 11, **options})
