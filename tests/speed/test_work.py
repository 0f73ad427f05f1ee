"""The counted work against what torch counts while the models decode."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from higr_hf import HiGRConfig, HiGRForSlateGeneration
from higr_hf.baselines.onerec import OneRecConfig, OneRecForSlateGeneration
from higr_hf.speed.work import Work, decoding_work

SIZES = {"batch": 3, "history": 4, "slate_size": 3}
FIELDS = {
    "codebook_sizes": [4, 3, 5], "num_items": 60, "hidden_size": 8, "intermediate_size": 24, "num_attention_heads": 2,
    "encoder_layers": 2, "planner_layers": 3, "generator_layers": 2, "item_embedding": False, "dense_head": False,
}  # fmt: skip


def measured(model, **options) -> int:
    model.set_catalog(torch.tensor(list(itertools.product(range(4), range(3), range(5)))))
    model.set_attn_implementation("eager")
    offsets = torch.tensor(model.config.level_offsets)
    items = model.model.item_codes[torch.randint(60, (SIZES["batch"], SIZES["history"]))] + offsets
    ends = torch.ones(SIZES["batch"], 1, dtype=torch.long)
    prompts = torch.cat([ends, items.flatten(1), 3 * ends], dim=1)
    with FlopCounterMode(display=False) as counter:
        model.eval().generate(prompts, slate_size=SIZES["slate_size"], **options)
    return counter.get_total_flops()


def _element_products(config: HiGRConfig, mode: str, num_beams: int) -> int:
    """The item beam's self-attention, which is no matrix product and which torch does not count."""
    width = num_beams if mode == "sequential" else max(num_beams, SIZES["slate_size"])
    slots = 1 if mode == "first_plan" else SIZES["slate_size"]
    rows = SIZES["batch"] * slots * config.generator_layers
    beams = [1, min(width, 4), min(width, 12)]
    if mode == "verified":  # a search like plan-once's, and one with two more hypotheses
        beams = [kept + more for kept, more in zip(beams, [1, beams[1] + 2, min(width, 4 * 3) + 2], strict=True)]
    return sum(4 * rows * kept * (depth + 1) * config.hidden_size for depth, kept in enumerate(beams))


@pytest.mark.parametrize("beams", [1, 6])
@pytest.mark.parametrize(
    ("mode", "use_cache"),
    [("sequential", True), ("sequential", False), ("plan_once", True), ("verified", True), ("first_plan", True)],
)
@pytest.mark.parametrize("context", [True, False])
def test_hierarchical_decoding(mode, beams, use_cache, context):
    config = HiGRConfig(**FIELDS, generator_context=context)
    counted = decoding_work(config, mode, num_beams=beams, use_cache=use_cache, **SIZES)
    options = {"slate_mode": mode, "num_beams": beams, "use_cache": use_cache}
    found = measured(HiGRForSlateGeneration(config), **options)
    assert counted.operations == found + (_element_products(config, mode, beams) if use_cache else 0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_flat_greedy_decoding(use_cache):
    config = OneRecConfig(**FIELDS)
    counted = decoding_work(config, "flat", num_beams=1, use_cache=use_cache, **SIZES)
    assert counted.operations == measured(OneRecForSlateGeneration(config), num_beams=1, use_cache=use_cache)


def test_a_flat_beam_does_little_more_than_it_must():
    """The cache's columns of other hypotheses are looked at too, and masked."""
    config = OneRecConfig(**FIELDS)
    counted = decoding_work(config, "flat", num_beams=4, **SIZES).operations
    found = measured(OneRecForSlateGeneration(config), num_beams=4)
    assert counted < found < 1.25 * counted


def test_numbers_read_worked_out_by_hand():
    config = HiGRConfig(codebook_sizes=[4, 4], hidden_size=4, intermediate_size=8, num_attention_heads=1,
                        encoder_layers=1, planner_layers=1, generator_layers=1)  # fmt: skip
    found = decoding_work(config, "plan_once", batch=2, history=1, slate_size=2, num_beams=2)
    square, mlp, context = 16, 64, 2 * 2 * 2 * 4  # keys and values of two prompts of two units, width four
    encoder = 4 * square + mlp + context
    keys = 2 * 2 * square
    planner = 6 * square + mlp + square + context + 2 * 2 * 2 * 4
    first = 6 * square + mlp + context + 2 * 4 * 4 * 1 + 9 * 4  # four rows; the first group has five special tokens
    second = 6 * square + mlp + context + 2 * 8 * 4 * 2 + 4 * 4  # eight rows of two codes
    assert found.elements == encoder + keys + planner + first + second
    assert Work(1, 2) + Work(3, 4) == Work(4, 6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be one of"):
        decoding_work(HiGRConfig(), "beam", batch=1, history=1, slate_size=1, num_beams=1)
